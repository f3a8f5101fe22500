// Replays a program of operations, see replay.h. Compiled once for each type of numbers and each set of instructions.
#define _GNU_SOURCE
#include "replay.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))
#define ROW ((int64_t)(64 / sizeof(REAL)))  // numbers that fill a row up to 64 bytes
typedef REAL Vector __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL))));
#define AT_HAND(address) __asm__("" : "+r"(address))  // else some processors compute it anew for each vector

#include "subnormals.h"
#include "functions.h"
#include "products.h"
#include "sparse.h"

#define MOST_THREADS 256
#define NARROW 16         // units: with fewer, a product is not for BLAS
#if TILE_ROWS == 8        // multiplications, likewise: with 32 registers BLAS gains only in large products
#define SMALL (1 << 26)
#else
#define SMALL (1 << 23)
#endif
#define DEEP 2048         // terms of a sum, likewise
#define TRANSPOSED_AT_MOST (1 << 18)  // weights
#define SLICES 16         // of a layer's parameters, at most
#define WORTH_SHARING 250000  // rows times parameters of an update
#define SPINS 2000        // some 30 microseconds
#define LOOKED_AT 16      // rows, before zeros are skipped
#define SPARSE 0.5        // numbers that are not zero, of all
enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };

typedef struct {  // what a tile of rows is worked on with
  REAL **buffers;
  const void **rows;
  const void *features;  // bytes or numbers of all rows, copied or where the data are
  int64_t stride;        // of them from row to row
  int64_t *samples;  // the numbers of the rows in the data
  uint64_t *marks;   // their masks
  void *y;
  REAL *weights;
  int64_t skips;    // whether the first layer skips zeros one by one
} Frame;
typedef struct {  // of one thread
  Frame frame;    // for shards of a full batch
  REAL *sums;     // of columns, or what rows begin with
  REAL *values;   // of rows that are stored without their zeros
  uint64_t *by_column;
  REAL *gradient;  // of a slice
} Own;

typedef struct {  // rows to predict, cut into shards
  int64_t rows, shard;
  REAL *outputs;  // (rows, sizes[L])
} Unseen;

typedef struct {  // how many threads share an update: all, or for a while one, after they had to wait for a core
  int64_t until, alone;  // before this update of the epoch the first thread works alone; so many then, in later pieces
  double reached, best, pause;
} Pace;

struct Replay {
  Setup setup;
  int64_t *sizes, *lds, *offsets, *widths;  // of layers, and of buffers
  const REAL **parameters;                  // of layers: biases, and behind them W^T, in rows of `lds`
  REAL **copies;                            // of a layer's parameters, for predictions; null if they are used in place
  Instruction *program;
  int64_t capacity;  // rows of a frame
  Frame batch;
  Own *own;
  uint64_t *masks;   // of all rows
  Stored *stored;    // likewise, if only what is not zero is given
  int32_t *before;
  REAL **transposed;  // W of layers whose products with it are small, (n_l, n_{l-1}); null for others
  REAL *shifts;      // W[1] times the background, a part for each slice; null if there is none
  REAL **sums;      // gradients of groups
  double *losses, *penalties;
  int64_t slices;           // of all layers
  int64_t *slice_of_rank;   // the first one of each rank, and behind the last rank's, how many there are
  int64_t *number_of_rank;  // likewise the first of its parameters
  int64_t *sent;            // whether gradients are computed from a buffer, but for that of the features
  Message *messages;
  int64_t pending;          // how many of them there are
  int64_t failed;           // what the exchange returned
  Piece *piece;
  const Unseen *unseen;     // if rows are predicted
  atomic_long crew;  // threads that could be started; 0 until that is known
  atomic_long arrived, phase, next_part, next_slice;
  pthread_mutex_t lock;
  pthread_cond_t phase_is_over;
  Pace pace;
};

static int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
// Numbers from one row of n to the next. Rows that are multiples of 1024 bytes apart would share a few lines of the first
// cache, which then holds only some of them.
static int64_t padded(int64_t n) { return up(n, ROW) + (up(n, ROW) * sizeof(REAL) % 1024 ? 0 : ROW); }
static void *new(int64_t bytes) {
  void *p = aligned_alloc(64, up(bytes + 1, 64));
  if (p) memset(p, 0, up(bytes + 1, 64));
  return p;
}

// Threads meet here. Who waits long sleeps: a thread that is still to come may need the core.
static void meet(Replay *r) {
  const long threads = r->crew;
  if (threads == 1) return;
  const long phase = atomic_load_explicit(&r->phase, memory_order_relaxed);
  if (atomic_fetch_add(&r->arrived, 1) == threads - 1) {
    atomic_store(&r->arrived, 0);
    pthread_mutex_lock(&r->lock);
    atomic_store_explicit(&r->phase, phase + 1, memory_order_release);
    pthread_cond_broadcast(&r->phase_is_over);
    pthread_mutex_unlock(&r->lock);
    return;
  }
  for (int spins = 0; spins < SPINS; spins++) {
    if (atomic_load_explicit(&r->phase, memory_order_acquire) != phase) return;
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
  pthread_mutex_lock(&r->lock);
  while (atomic_load_explicit(&r->phase, memory_order_acquire) == phase) pthread_cond_wait(&r->phase_is_over, &r->lock);
  pthread_mutex_unlock(&r->lock);
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}
// How many updates to do alone from now on, given when the first thread is done with its share of one.
static int64_t alone_after(Pace *p, double now) {
  const double took = now - p->reached, forgotten = 1.01 * p->best;
  p->reached = now;
  p->best = p->best == 0 || took < forgotten ? took : forgotten;
  if (took <= 3 * p->best) {
    p->pause = p->pause * 0.97 > 4 ? p->pause * 0.97 : 4;
    return 0;
  }
  const int64_t alone = p->pause < 4 ? 4 : p->pause;
  p->pause = alone < 128 ? 2.0 * alone : 256;
  return alone;
}

// C (m, n) += op(A) B, or += A B'.
static void blas(const Setup *s, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, const REAL *A, int64_t lda,
                 const REAL *B, int64_t ldb, REAL *C, int64_t ldc) {
  if (!m || !n || !k) return;
  if (s->long_integers) {
    typedef void F(int, int, int, int64_t, int64_t, int64_t, REAL, const REAL *, int64_t, const REAL *, int64_t, REAL,
                   REAL *, int64_t);
    ((F *)s->gemm)(ROW_MAJOR, trans_a, trans_b, m, n, k, 1, A, lda, B, ldb, 1, C, ldc);
  } else {
    typedef void F(int, int, int, int, int, int, REAL, const REAL *, int, const REAL *, int, REAL, REAL *, int);
    ((F *)s->gemm)(ROW_MAJOR, trans_a, trans_b, m, n, k, 1, A, lda, B, ldb, 1, C, ldc);
  }
}
static int64_t slices_of(int64_t n) { return n < 128 ? 1 : least(SLICES, n / 96); }
static int is_small(int64_t m, int64_t n, int64_t k) {
  return m == 1 || n <= NARROW || (k <= DEEP && m * n * k < SMALL);
}

// --------------------------------------------------------------------------------------------- operations on rows

static void use_copies(const Replay *r, Frame *f) {
  f->features = f->buffers[0];
  f->stride = r->widths[0] * sizeof(REAL) / (f->skips ? size_of_number(&r->setup) : (int64_t)sizeof(REAL));
}
// Let products read the rows of a shard, which follow one another, where they are, if these are as they should be; return
// whether they are.
static int use_rows(const Replay *r, Frame *f) {
  const Setup *s = &r->setup;
  if (f == &r->batch || (f->skips ? s->background != 0 : s->bytes)) return 0;
  if ((uintptr_t)f->rows[0] % size_of_number(s)) return 0;
  f->features = f->rows[0];
  f->stride = r->sizes[0];
  return 1;
}
static void features(Replay *r, Frame *f, const Instruction *i, int64_t from, int64_t to) {
  const Setup *s = &r->setup;
  const int64_t d = r->sizes[0], ld = r->widths[i->to];
  if (s->starts) return;  // the product reads the rows themselves
  if (use_rows(r, f)) return;
  if (f != &r->batch) use_copies(r, f);
  for (int64_t q = from; q < to; q++) {
    REAL *A = f->buffers[i->to] + q * ld;
    if (s->bytes && !f->skips)
      for (int64_t j = 0; j < d; j++) A[j] = ((const uint8_t *)f->rows[q])[j] * (1 / (REAL)255);
    else if (f->skips && s->background)
      for (int64_t j = 0; j < d; j++) A[j] = number(s, f->rows[q], j);
    else
      memcpy(A, f->rows[q], d * size_of_number(s));
  }
}
static Sparse sparse_rows(const Replay *r, const Frame *f) {
  return (Sparse){f->marks, (r->sizes[0] + 63) / 64, f->features, f->stride, r->setup.starts ? f->rows : 0};
}
// What a product reads of a buffer, and how far its rows are apart.
static const REAL *factor(const Replay *r, const Frame *f, int64_t buffer, int64_t *ld) {
  *ld = buffer ? r->widths[buffer] : f->stride;
  return buffer ? f->buffers[buffer] : f->features;
}
// What each row's Z begins with: the biases, and what the background adds to them.
static const REAL *begin_of_row(const Replay *r, Own *own, int64_t layer) {
  const REAL *b = r->parameters[layer];
  if (layer > 1 || !r->shifts) return b;
  const int64_t ld = r->lds[1], slices = slices_of(r->sizes[0]);
  REAL *sums = own->sums;
  memcpy(sums, b, ld * sizeof(REAL));
  for (int64_t p = 0; p < slices; p++)
    for (int64_t q = 0; q < ld; q++) sums[q] += r->shifts[p * ld + q];
  return sums;
}
static void affine(Replay *r, Own *own, Frame *f, const Instruction *i, int64_t from, int64_t to) {
  const Setup *s = &r->setup;
  const int64_t n = r->sizes[i->layer], k = r->sizes[i->layer - 1], ldw = r->lds[i->layer], m = to - from;
  const int64_t ld = r->widths[i->to];
  const REAL *b = begin_of_row(r, own, i->layer), *W = r->parameters[i->layer] + ldw;
  REAL *Z = f->buffers[i->to] + from * ld;
  const int skips = i->layer == 1 && f->skips;
  int64_t lda;
  const REAL *A = factor(r, f, i->from, &lda) + from * lda;
  if (!skips && is_small(m, n, k)) {
    multiply(m, n, k, A, lda, 1, W, ldw, b, 0, Z, ld);
    return;
  }
  for (int64_t q = 0; q < m; q++) memcpy(Z + q * ld, b, ldw * sizeof(REAL));
  if (skips) {
    const Sparse X = sparse_rows(r, f);
    add_forward(s, &X, from, to, W, ldw, n, f->buffers[i->to], ld, own->values);
  } else blas(s, PLAIN, PLAIN, m, n, k, A, lda, W, ldw, Z, ld);
}
static void dropout(const Replay *r, const Frame *f, const Instruction *i, int64_t from, int64_t to) {
  const Setup *s = &r->setup;
  const int64_t ld = r->widths[i->to];
  const uint32_t *key = r->piece->keys + 2 * i->layer;
  for (int64_t q = from; q < to; q++)
    thin(key, f->samples[q], s->thresholds[i->layer], s->factors[i->layer], f->buffers[i->from] + q * ld,
         f->buffers[i->to] + q * ld, ld);
}
// Whether the product of m rows with W is for the loops here, which read W by its columns.
static int multiplies_by_transposed(const Replay *r, int64_t layer, int64_t m) {
  const int64_t k = r->sizes[layer], n = r->sizes[layer - 1];
  return k <= NARROW || is_small(m, n, k);
}
static void input_gradient(Replay *r, Frame *f, const Instruction *i, int64_t from, int64_t to) {
  const Setup *s = &r->setup;
  const int64_t k = r->sizes[i->layer], n = r->sizes[i->layer - 1], ldw = r->lds[i->layer], m = to - from;
  const int64_t lda = r->widths[i->from], ldc = r->widths[i->to];
  const REAL *W = r->parameters[i->layer] + ldw, *A = f->buffers[i->from] + from * lda;
  REAL *C = f->buffers[i->to] + from * ldc;
  const REAL *B = r->transposed[i->layer];
  if (B && multiplies_by_transposed(r, i->layer, m)) multiply(m, n, k, A, lda, 1, B, ldc, 0, 0, C, ldc);
  else {
    memset(C, 0, m * ldc * sizeof(REAL));
    blas(s, PLAIN, TRANSPOSED, m, n, k, A, lda, W, ldw, C, ldc);
  }
}
// Slice p of a layer's inputs; slices begin at multiples of 64.
static int64_t cut(int64_t n, int64_t p, int64_t slices) { return p >= slices ? n : least(n, up(n * p / slices, 64)); }

// Rows [j0, j1) of a layer's W^T, as columns of its W.
static void transpose_weights(const Replay *r, int64_t layer, int64_t j0, int64_t j1) {
  REAL *to = r->transposed[layer];
  if (!to) return;
  const int64_t ld = r->lds[layer], ldt = r->lds[layer - 1];
  const REAL *W = r->parameters[layer] + ld;
  for (int64_t j = j0; j < j1; j += 16)
    for (int64_t q = 0; q < r->sizes[layer]; q++) {
      REAL *row = to + q * ldt + j;
      const REAL *column = W + j * ld + q;
      if (j + 16 <= j1) UNROLL for (int64_t c = 0; c < 16; c++) row[c] = column[c * ld];
      else for (int64_t c = 0; c < j1 - j; c++) row[c] = column[c * ld];
    }
}
// What products take from slice p of a layer's weights in another form.
static void derive(const Replay *r, int64_t layer, int64_t p) {
  const int64_t n = r->sizes[layer - 1], j0 = cut(n, p, slices_of(n)), j1 = cut(n, p + 1, slices_of(n));
  transpose_weights(r, layer, j0, j1);
  if (layer > 1 || !r->shifts) return;
  const int64_t ld = r->lds[1];
  const REAL *background = r->setup.background, *restrict W = r->parameters[1] + (1 + j0) * ld;
  REAL *restrict shift = r->shifts + p * ld;
  multiply(1, r->sizes[1], j1 - j0, background + j0, 0, 1, W, ld, 0, 0, shift, ld);
}
// Thread t's share of all slices but [from, to).
static void derive_slices(const Replay *r, int64_t from, int64_t to, int64_t t, int64_t threads) {
  int64_t slice = 0;
  for (int64_t l = 1; l <= r->setup.layers; l++)
    for (int64_t p = 0; p < slices_of(r->sizes[l - 1]); p++, slice++)
      if ((slice < from || slice >= to) && slice % threads == t) derive(r, l, p);
}
static double on_rows(Replay *r, Own *own, Frame *f, int64_t from, int64_t to, REAL scale) {
  const Setup *s = &r->setup;
  double sum = 0;
  for (int64_t q = 0; q < s->instructions; q++) {
    const Instruction *i = r->program + q;
    REAL *at = f->buffers[i->to] + from * r->widths[i->to];
    const REAL *with = f->buffers[i->with] + from * r->widths[i->with];
    const int64_t numbers = (to - from) * r->widths[i->to];
    switch (i->operation) {
      case FEATURES: features(r, f, i, from, to); break;
      case AFFINE: affine(r, own, f, i, from, to); break;
      case ACTIVATE: activate(i->function, at, numbers); break;
      case DROPOUT: dropout(r, f, i, from, to); break;
      case LOSS: {
        const int64_t k = r->sizes[s->layers], size = s->labels ? (int64_t)sizeof(int32_t) : k * (int64_t)sizeof(REAL);
        if (i->to != i->from) memcpy(at, f->buffers[i->from] + from * r->widths[i->from], numbers * sizeof(REAL));
        if (!s->weights)
          sum += loss(i->function, at, (const char *)f->y + from * size, to - from, k, r->widths[i->to], scale);
        for (int64_t p = from; s->weights && p < to; p++) {
          REAL *row = f->buffers[i->to] + p * r->widths[i->to];
          sum += f->weights[p] *
                 loss(i->function, row, (const char *)f->y + p * size, 1, k, r->widths[i->to], scale * f->weights[p]);
        }
        break;
      }
      case ACTIVATION_GRADIENT: slope(i->function, at, with, numbers); break;
      case INPUT_GRADIENT: input_gradient(r, f, i, from, to); break;
    }
  }
  return sum;
}

// -------------------------------------------------------------------------------------- operations on parameters

// The column sums of m rows.
static const REAL *add_rows(const REAL *rows, int64_t m, int64_t ld, REAL *sums) {
  for (int64_t q = 0; q < m; q++)
    for (int64_t j = 0; j < ld; j++) sums[j] = (q ? sums[j] : 0) + rows[q * ld + j];
  return sums;
}
// dW += db background' for inputs [j0, j1).
static void add_background(const Setup *s, const REAL *restrict db, int64_t j0, int64_t j1, int64_t ld,
                           REAL *restrict dW) {
  const REAL *background = s->background;
  for (int64_t j = j0; j < j1; j++, dW += ld) {
    const REAL usual = background[j];
    if (usual == 0) continue;
    for (int64_t q = 0; q < ld; q++) dW[q] += usual * db[q];
  }
}

// The gradient of inputs [j0, j1) of a layer, and of its biases with the first slice, added to `into`: so many rows of the
// layer's block, from that of the biases or of input j0 on.
static void add_gradient(Replay *r, Own *own, Frame *f, const Instruction *i, int64_t m, int64_t j0, int64_t j1,
                         REAL *into) {
  const Setup *s = &r->setup;
  const int64_t ld = r->lds[i->layer], n = r->sizes[i->layer];
  const REAL *dZ = f->buffers[i->from];
  REAL *dW = into + (j0 ? 0 : ld);
  if (i->operation == BIAS_GRADIENT) {
    if (j0) return;
    const REAL *sums = add_rows(dZ, m, ld, own->sums);
    for (int64_t j = 0; j < ld; j++) into[j] += sums[j];
    return;
  }
  if (i->layer == 1 && s->sparse) {
    const Sparse X = sparse_rows(r, f);
    for (int64_t j = j0; j < j1; j += COLUMNS)
      add_backward(s, &X, m, j, least(j1, j + COLUMNS), dZ, n, ld, dW + (j - j0) * ld, own->values, own->by_column);
    if (r->shifts) add_background(s, add_rows(dZ, m, ld, own->sums), j0, j1, ld, dW);
    return;
  }
  int64_t lda;
  const REAL *A = factor(r, f, i->with, &lda) + j0;
  if (is_small(j1 - j0, n, m)) multiply(j1 - j0, n, m, A, 1, lda, dZ, ld, dW, ld, dW, ld);
  else blas(s, TRANSPOSED, PLAIN, j1 - j0, n, m, A, lda, dZ, ld, dW, ld);
}

// The optimizer's update of numbers [from, to), which are weights or biases. The gradient becomes that of the mean loss.
typedef struct {
  REAL mean, rate, taken, gathered;  // of a velocity of steps, all is taken; of one of gradients, all is gathered
  REAL momentum, beta1, new1, beta2, new2, epsilon, decay, l2, by_first, by_second;  // new: 1 - beta
} Rates;
static double l2_of(const Setup *s, double count) { return s->l2 + s->l2_sum / count; }
static Rates rates(const Replay *r, double count, int64_t update, int biases) {
  const Setup *s = &r->setup;
  const double rate = biases ? r->piece->bias_rate : r->piece->rate, t = update;
  const double by_first = rate / (1 - pow(s->beta1, t)), by_second = 1 / (1 - pow(s->beta2, t));
  const int of_steps = s->optimizer == MOMENTUM_OF_STEPS;
  return (Rates){1 / (REAL)count, rate, of_steps ? 1 : rate, of_steps ? rate : 1, s->momentum, s->beta1, 1 - s->beta1,
                 s->beta2, 1 - s->beta2, s->epsilon * (s->optimizer == ADAM_EPSILON_HAT ? sqrt(by_second) : 1),
                 rate * s->decay, biases ? 0 : l2_of(s, count), by_first, by_second};
}
static double step(const Replay *r, Rates c, REAL *restrict g, int64_t from, int64_t n) {
  const Setup *s = &r->setup;
  REAL *restrict w = (REAL *)s->theta + from, *restrict v = s->first, *restrict u = s->second;
  double squares = 0;
  if (c.l2 != 0)
    for (int64_t i = 0; i < n; i++) squares += (double)w[i] * w[i];
  if (v) v += from;
  if (u) u += from;
  switch (s->optimizer) {
    case DESCENT:
      for (int64_t i = 0; i < n; i++) {
        g[i] = g[i] * c.mean + c.l2 * w[i];
        w[i] -= c.rate * g[i];
      }
      break;
    case MOMENTUM:
    case MOMENTUM_OF_STEPS:
      for (int64_t i = 0; i < n; i++) {
        g[i] = g[i] * c.mean + c.l2 * w[i];
        v[i] = c.momentum * v[i] + c.gathered * g[i];
        w[i] -= c.taken * (s->nesterov ? c.gathered * g[i] + c.momentum * v[i] : v[i]);
      }
      break;
    case ADAM:
    case ADAM_EPSILON_HAT:
      for (int64_t i = 0; i < n; i++) {
        g[i] = g[i] * c.mean + c.l2 * w[i];
        v[i] = c.beta1 * v[i] + c.new1 * g[i];
        u[i] = c.beta2 * u[i] + c.new2 * g[i] * g[i];
        w[i] -= c.decay * w[i];
        w[i] -= c.by_first * v[i] / ((REAL)sqrt(u[i] * c.by_second) + c.epsilon);
      }
      break;
  }
  return squares;
}
// Where slice [j0, j1) of a layer begins among the parameters, with the biases if it is the first one, and its numbers.
static int64_t begin_of_slice(const Replay *r, int64_t layer, int64_t j0) {
  return r->offsets[layer - 1] + (j0 ? 1 + j0 : 0) * r->lds[layer];
}
static int64_t numbers_of_slice(const Replay *r, int64_t layer, int64_t j0, int64_t j1) {
  return (j1 - j0 + !j0) * r->lds[layer];
}
// The update of a slice by its gradient, and half the sum of squares of its weights.
static double update_slice(const Replay *r, int64_t layer, int64_t j0, int64_t j1, REAL *g, double count, int64_t update) {
  const int64_t biases = j0 ? 0 : r->lds[layer], at = begin_of_slice(r, layer, j0);
  if (biases) step(r, rates(r, count, update, 1), g, at, biases);
  return step(r, rates(r, count, update, 0), g + biases, at + biases, (j1 - j0) * r->lds[layer]) / 2;
}

// ------------------------------------------------------------------------------------------------------- an update

static void take_rows(const Replay *r, Frame *f, int64_t first, int64_t from, int64_t to) {
  const Setup *s = &r->setup;
  const int64_t d = r->sizes[0], words = (d + 63) / 64, size = s->bytes ? 1 : sizeof(REAL);
  const int64_t wide = s->labels ? sizeof(int32_t) : r->sizes[s->layers] * sizeof(REAL);
  const Piece *piece = r->piece;
  for (int64_t i = from; i < to; i++) {
    const int64_t row = piece->order ? piece->order[first + i] : first + i;
    f->samples[i] = row;
    if (s->starts) f->rows[i] = r->stored + row;
    else if (piece->X) f->rows[i] = (const char *)piece->X + (first + i - piece->first) * d * size;
    else f->rows[i] = (const char *)s->X + row * d * size;
    if (s->sparse && s->marked) memcpy(f->marks + i * words, r->masks + row * words, words * 8);
    else if (s->sparse) mark(s, f->rows[i], f->marks + i * words);
    if (s->y) memcpy((char *)f->y + i * wide, (const char *)s->y + row * wide, wide);
    if (s->weights) f->weights[i] = ((const REAL *)s->weights)[row];
  }
}
// Parts of the rows of a batch: their number does not depend on that of the threads, as the bits of BLAS depend on it.
static int64_t parts_of(const Setup *s, int64_t m) {
  const int64_t parts = least(32, m / (s->sparse ? 32 : 64));
  return parts > 1 ? parts : 1 + (s->sparse && m >= 16);
}

typedef struct {
  int64_t rows, parts, number;  // the optimizer's number of it
  int64_t first;                // row of the epoch
  double count;                 // what sums are divided by: the rows, or their weights
  int descends;                 // whether the gradient is added to the parameters at once, scaled
  int shows;                    // whether somebody may look at the gradient afterwards
} Update;
static double count_of(const Replay *r, int64_t first, int64_t m) {
  const REAL *weights = r->setup.weights;
  double sum = 0;
  for (int64_t i = first; weights && i < first + m; i++) sum += weights[r->piece->order ? r->piece->order[i] : i];
  return weights ? sum : m;
}
static Update update_of(const Replay *r, int64_t u) {
  const Setup *s = &r->setup;
  const Piece *piece = r->piece;
  const int64_t first = u * s->batch, m = least(s->batch, s->rows - first);
  const int plain = s->optimizer == DESCENT && s->l2 == 0 && s->l2_sum == 0 && piece->rate == piece->bias_rate;
  return (Update){m, parts_of(s, m), piece->done + u - piece->update + 1, first, count_of(r, first, m),
                  plain && !(piece->keep_gradient && u + 1 == piece->last), u + 1 == piece->last};
}

static int64_t share(const Replay *r, int64_t count, int64_t rank) { return count * rank / r->setup.ranks; }
static int64_t row_of_part(const Update *u, int64_t p) {
  return p == u->parts ? u->rows : u->rows * p / u->parts / 2 * 2;
}

// The parts and slices that other threads have not taken. A rank computes its own parts, and takes the rows of all.
static void do_parts(Replay *r, Own *own, const Update *u) {
  const REAL scale = u->descends ? -r->piece->rate / u->count : 1;
  const int64_t first = share(r, u->parts, r->setup.rank), end = share(r, u->parts, r->setup.rank + 1);
  for (int64_t taken; (taken = atomic_fetch_add(&r->next_part, 1)) < u->parts;) {
    const int64_t p = (first + taken) % u->parts, from = row_of_part(u, p), to = row_of_part(u, p + 1);
    take_rows(r, &r->batch, u->first, from, to);
    if (first <= p && p < end) r->losses[p] = on_rows(r, own, &r->batch, from, to, scale);
    else features(r, &r->batch, r->program, from, to);
  }
}
// The gradient of a slice is made in the cache if nobody looks at it; return where it is.
static REAL *add_slice(Replay *r, Own *own, const Update *u, int64_t l, int64_t j0, int64_t j1) {
  const int64_t at = begin_of_slice(r, l, j0);
  REAL *into = u->descends ? (REAL *)r->setup.theta + at : u->shows ? (REAL *)r->setup.gradient + at : own->gradient;
  if (!u->descends) memset(into, 0, numbers_of_slice(r, l, j0, j1) * sizeof(REAL));
  for (int64_t q = 0; q < r->setup.instructions; q++) {
    const Instruction *i = r->program + q;
    if (i->operation >= WEIGHT_GRADIENT && i->layer == l) add_gradient(r, own, &r->batch, i, u->rows, j0, j1, into);
  }
  return into;
}
static REAL *add_sums(Replay *r, int64_t l, int64_t j0, int64_t j1) {
  const int64_t at = begin_of_slice(r, l, j0), end = at + numbers_of_slice(r, l, j0, j1);
  REAL *g = r->setup.gradient;
  for (int64_t i = at; i < end; i++) {
    REAL total = r->sums[0][i];
    for (int64_t q = 1; q < r->setup.groups; q++) total += r->sums[q][i];
    g[i] = total;
  }
  return g + at;
}
static void do_slices(Replay *r, Own *own, const Update *u) {
  const int64_t end = r->slice_of_rank[r->setup.rank + 1];
  int64_t slice = 0, mine = atomic_fetch_add(&r->next_slice, 1);
  for (int64_t l = 1; l <= r->setup.layers; l++) {
    const int64_t n = r->sizes[l - 1], slices = slices_of(n);
    for (int64_t p = 0; p < slices; p++, slice++) {
      if (slice != mine || slice >= end) continue;
      const int64_t j0 = cut(n, p, slices), j1 = cut(n, p + 1, slices);
      REAL *g = r->setup.groups ? add_sums(r, l, j0, j1) : add_slice(r, own, u, l, j0, j1);
      r->penalties[slice] = u->descends ? 0 : update_slice(r, l, j0, j1, g, u->count, u->number);
      derive(r, l, p);
      mine = atomic_fetch_add(&r->next_slice, 1);
    }
  }
}
static void add_to_loss(Replay *r, const double *sums, int64_t count, double factor) {
  for (int64_t p = 0; p < count; p++) r->piece->loss += sums[p] * factor;
}
static void add_losses(Replay *r, const Update *u, int64_t parts) {
  add_to_loss(r, r->losses, parts, u->rows / u->count);
}
static void add_penalties(Replay *r, const Update *u) {
  add_to_loss(r, r->penalties, r->slices, l2_of(&r->setup, u->count) * u->rows);
}

// ---------------------------------------------------------------------------------------------- between the ranks

// Numbers [from, to) of an array.
static void add_message(Replay *r, void *array, int64_t size, int64_t from, int64_t to, int64_t sender,
                        int64_t receiver) {
  if (from == to) return;
  r->messages[r->pending++] = (Message){(char *)array + from * size, (to - from) * size, sender, receiver};
}
static void add_shares(Replay *r, void *vector) {
  const int64_t *cuts = r->number_of_rank;
  for (int64_t q = 0; vector && q < r->setup.ranks; q++)
    add_message(r, vector, sizeof(REAL), cuts[q], cuts[q + 1], q, -1);
}
// After a failure nothing is exchanged any more: what is computed then is not used. The time of the others is not ours.
static void exchange(Replay *r, int64_t key) {
  const double before = seconds();
  if (!r->failed) r->failed = r->setup.exchange(key, r->messages, r->pending);
  r->pace.reached += seconds() - before;
  r->pending = 0;
}
// The rows of mini-batches that gradients are computed from, and the parts' losses.
static void send_rows(Replay *r, const Update *u) {
  const Setup *s = &r->setup;
  if (s->ranks == 1) return;
  for (int64_t q = 0; q < s->ranks; q++) {
    const int64_t first = share(r, u->parts, q), end = share(r, u->parts, q + 1);
    const int64_t from = row_of_part(u, first), to = row_of_part(u, end);
    add_message(r, r->losses, sizeof(double), first, end, q, -1);
    for (int64_t b = 0; b < s->buffers; b++)
      if (r->sent[b]) add_message(r, r->batch.buffers[b], r->widths[b] * sizeof(REAL), from, to, q, -1);
  }
  exchange(r, u->rows);
}
// The sums of the groups, to whoever has the slices, and their losses.
static void send_sums(Replay *r, const Update *u) {
  const Setup *s = &r->setup;
  const int64_t *cuts = r->number_of_rank;
  (void)u;
  for (int64_t q = 0; q < s->ranks; q++) {
    const int64_t first = share(r, s->groups, q), end = share(r, s->groups, q + 1);
    add_message(r, r->losses, sizeof(double), first, end, q, -1);
    for (int64_t g = first; g < end; g++)
      for (int64_t to = 0; to < s->ranks; to++)
        if (to != q) add_message(r, r->sums[g], sizeof(REAL), cuts[to], cuts[to + 1], q, to);
  }
  exchange(r, SUMS);
}
// What has become of the slices.
static void send_parameters(Replay *r, const Update *u) {
  const Setup *s = &r->setup;
  if (s->ranks == 1) return;
  add_shares(r, s->theta);
  for (int64_t q = 0; l2_of(s, u->count) != 0 && q < s->ranks; q++)
    add_message(r, r->penalties, sizeof(double), r->slice_of_rank[q], r->slice_of_rank[q + 1], q, -1);
  exchange(r, PARAMETERS);
}

// What others have made of their slices.
static void derive_others(Replay *r, int64_t t, int64_t threads) {
  const int64_t *cuts = r->slice_of_rank + r->setup.rank;
  if (r->setup.ranks > 1) derive_slices(r, cuts[0], cuts[1], t, threads);
}
static void meet_ranks(Replay *r, int64_t t, void (*send)(Replay *, const Update *), const Update *u) {
  if (r->setup.ranks == 1) return;
  if (t == 0) send(r, u);
  meet(r);
}

// Both halves of an update; thread 0 has the counters begin anew, and reads sums, while nobody takes or writes them.
static void share_update(Replay *r, int64_t t, int64_t u) {
  const Update update = update_of(r, u);
  do_parts(r, r->own + t, &update);
  if (t == 0) r->next_slice = r->slice_of_rank[r->setup.rank];
  meet(r);
  meet_ranks(r, t, send_rows, &update);
  if (t == 0) {
    r->next_part = 0;
    add_losses(r, &update, update.parts);
  }
  do_slices(r, r->own + t, &update);
  if (t == 0 && update.rows == r->setup.batch) r->pace.until = u + 1 + alone_after(&r->pace, seconds());
  meet(r);
  if (r->setup.ranks > 1) {
    meet_ranks(r, t, send_parameters, &update);
    derive_others(r, t, r->crew);
    meet(r);
  }
  if (t == 0) add_penalties(r, &update);
}
static void do_update(Replay *r, int64_t u) {
  const Update update = update_of(r, u);
  r->next_part = 0;
  r->next_slice = r->slice_of_rank[r->setup.rank];
  do_parts(r, r->own, &update);
  send_rows(r, &update);
  add_losses(r, &update, update.parts);
  do_slices(r, r->own, &update);
  send_parameters(r, &update);
  derive_others(r, 0, 1);
  add_penalties(r, &update);
}
// All threads read `until` after they have met and before they meet again, and it is written in between.
static void mini_batches(Replay *r, int64_t t) {
  const int64_t last = r->piece->last;
  for (int64_t u = r->piece->update; u < last;) {
    const int64_t until = r->crew == 1 ? last : least(r->pace.until, last);
    if (u >= until) {
      share_update(r, t, u++);
      continue;
    }
    for (; t == 0 && u < until; u++) do_update(r, u);
    if (t == 0) {
      r->next_part = 0;
      r->pace.reached = seconds();
    }
    u = until;
    meet(r);
  }
}

static void full_batch(Replay *r, int64_t t) {
  const Setup *s = &r->setup;
  Own *own = r->own + t;
  Frame *f = &own->frame;
  const int64_t size = r->offsets[s->layers], shards = (s->rows + s->shard - 1) / s->shard;
  const int64_t begin = r->piece->update * s->groups, end = least(shards, r->piece->last * s->groups);
  for (int64_t g; (g = atomic_fetch_add(&r->next_part, 1)) < share(r, s->groups, s->rank + 1);) {
    REAL *sum = r->sums[g];
    if (!begin) memset(sum, 0, size * sizeof(REAL)), r->losses[g] = 0;
    for (int64_t i = begin + g; i < end; i += s->groups) {
      const int64_t first = i * s->shard, m = least(s->shard, s->rows - first);
      take_rows(r, f, first, 0, m);
      r->losses[g] += on_rows(r, own, f, 0, m, 1);
      for (int64_t q = 0; q < s->instructions; q++) {
        const Instruction *o = r->program + q;
        if (o->operation >= WEIGHT_GRADIENT)
          add_gradient(r, own, f, o, m, 0, r->sizes[o->layer - 1], sum + r->offsets[o->layer - 1]);
      }
    }
  }
  if (end < shards) return;
  meet(r);
  const Update update = {s->rows, 0, r->piece->done + 1, 0, count_of(r, 0, s->rows), 0, 1};
  meet_ranks(r, t, send_sums, &update);
  do_slices(r, own, &update);
  meet(r);
  if (t) return;
  send_parameters(r, &update);
  add_losses(r, &update, s->groups);
  add_penalties(r, &update);
}

// Mark the numbers of a frame's rows that are not zero, if they are so few that skipping the others pays.
static void mark_if_few(const Setup *s, Frame *f, int64_t m) {
  const int64_t words = (s->sizes[0] + 63) / 64, apart = (m + LOOKED_AT - 1) / LOOKED_AT;
  int64_t used = 0, looked_at = 0;
  for (int64_t i = 0; i < m; i += apart, looked_at++) {
    mark(s, f->rows[i], f->marks);
    for (int64_t w = 0; w < words; w++) used += __builtin_popcountll(f->marks[w]);
  }
  f->skips = used <= SPARSE * looked_at * s->sizes[0];
  for (int64_t i = 0; f->skips && i < m; i++) mark(s, f->rows[i], f->marks + i * words);
}
// The outputs of the shards that other threads have not taken.
static void predict(Replay *r, int64_t t) {
  const Setup *s = &r->setup;
  const Unseen *u = r->unseen;
  Frame *f = &r->own[t].frame;
  const int64_t shards = (u->rows + u->shard - 1) / u->shard, last = r->program[s->instructions - 1].to;
  const int64_t k = r->sizes[s->layers], ld = r->widths[last];
  for (int64_t i; (i = atomic_fetch_add(&r->next_part, 1)) < shards;) {
    const int64_t first = i * u->shard, m = least(u->shard, u->rows - first);
    take_rows(r, f, first, 0, m);
    mark_if_few(s, f, m);
    on_rows(r, r->own + t, f, 0, m, 1);
    for (int64_t q = 0; q < m; q++)
      memcpy(u->outputs + (first + q) * k, f->buffers[last] + q * ld, k * sizeof(REAL));
  }
}

typedef struct {
  Replay *replay;
  int64_t thread;
} Job;
static void *work(void *argument) {
  const Job *job = argument;
  while (!job->replay->crew) sched_yield();
  set_mode(mode() | ZERO_FOR_SUBNORMALS);
  (job->replay->unseen ? predict : job->replay->setup.groups ? full_batch : mini_batches)(job->replay, job->thread);
  return 0;
}

// ------------------------------------------------------------------------------------------------------ the library

#define NAME_(name, suffix) mlp_xp_##name##_##suffix
#define NAME(name, suffix) NAME_(name, suffix)

static int predicts(const Setup *s) { return !s->y; }
static int frame_is_made(Replay *r, Frame *f) {
  const Setup *s = &r->setup;
  f->skips = s->sparse;
  int made = (f->buffers = new (s->buffers * sizeof(REAL *))) && (f->rows = new (r->capacity * sizeof(void *))) &&
             (f->samples = new (r->capacity * sizeof(int64_t))) &&
             (f->weights = new (r->capacity * sizeof(REAL))) &&
             (f->y = new (r->capacity * (8 + r->sizes[s->layers] * sizeof(REAL))));
  if (made && (s->sparse || predicts(s)))
    made = (f->marks = new (r->capacity * ((r->sizes[0] + 63) / 64) * 8)) != 0;
  for (int64_t b = 0; made && b < s->buffers; b++)
    made = (f->buffers[b] = new (r->capacity * r->widths[b] * sizeof(REAL))) != 0;
  if (made) use_copies(r, f);
  return made;
}
static void free_frame(Replay *r, Frame *f) {
  for (int64_t b = 0; f->buffers && b < r->setup.buffers; b++) free(f->buffers[b]);
  free(f->buffers);
  free(f->rows);
  free(f->samples);
  free(f->marks);
  free(f->weights);
  free(f->y);
}
void NAME(free, SUFFIX)(Replay *r) {
  if (!r) return;
  free_frame(r, &r->batch);
  for (int64_t t = 0; r->own && t < r->setup.threads; t++) {
    free_frame(r, &r->own[t].frame);
    free(r->own[t].sums);
    free(r->own[t].values);
    free(r->own[t].by_column);
    free(r->own[t].gradient);
  }
  for (int64_t g = 0; r->sums && g < r->setup.groups; g++) free(r->sums[g]);
  for (int64_t l = 2; r->transposed && l <= r->setup.layers; l++) free(r->transposed[l]);
  for (int64_t l = 1; r->copies && l <= r->setup.layers; l++) free(r->copies[l]);
  free(r->transposed), free(r->shifts), free(r->own), free(r->sums), free(r->masks), free(r->stored), free(r->before);
  free(r->losses), free(r->penalties), free(r->program);
  free(r->slice_of_rank), free(r->number_of_rank), free(r->sent), free(r->messages);
  free(r->sizes), free(r->lds), free(r->offsets), free(r->widths), free(r->parameters), free(r->copies);
  pthread_mutex_destroy(&r->lock);
  pthread_cond_destroy(&r->phase_is_over);
  free(r);
}

// Each rank has slices that follow one another, and about as many parameters as the others. Return the numbers of the
// largest slice.
static int64_t deal_slices(Replay *r) {
  const int64_t L = r->setup.layers, ranks = r->setup.ranks, all = r->offsets[L];
  int64_t rank = 0, largest = 0;
  for (int64_t l = 1; l <= L; l++) {
    const int64_t n = r->sizes[l - 1], slices = slices_of(n);
    for (int64_t p = 0; p < slices; p++, r->slices++) {
      const int64_t j0 = cut(n, p, slices), j1 = cut(n, p + 1, slices), numbers = numbers_of_slice(r, l, j0, j1);
      const int64_t begin = begin_of_slice(r, l, j0), end = begin + numbers;
      largest = largest < numbers ? numbers : largest;
      for (; rank <= (begin + end) / 2 * ranks / all; rank++)
        r->slice_of_rank[rank] = r->slices, r->number_of_rank[rank] = begin;
    }
  }
  for (; rank <= ranks; rank++) r->slice_of_rank[rank] = r->slices, r->number_of_rank[rank] = all;
  return largest;
}
// Predictions read the parameters where they lie. A layer whose last vectors would reach past all parameters is copied to
// where there is room. Return whether there is memory for the copies.
static int copies_are_made(Replay *r) {
  int64_t behind = 0;
  for (int64_t l = r->setup.layers; l >= 1; l--) {
    const int64_t d = r->sizes[l - 1], n = r->sizes[l];
    r->lds[l] = n;
    if (behind < ROW && !(r->copies[l] = new (((1 + d) * n + ROW) * sizeof(REAL)))) return 0;
    behind += (1 + d) * n;
  }
  return 1;
}
// Return what is needed to run, or null if there is not enough memory.
Replay *NAME(new, SUFFIX)(const Setup *setup) {
  Replay *r = new (sizeof *r);
  if (!r) return 0;
  r->setup = *setup;
  pthread_mutex_init(&r->lock, 0);
  pthread_cond_init(&r->phase_is_over, 0);
  Setup *s = &r->setup;
  const int64_t L = s->layers, d = s->sizes[0];
  pthread_once(&tables_are_filled, fill_tables);
  r->sizes = new ((L + 1) * 8), r->lds = new ((L + 1) * 8), r->offsets = new ((L + 1) * 8);
  r->widths = new (s->buffers * 8), r->program = new (s->instructions * sizeof(Instruction));
  r->losses = new ((32 + s->groups) * 8), r->penalties = new (L * SLICES * 8);
  r->parameters = new ((L + 1) * sizeof(REAL *)), r->copies = new ((L + 1) * sizeof(REAL *));
  r->transposed = new ((L + 1) * sizeof(REAL *)), r->sent = new (s->buffers * 8);
  r->slice_of_rank = new ((s->ranks + 1) * 8), r->number_of_rank = new ((s->ranks + 1) * 8);
  r->messages = new (s->ranks * (s->buffers + s->groups + 3) * sizeof(Message));
  r->own = new (s->threads * sizeof(Own)), r->sums = new ((s->groups + 1) * sizeof(REAL *));
  int made = r->sizes && r->lds && r->offsets && r->widths && r->program && r->losses && r->penalties &&
             r->parameters && r->copies && r->transposed && r->own && r->sums && r->sent && r->slice_of_rank &&
             r->number_of_rank && r->messages;
  if (!made) goto failed;
  memcpy(r->sizes, s->sizes, (L + 1) * 8);
  memcpy(r->program, s->program, s->instructions * sizeof(Instruction));
  s->sizes = r->sizes;
  int64_t widest = 0;
  for (int64_t l = 0; l <= L; l++) {
    r->lds[l] = padded(r->sizes[l]);
    if (l) r->offsets[l] = r->offsets[l - 1] + (1 + r->sizes[l - 1]) * r->lds[l];
    if (l && s->theta) r->parameters[l] = (const REAL *)s->theta + r->offsets[l - 1];
    widest = widest < r->lds[l] ? r->lds[l] : widest;
  }
  const int64_t largest = deal_slices(r);
  for (int64_t q = 0; q < s->instructions; q++) {
    const Instruction *i = r->program + q;
    if (i->operation >= WEIGHT_GRADIENT) r->sent[i->from] = r->sent[i->with] = 1;
  }
  r->sent[0] = 0;  // every rank takes all features itself
  for (int64_t b = 0; b < s->buffers; b++) r->widths[b] = padded(s->widths[b]);
  if (s->sparse) r->widths[0] = s->starts ? 0 : padded((d * size_of_number(s) + sizeof(REAL) - 1) / sizeof(REAL));
  const int of_shards = s->groups || predicts(s);  // frames: one for each thread
  if (!predicts(s) && (s->groups ? s->rows : s->batch) * r->offsets[L] < WORTH_SHARING) s->threads = 1;
  r->capacity = predicts(s) ? s->shard : up(least(of_shards ? s->shard : s->batch, s->rows), 64);
  if (!of_shards) made = frame_is_made(r, &r->batch);
  const int64_t words = s->sparse ? least(s->words, ((d > r->capacity ? d : r->capacity) + 63) / 64) : 0;
  for (int64_t t = 0; made && t < s->threads; t++) {
    Own *own = r->own + t;
    if (of_shards) made = frame_is_made(r, &own->frame);
    made = made && (own->sums = new (widest * sizeof(REAL))) && (own->values = new (64 * words * sizeof(REAL))) &&
           (own->by_column = new (COLUMNS * words * 8));
    if (!of_shards) made = made && (own->gradient = new (largest * sizeof(REAL)));
  }
  const int64_t rows = s->groups ? s->shard : s->batch / parts_of(s, s->batch);  // of a product
  for (int64_t l = 2; made && !predicts(s) && l <= L; l++)
    if (r->sizes[l] * r->sizes[l - 1] <= TRANSPOSED_AT_MOST && multiplies_by_transposed(r, l, rows))
      made = (r->transposed[l] = new (r->sizes[l] * r->lds[l - 1] * sizeof(REAL))) != 0;
  for (int64_t g = 0; made && g < s->groups; g++) made = (r->sums[g] = new (r->offsets[L] * sizeof(REAL))) != 0;
  if (made && s->sparse && s->background)
    made = (r->shifts = new (slices_of(d) * r->lds[1] * sizeof(REAL))) != 0;
  if (made && s->sparse && s->marked) {
    const int64_t words = (d + 63) / 64, size = s->bytes ? 1 : sizeof(REAL);
    made = (r->masks = new (s->rows * words * 8)) != 0;
    if (made && s->starts)
      made = (r->stored = new (s->rows * sizeof(Stored))) && (r->before = new (s->rows * words * sizeof(int32_t)));
    for (int64_t i = 0; made && i < s->rows; i++) {
      if (s->starts) store(s, i, r->masks + i * words, r->before + i * words, r->stored + i);
      else mark(s, (const char *)s->X + i * d * size, r->masks + i * words);
    }
  }
  if (made && predicts(s)) made = copies_are_made(r);
  if (made) return r;
failed:
  NAME(free, SUFFIX)(r);
  return 0;
}

// Let so many threads work, of which the caller is one.
static void work_together(Replay *r, int64_t threads) {
  pthread_t ids[MOST_THREADS];
  Job jobs[MOST_THREADS];
  const Mode before = mode();
  set_mode(before | ZERO_FOR_SUBNORMALS);
  derive_slices(r, 0, 0, 0, 1);
  r->crew = 0;
  long crew = 1;
  for (jobs[0] = (Job){r, 0}; crew < threads; crew++) {
    jobs[crew] = (Job){r, crew};
    if (pthread_create(ids + crew, 0, work, jobs + crew)) break;
  }
  r->pace.reached = seconds();
  r->crew = crew;
  work(jobs);
  for (long t = 1; t < crew; t++) pthread_join(ids[t], 0);
  set_mode(before);
}
void NAME(run, SUFFIX)(Replay *r, Piece *piece) {
  const int64_t count = piece->last - piece->update;
  r->piece = piece;
  r->next_part = r->setup.groups ? share(r, r->setup.groups, r->setup.rank) : 0;
  r->next_slice = r->slice_of_rank[r->setup.rank];
  r->pace.until = piece->update + r->pace.alone;
  work_together(r, !r->setup.groups && r->pace.alone >= count ? 1 : r->setup.threads);
  r->pace.alone = r->pace.until > piece->last ? r->pace.until - piece->last : 0;
}

// The outputs (rows, sizes[L]) of rows X, so many at a time, with parameters whose rows lie one behind another.
void NAME(predict, SUFFIX)(Replay *r, const void *X, int64_t rows, int64_t shard, const void *theta, void *outputs) {
  const REAL *layer = theta;
  for (int64_t l = 1; l <= r->setup.layers; l++) {
    const int64_t numbers = (1 + r->sizes[l - 1]) * r->sizes[l];
    r->parameters[l] = r->copies[l] ? memcpy(r->copies[l], layer, numbers * sizeof(REAL)) : layer;
    layer += numbers;
  }
  Piece piece = {.X = X};
  const Unseen unseen = {rows, shard, outputs};
  r->piece = &piece, r->unseen = &unseen, r->next_part = 0;
  work_together(r, least(r->setup.threads, (rows + shard - 1) / shard));
  r->unseen = 0;
}

// Let each rank have the gradient and what the optimizer keeps of all slices: after `run` it has them of its own.
void NAME(gather, SUFFIX)(Replay *r) {
  const Setup *s = &r->setup;
  void *vectors[] = {s->gradient, s->first, s->second};
  for (int v = 0; v < 3; v++) add_shares(r, vectors[v]);
  exchange(r, STATE);
}

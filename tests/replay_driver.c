// Trains random networks with the library alone, without Python: for sanitizers, and for what fails in turn.
//
// usage: driver networks COUNT | ranks COUNT | predictions COUNT | engines | memory | threads | pace
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static atomic_long allocations_left, threads_left, threads_started;
static void *limited_alloc(size_t boundary, size_t bytes) {
  return allocations_left-- > 0 ? aligned_alloc(boundary, bytes) : 0;
}
static int limited_create(pthread_t *id, const pthread_attr_t *attributes, void *(*f)(void *), void *argument) {
  threads_started++;
  return threads_left-- > 0 ? pthread_create(id, attributes, f, argument) : 11;
}
// Each look at the clock is `tick` after the one before, and one in 16 is a second: what threads had to wait for a core.
static atomic_long tick = 1000, waits = 1;
static int unsteady_clock(clockid_t id, struct timespec *t) {
  static _Thread_local uint64_t state, now;
  (void)id;
  state = state * 6364136223846793005u + 1442695040888963407u;
  now += waits && state >> 60 == 0 ? 1000000000 : tick;
  *t = (struct timespec){now / 1000000000, now % 1000000000};
  return 0;
}
#define clock_gettime unsteady_clock
#define aligned_alloc limited_alloc
#define pthread_create limited_create
#include "replay.c"

#define FEW 100000000
static uint64_t state = 1;
static double uniform(void) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (state >> 11) * 0x1p-53;
}
static int64_t between(int64_t low, int64_t high) { return low + (int64_t)(uniform() * (high - low + 1)); }

static void gemm(int order, int trans_a, int trans_b, int64_t m, int64_t n, int64_t k, REAL alpha, const REAL *A,
                 int64_t lda, const REAL *B, int64_t ldb, REAL beta, REAL *C, int64_t ldc) {
  if (order != ROW_MAJOR || alpha != 1 || beta != 1) abort();
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++)
      for (int64_t p = 0; p < k; p++)
        C[i * ldc + j] += A[trans_a == PLAIN ? i * lda + p : p * lda + i] * B[trans_b == PLAIN ? p * ldb + j : j * ldb + p];
}

enum { MOST_LAYERS = 6 };
typedef struct {  // a network and its data, each array of exactly the size that the library may count on
  Setup setup;
  int64_t sizes[MOST_LAYERS + 1], widths[5 * MOST_LAYERS + 3];
  Instruction program[8 * MOST_LAYERS + 3];
  uint32_t *thresholds, *keys;  // of dropout
  double *factors;
  int64_t count;  // of parameters
  int32_t *order;
  char *in_order;  // rows, or null
  REAL *begin, *vectors[4];
} Case;

static void *exactly(int64_t bytes) {
  void *p = malloc(bytes);
  if (!p) abort();
  return memset(p, 0, bytes);
}
static void draw_dropout(Case *c) {
  const int64_t layers = c->setup.layers + 1;
  c->thresholds = exactly(layers * sizeof(uint32_t)), c->keys = exactly(2 * layers * sizeof(uint32_t));
  c->factors = exactly(layers * sizeof(double));
  for (int64_t l = 0; l < layers; l++) {
    const double rate = between(0, 1) * uniform();
    c->thresholds[l] = rate * 0x1p32, c->factors[l] = 1 / (1 - rate);
    c->keys[2 * l] = uniform() * 0x1p32, c->keys[2 * l + 1] = uniform() * 0x1p32;
  }
  c->setup.thresholds = c->thresholds, c->setup.factors = c->factors;
}
static int64_t buffer(Case *c, int64_t width) {
  c->widths[c->setup.buffers] = width;
  return c->setup.buffers++;
}
static void add(Case *c, int operation, int function, int layer, int from, int with, int to) {
  c->program[c->setup.instructions++] = (Instruction){operation, function, layer, from, with, to};
}
// What the text of forward and backward does.
static void record(Case *c) {
  const int64_t L = c->setup.layers;
  int activations[MOST_LAYERS + 1] = {0}, A[MOST_LAYERS + 1], H[MOST_LAYERS + 1];
  A[0] = H[0] = buffer(c, c->sizes[0]);
  add(c, FEATURES, 0, 0, 0, 0, A[0]);
  for (int64_t l = 1; l <= L; l++) {
    A[l] = buffer(c, c->sizes[l]);
    activations[l] = l < L ? between(IDENTITY, LEAKY_RELU) : IDENTITY;
    add(c, AFFINE, 0, l, H[l - 1], 0, A[l]);
    add(c, ACTIVATE, activations[l], 0, 0, 0, A[l]);
    H[l] = l < L && c->thresholds[l] ? buffer(c, c->sizes[l]) : A[l];
    if (H[l] != A[l]) add(c, DROPOUT, 0, l, A[l], 0, H[l]);
  }
  const int of_labels[] = {SOFTMAX_CROSS_ENTROPY, SOFTMAX_LOG_LOSS};
  const int of_numbers[] = {SIGMOID_CROSS_ENTROPY, HALF_SQUARED_ERROR,      PERCEPTRON_CRITERION,
                            SIGMOID_LOG_LOSS,      HALF_MEAN_SQUARED_ERROR, POISSON_DEVIANCE,
                            ABSOLUTE_ERROR,        HUBER};
  const int loss = c->setup.labels ? of_labels[between(0, 1)] : of_numbers[between(0, 7)];
  int d = buffer(c, c->sizes[L]);
  add(c, LOSS, loss, 0, A[L], 0, d);
  for (int64_t l = L; l >= 1; l--) {
    add(c, ACTIVATION_GRADIENT, activations[l], 0, 0, A[l], d);
    add(c, WEIGHT_GRADIENT, 0, l, d, H[l - 1], 0);
    add(c, BIAS_GRADIENT, 0, l, d, 0, 0);
    if (l == 1) break;
    const int before = buffer(c, c->sizes[l - 1]);
    add(c, INPUT_GRADIENT, 0, l, d, 0, before);
    d = H[l - 1] == A[l - 1] ? before : buffer(c, c->sizes[l - 1]);
    if (d != before) add(c, DROPOUT, 0, l - 1, before, 0, d);
  }
}
// Keep only the numbers that are not zero.
static void compress(Case *c) {
  Setup *s = &c->setup;
  const int64_t n = s->rows, d = c->sizes[0];
  const REAL *X = s->X;
  int64_t *starts = exactly((n + 1) * sizeof(int64_t)), count = 0;
  for (int64_t i = 0; i < n * d; i++) starts[i / d + 1] = count += X[i] != 0;
  for (int64_t i = 1; i <= n; i++) starts[i] = starts[i] < starts[i - 1] ? starts[i - 1] : starts[i];
  int32_t *columns = exactly(count * sizeof(int32_t));
  REAL *values = exactly(count * sizeof(REAL));
  for (int64_t i = 0, at = 0; i < n * d; i++)
    if (X[i] != 0) columns[at] = i % d, values[at++] = X[i];
  free((void *)X);
  s->X = values, s->starts = starts, s->columns = columns;
}
// Let the rows come with each piece, in the order of the epoch.
static void put_in_order(Case *c) {
  Setup *s = &c->setup;
  const int64_t size = c->sizes[0] * (s->bytes ? 1 : sizeof(REAL));
  c->in_order = exactly(s->rows * size);
  for (int64_t i = 0; i < s->rows; i++)
    memcpy(c->in_order + i * size, (const char *)s->X + (s->groups ? i : c->order[i]) * size, size);
  free((void *)s->X);
  s->X = 0;
}
static void make_data(Case *c) {
  Setup *s = &c->setup;
  const int64_t n = s->rows, d = c->sizes[0], k = c->sizes[s->layers];
  const double used = uniform();
  uint8_t *X = exactly(n * d * (s->bytes ? 1 : sizeof(REAL)));
  for (int64_t i = 0; i < n * d; i++) {
    if (uniform() > used) continue;
    if (s->bytes) X[i] = between(0, 255);
    else ((REAL *)X)[i] = uniform() - 0.5;
  }
  void *y = exactly(s->labels ? n * sizeof(int32_t) : n * k * sizeof(REAL));
  for (int64_t i = 0; i < (s->labels ? n : n * k); i++) {
    if (s->labels) ((int32_t *)y)[i] = between(0, k - 1);
    else ((REAL *)y)[i] = between(0, 1);
  }
  c->order = exactly(n * sizeof(int32_t));
  for (int64_t i = 0; i < n; i++) c->order[i] = n - 1 - i;
  s->X = X, s->y = y;
  if (s->sparse && !s->bytes && between(0, 1)) compress(c);
  if (!s->bytes && !s->starts && between(0, 1)) {
    REAL *background = exactly(d * sizeof(REAL));
    for (int64_t j = 0; j < d; j++) background[j] = between(0, 1) * uniform();
    s->background = background;
  }
  s->marked = s->starts || between(0, 1), s->words = between(1, 4);
  if (!s->marked && between(0, 1)) put_in_order(c);
  if (between(0, 1)) return;
  REAL *weights = exactly(n * sizeof(REAL));
  for (int64_t i = 0; i < n; i++) weights[i] = uniform() + 0.1;
  s->weights = weights;
}
static void make_parameters(Case *c) {
  Setup *s = &c->setup;
  for (int64_t l = 1; l <= s->layers; l++) c->count += (1 + c->sizes[l - 1]) * padded(c->sizes[l]);
  for (int v = 0; v < 4; v++) c->vectors[v] = exactly(c->count * sizeof(REAL));
  c->begin = exactly(c->count * sizeof(REAL));
  REAL *w = c->begin;
  for (int64_t l = 1; l <= s->layers; l++)
    for (int64_t j = 0; j <= c->sizes[l - 1]; j++, w += padded(c->sizes[l]))
      for (int64_t q = 0; q < c->sizes[l]; q++) w[q] = (uniform() - 0.5) / c->sizes[l];
  s->theta = c->vectors[0], s->gradient = c->vectors[1], s->first = c->vectors[2], s->second = c->vectors[3];
}
static int64_t width(void) { return uniform() < 0.8 ? between(1, 40) : between(41, 260); }
static Case *make(void) {
  Case *c = exactly(sizeof *c);
  Setup *s = &c->setup;
  s->layers = between(1, MOST_LAYERS);
  for (int64_t l = 0; l <= s->layers; l++) c->sizes[l] = width();
  s->rows = between(1, 200);
  s->bytes = between(0, 1), s->labels = between(0, 1), s->sparse = between(0, 1);
  s->optimizer = between(DESCENT, ADAM_EPSILON_HAT), s->nesterov = between(0, 1);
  s->l2 = between(0, 1) * 0.01, s->l2_sum = between(0, 1) * 0.1;
  s->momentum = 0.5, s->beta1 = 0.9, s->beta2 = 0.99, s->epsilon = 1e-3, s->decay = 0.01;
  s->batch = between(1, 3) == 1 ? s->rows : between(1, s->rows);
  s->shard = between(1, 70);
  const int64_t shards = (s->rows + s->shard - 1) / s->shard;
  s->groups = between(0, 1) * (shards < 16 ? shards : 16);
  s->gemm = (const void *)gemm, s->long_integers = 1, s->ranks = 1;
  s->sizes = c->sizes, s->widths = c->widths, s->program = c->program;
  draw_dropout(c);
  record(c);
  make_data(c);
  make_parameters(c);
  return c;
}
static void drop(Case *c) {
  for (int v = 0; v < 4; v++) free(c->vectors[v]);
  const Setup *s = &c->setup;
  free((void *)s->X), free((void *)s->starts), free((void *)s->columns), free((void *)s->y), free((void *)s->weights);
  free(c->thresholds), free(c->keys), free(c->factors);
  free((void *)s->background), free(c->order), free(c->in_order), free(c->begin), free(c);
}

// Train from the beginning; return the sum of losses, or -1 if there is not enough memory.
static double train(Case *c, int64_t threads) {
  Setup *s = &c->setup;
  memcpy(s->theta, c->begin, c->count * sizeof(REAL));
  for (int v = 1; v < 4; v++) memset(c->vectors[v], 0, c->count * sizeof(REAL));
  s->threads = threads;
  Replay *replay = NAME(new, SUFFIX)(s);
  if (!replay) return -1;
  const int64_t rows = s->groups ? s->groups * s->shard : s->batch;  // of an update, or of a round
  const int64_t steps = (s->rows + rows - 1) / rows, half = steps / 2;
  Piece piece = {.order = s->groups ? 0 : c->order, .rate = 0.01, .bias_rate = 0.01, .last = half};
  piece.X = c->in_order, piece.keys = c->keys;
  if (half) NAME(run, SUFFIX)(replay, &piece);
  piece.update = half, piece.done = s->groups ? 0 : half, piece.last = steps, piece.keep_gradient = 1;
  if (c->in_order) {
    piece.first = half * rows < s->rows ? half * rows : s->rows;
    piece.X = c->in_order + piece.first * c->sizes[0] * (s->bytes ? 1 : sizeof(REAL));
  }
  NAME(run, SUFFIX)(replay, &piece);
  if (s->ranks > 1) NAME(gather, SUFFIX)(replay);
  NAME(free, SUFFIX)(replay);
  return piece.loss;
}
static int differ(Case *c, const REAL *want) { return memcmp(c->setup.theta, want, c->count * sizeof(REAL)) != 0; }

static int networks(int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    Case *c = make();
    const double loss = train(c, 1);
    REAL *want = exactly(c->count * sizeof(REAL));
    memcpy(want, c->setup.theta, c->count * sizeof(REAL));
    for (int64_t threads = 2; threads <= 4; threads++)
      if (train(c, threads) != loss || differ(c, want)) return printf("network %ld differs\n", (long)i), 1;
    free(want);
    drop(c);
  }
  return printf("%ld networks\n", (long)count), 0;
}
static int activation(const Case *c, int64_t layer) {
  for (const Instruction *i = c->program;; i++)
    if (i->operation == ACTIVATE && !--layer) return i->function;
}
// Outputs (rows, sizes[L]) by double loops, of rows that lie one behind another.
static double *expected(const Case *c, const char *X, const REAL *theta) {
  const int64_t n = c->setup.rows, L = c->setup.layers;
  double *A = exactly(n * c->sizes[0] * sizeof(double));
  for (int64_t i = 0; i < n * c->sizes[0]; i++)
    A[i] = c->setup.bytes ? ((const uint8_t *)X)[i] / 255.0 : ((const REAL *)X)[i];
  for (int64_t l = 1; l <= L; l++) {
    const int64_t d = c->sizes[l - 1], h = c->sizes[l];
    double *Z = exactly(n * h * sizeof(double));
    for (int64_t i = 0; i < n; i++)
      for (int64_t q = 0; q < h; q++) {
        double z = theta[q];
        for (int64_t j = 0; j < d; j++) z += A[i * d + j] * theta[(1 + j) * h + q];
        const int g = activation(c, l);
        Z[i * h + q] = g == SIGMOID ? 1 / (1 + exp(-z)) : g == TANH ? tanh(z) : g == RELU ? fmax(z, 0) :
                       g == LEAKY_RELU && z < 0 ? (double)LEAK * z : z;
      }
    free(A), A = Z, theta += (1 + d) * h;
  }
  return A;
}
// Predict by so many threads, in shards of so many rows; return 1 if there is not enough memory.
static int predicted(const Case *c, const char *X, const REAL *theta, int64_t shard, int64_t threads, REAL *outputs) {
  Setup s = c->setup;
  Instruction forward[2 * MOST_LAYERS + 1] = {{FEATURES, 0, 0, 0, 0, 0}};
  for (int l = 1; l <= s.layers; l++) {
    forward[2 * l - 1] = (Instruction){AFFINE, 0, l, l - 1, 0, l};
    forward[2 * l] = (Instruction){ACTIVATE, activation(c, l), 0, 0, 0, l};
  }
  s.y = s.weights = s.X = s.background = 0, s.starts = 0, s.sparse = s.groups = s.batch = 0;
  s.instructions = 2 * s.layers + 1, s.buffers = s.layers + 1, s.program = forward, s.widths = c->sizes;
  s.theta = 0, s.threads = threads, s.shard = shard;
  Replay *replay = NAME(new, SUFFIX)(&s);
  if (replay)
    for (int twice = 0; twice < 2; twice++) NAME(predict, SUFFIX)(replay, X, s.rows, shard, theta, outputs);
  NAME(free, SUFFIX)(replay);
  return !replay;
}
static int predictions(int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    Case *c = make();
    const int64_t n = c->setup.rows, d = c->sizes[0], k = c->sizes[c->setup.layers], shard = between(1, n);
    const double used = uniform();
    char *X = exactly(n * d * (c->setup.bytes ? 1 : sizeof(REAL)));
    for (int64_t p = 0; p < n * d; p++)
      if (uniform() < used) c->setup.bytes ? (X[p] = between(1, 127)) : (((REAL *)X)[p] = uniform() - 0.5);
    int64_t numbers = 0;
    for (int64_t l = 1; l <= c->setup.layers; l++) numbers += (1 + c->sizes[l - 1]) * c->sizes[l];
    REAL *theta = exactly(numbers * sizeof(REAL)), *to = theta;
    for (int64_t p = 0; p < numbers; p++) *to++ = (uniform() - 0.5) / 4;
    REAL *want = exactly(n * k * sizeof(REAL)), *outputs = exactly(n * k * sizeof(REAL));
    double *right = expected(c, X, theta), largest = 1;
    allocations_left = 0;
    for (long allowed = 1; predicted(c, X, theta, shard, 1, want); allowed++) allocations_left = allowed;
    allocations_left = FEW;
    for (int64_t p = 0; p < n * k; p++) largest = fmax(largest, fabs(right[p]));
    for (int64_t p = 0; p < n * k; p++)
      if (!(fabs(want[p] - right[p]) <= (sizeof(REAL) == 4 ? 1e-4 : 1e-12) * largest))
        return printf("network %ld predicts %g, not %g\n", (long)i, (double)want[p], right[p]), 1;
    for (int64_t threads = 2; threads <= 4; threads++) {
      predicted(c, X, theta, shard, threads, outputs);
      if (memcmp(outputs, want, n * k * sizeof(REAL))) return printf("network %ld differs\n", (long)i), 1;
    }
    free(X), free(theta), free(want), free(outputs), free(right);
    drop(c);
  }
  return printf("%ld networks\n", (long)count), 0;
}
// Ranks as threads: each has memory of its own, and copies what others send when all have come.
enum { MOST_RANKS = 5 };
static _Thread_local int64_t own_rank;
static const Message *lists[MOST_RANKS];
static int64_t keys[MOST_RANKS], lengths[MOST_RANKS], fails_at;
static _Thread_local int64_t exchanges;
static pthread_barrier_t all_ranks;
static int64_t copy_messages(int64_t key, const Message *messages, int64_t count) {
  const int64_t own = own_rank;
  if (exchanges++ == fails_at) return 1;
  lists[own] = messages, lengths[own] = count, keys[own] = key;
  pthread_barrier_wait(&all_ranks);
  if (keys[0] != key || lengths[0] != count) abort();
  for (int64_t i = 0; i < count; i++) {
    const Message *m = messages + i, *sent = lists[m->sender] + i;
    if (sent->bytes != m->bytes || sent->sender != m->sender || sent->receiver != m->receiver) abort();
    if (m->sender != own && (m->receiver == own || m->receiver == -1)) memcpy(m->at, sent->at, m->bytes);
  }
  pthread_barrier_wait(&all_ranks);
  return 0;
}
typedef struct {
  Case c;
  int64_t rank, threads;
  double loss;
} Rank;
static void *train_rank(void *argument) {
  Rank *rank = argument;
  own_rank = rank->rank, exchanges = 0;
  rank->loss = train(&rank->c, rank->threads);
  return 0;
}
// Return whether so many ranks compute anything else, with the gradient and what the optimizer keeps; one thread each,
// and more.
static int ranks_differ(Case *c, int64_t ranks, double loss, REAL *const *want) {
  Rank all[MOST_RANKS];
  pthread_t ids[MOST_RANKS];
  int differ = 0;
  pthread_barrier_init(&all_ranks, 0, ranks);
  for (int64_t q = 0; q < ranks; q++) {
    Case *own = &all[q].c;
    *own = *c, all[q].rank = q, all[q].threads = 1 + (c->count + q) % 3;
    for (int v = 0; v < 4; v++) own->vectors[v] = exactly(c->count * sizeof(REAL));
    Setup *s = &own->setup;
    s->theta = own->vectors[0], s->gradient = own->vectors[1], s->first = own->vectors[2], s->second = own->vectors[3];
    s->rank = q, s->ranks = ranks, s->exchange = copy_messages;
    if (pthread_create(ids + q, 0, train_rank, all + q)) abort();
  }
  for (int64_t q = 0; q < ranks; q++) {
    pthread_join(ids[q], 0);
    differ |= all[q].loss != loss;
    for (int v = 0; v < 4; v++) {
      differ |= memcmp(all[q].c.vectors[v], want[v], c->count * sizeof(REAL));
      free(all[q].c.vectors[v]);
    }
  }
  pthread_barrier_destroy(&all_ranks);
  return differ != 0;
}
static int networks_on_ranks(int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    Case *c = make();
    fails_at = -1;
    const double loss = train(c, 1);
    for (long ranks = 2; ranks <= MOST_RANKS; ranks++)
      if (ranks_differ(c, ranks, loss, c->vectors))
        return printf("network %ld differs on %ld ranks\n", (long)i, ranks), 1;
    fails_at = between(0, 3);  // on all ranks: they end all the same
    ranks_differ(c, 3, loss, c->vectors);
    drop(c);
  }
  return printf("%ld networks\n", (long)count), 0;
}
static void *train_often(void *c) {
  for (int i = 0; i < 20; i++) train(c, 2);
  return 0;
}
// Let two engines work at once.
static int engines(void) {
  for (int i = 0; i < 5; i++) {
    Case *cases[] = {make(), make()};
    cases[0]->setup.sparse = cases[1]->setup.sparse = 1;
    pthread_t other;
    if (pthread_create(&other, 0, train_often, cases[0])) return 1;
    train_often(cases[1]);
    pthread_join(other, 0);
    drop(cases[0]), drop(cases[1]);
  }
  return printf("done\n"), 0;
}
// Let each allocation fail in turn.
static int memory(void) {
  long refused = 0;
  for (int i = 0; i < 30; i++) {
    Case *c = make();
    for (long k = 0;; k++) {
      allocations_left = k;
      if (train(c, 2) >= 0) break;
      refused++;
    }
    allocations_left = FEW;
    drop(c);
  }
  return printf("%ld refused\n", refused), 0;
}
// Let threads beyond a number fail to start.
static int few_threads(void) {
  for (int i = 0; i < 30; i++) {
    Case *c = make();
    const double loss = train(c, 1);
    REAL *want = exactly(c->count * sizeof(REAL));
    memcpy(want, c->setup.theta, c->count * sizeof(REAL));
    for (long k = 0; k < 5; k++) {
      threads_left = k;
      if (train(c, 4) != loss || differ(c, want)) return printf("with %ld threads more it differs\n", k), 1;
    }
    threads_left = FEW;
    free(want);
    drop(c);
  }
  return printf("done\n"), 0;
}
// Return how many threads are started for so many epochs, of a few updates each.
static long started_in(Replay *replay, const Setup *s, const uint32_t *keys, int epochs) {
  const long before = threads_started;
  for (int i = 0; i < epochs; i++) {
    Piece piece = {.rate = 0.01, .bias_rate = 0.01, .last = s->rows / s->batch, .keys = keys};
    NAME(run, SUFFIX)(replay, &piece);
  }
  return threads_started - before;
}
// If threads have to wait for cores, one works alone, and hardly any are started; later they are as before. So they are
// if everything has become slower for good.
static int pace(void) {
  Case *c = make();
  while (c->setup.groups || c->in_order || c->setup.batch * c->count < WORTH_SHARING ||
         c->setup.rows < 3 * c->setup.batch)
    drop(c), c = make();
  c->setup.threads = 2;
  Replay *replay = NAME(new, SUFFIX)(&c->setup);
  waits = 0;
  const long quiet = started_in(replay, &c->setup, c->keys, 100);
  tick = 100000;
  const long busy = started_in(replay, &c->setup, c->keys, 400);
  tick = 1000;
  started_in(replay, &c->setup, c->keys, 200);
  const long again = started_in(replay, &c->setup, c->keys, 100);
  tick = 4000;
  started_in(replay, &c->setup, c->keys, 3000);
  const long slower = started_in(replay, &c->setup, c->keys, 100);
  NAME(free, SUFFIX)(replay);
  drop(c);
  return printf("%ld %ld %ld %ld threads\n", quiet, busy, again, slower), 0;
}
int main(int count, char **words) {
  allocations_left = threads_left = FEW;
  if (count == 3 && !strcmp(words[1], "networks")) return networks(atol(words[2]));
  if (count == 3 && !strcmp(words[1], "ranks")) return networks_on_ranks(atol(words[2]));
  if (count == 3 && !strcmp(words[1], "predictions")) return predictions(atol(words[2]));
  if (count == 2 && !strcmp(words[1], "engines")) return engines();
  if (count == 2 && !strcmp(words[1], "memory")) return memory();
  if (count == 2 && !strcmp(words[1], "threads")) return few_threads();
  if (count == 2 && !strcmp(words[1], "pace")) return pace();
  return 2;
}

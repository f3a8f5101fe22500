// Products with a matrix that has many zeros, which are skipped one by one.
//
// A mask has a bit for each number of a row, 64 in a word, that says whether it is not zero. The product walks over the
// bits and adds the row of B that each stands for, times the number: no list is made of them. What a word may need of B,
// 64 rows of as many vectors as fit into the registers, stays in the first cache while all rows of the batch meet it.
// Backwards, words stand for 64 rows in a column.
//
// Each sum begins at zero, follows the bits in order, and is added once it has come to the end of its words: the bits of
// the result do not depend on how the work is shared.
#pragma once

typedef REAL Anywhere __attribute__((aligned(1)));  // a number of X, which need not be on a boundary

typedef struct {  // a row of which only the numbers that are not zero are given
  const REAL *values;
  const uint64_t *masks;  // a bit for each number, 64 in a word
  const int32_t *before;  // of each word: how many numbers there are before it
} Stored;

static void store(const Setup *s, int64_t row, uint64_t *masks, int32_t *before, Stored *to) {
  const int64_t words = (s->sizes[0] + 63) / 64, first = s->starts[row], end = s->starts[row + 1];
  for (int64_t i = first; i < end; i++) masks[s->columns[i] / 64] |= 1ull << s->columns[i] % 64;
  for (int64_t w = 1; w < words; w++) before[w] = before[w - 1] + __builtin_popcountll(masks[w - 1]);
  *to = (Stored){(const REAL *)s->X + first, masks, before};
}
INLINE REAL stored_number(const Stored *row, int64_t j) {
  const uint64_t word = row->masks[j / 64], bit = 1ull << j % 64;
  return word & bit ? row->values[row->before[j / 64] + __builtin_popcountll(word & (bit - 1))] : 0;
}
// A number of a row that is neither stored so nor bytes.
INLINE REAL number(const Setup *s, const void *row, int64_t j) {
  const REAL x = ((const Anywhere *)row)[j];
  return s->background ? x - ((const REAL *)s->background)[j] : x;
}

INLINE int64_t size_of_number(const Setup *s) { return s->bytes ? 1 : sizeof(REAL); }

// A bit for each of up to 64 bytes that is not zero. Eight at a time: the upper bit of each says so, and a product moves
// these bits together. The processors that this is compiled for put the first byte lowest.
INLINE uint64_t mark_bytes(const uint8_t *bytes, int64_t count) {
  const uint64_t low = 0x7f7f7f7f7f7f7f7full;
  uint64_t mask = 0;
  for (int64_t q = 0; q < count; q += 8) {
    uint64_t eight = 0;
    if (count - q >= 8) memcpy(&eight, bytes + q, 8);
    else memcpy(&eight, bytes + q, count - q);
    const uint64_t used = (((eight & low) + low) | eight) & ~low;
    mask |= ((used >> 7) * 0x0102040810204080ull >> 56) << q;
  }
  return mask;
}
// A bit for each number of a row that is not zero, or not the background, 64 in a word.
static void mark(const Setup *s, const void *row, uint64_t *masks) {
  const int64_t d = s->sizes[0];
  for (int64_t j = 0; j < d; j += 64) {
    const int64_t count = d - j < 64 ? d - j : 64;
    uint8_t used[64];
    for (int64_t q = 0; !s->bytes && q < count; q++) used[q] = number(s, row, j + q) != 0;
    masks[j / 64] = mark_bytes(s->bytes ? (const uint8_t *)row + j : used, count);
  }
}

#define SWAP(j, keep)                                    \
  for (int a = 0; a < 64; a += 2 * j)                    \
    for (int b = a; b < a + j; b++) {                    \
      const uint64_t x = (t[b] >> j ^ t[b + j]) & keep; \
      t[b] ^= x << j;                                    \
      t[b + j] ^= x;                                     \
    }
static void transpose(uint64_t *t) {  // 64 words of 64 bits
  SWAP(32, 0x00000000ffffffffull)
  SWAP(16, 0x0000ffff0000ffffull)
  SWAP(8, 0x00ff00ff00ff00ffull)
  SWAP(4, 0x0f0f0f0f0f0f0f0full)
  SWAP(2, 0x3333333333333333ull)
  SWAP(1, 0x5555555555555555ull)
}


// Rows of C += A B, where each row of A has so many words of masks. These and numbers of A are `down` from row to row and
// `along` from word to word and from number to number.
typedef struct {
  const uint64_t *masks;
  const void *numbers;
  int64_t words, masks_down, masks_along, numbers_down, numbers_along;
} Marked;
typedef void Sum(const Marked *A, int64_t rows, const REAL *B, int64_t ldb, REAL *C, int64_t ldc);

static REAL scaled[256];  // a byte as a number
#define REALS(x, i) ((const REAL *)x)[i]
#define BYTES(x, i) scaled[((const uint8_t *)x)[i]]
// c += sum of x b over the bits of a mask, with the number x of row q and the row b of B that a bit stands for.
#define ADD_BITS(OF, V, mask, first)                                                                             \
  for (uint64_t left = mask; left; left &= left - 1) {                                                           \
    const int64_t j = first + __builtin_ctzll(left);                                                             \
    const REAL x = OF(A->numbers, q * down + j * along), *row = B + j * ldb;                                     \
    AT_HAND(row);                                                                                                \
    UNROLL for (int v = 0; v < V; v++) c[v] += x * ((const Vector *)row)[v];                                     \
  }
// Of a word, what is read of B should stay in the first cache: if rows of B are long, halves of words are taken.
#define KEPT 28672  // bytes
#define SUM(OF, V)                                                                                               \
  static void sum_of_words_##OF##_##V(const Marked *A, int64_t rows, const REAL *B, int64_t ldb, REAL *C,        \
                                      int64_t ldc) {                                                             \
    const int64_t down = A->numbers_down, along = A->numbers_along;                                              \
    for (int64_t q = 0; q < rows; q++) {                                                                         \
      Vector c[V], *to = (Vector *)(C + q * ldc);                                                                \
      UNROLL for (int v = 0; v < V; v++) c[v] = (Vector){0};                                                     \
      for (int64_t w = 0; w < A->words; w++)                                                                     \
        ADD_BITS(OF, V, A->masks[q * A->masks_down + w * A->masks_along], 64 * w)                                \
      UNROLL for (int v = 0; v < V; v++) to[v] += c[v];                                                          \
    }                                                                                                            \
  }                                                                                                              \
  static void sum_of_word_##OF##_##V(const Marked *A, int64_t rows, const REAL *B, int64_t ldb, REAL *C,         \
                                     int64_t ldc) {                                                              \
    const int64_t down = A->numbers_down, along = A->numbers_along, halves = 64 * V * VECTOR_BYTES > KEPT ? 2 : 1;\
    for (int64_t half = 0; half < halves; half++)                                                                \
      for (int64_t q = 0; q < rows; q++) {                                                                       \
        const uint64_t word = A->masks[q * A->masks_down], lower = (uint32_t)word;                               \
        const uint64_t mask = halves == 1 ? word : half ? word - lower : lower;                                  \
        if (!mask) continue;                                                                                     \
        Vector c[V], *to = (Vector *)(C + q * ldc);                                                              \
        UNROLL for (int v = 0; v < V; v++) c[v] = (Vector){0};                                                   \
        ADD_BITS(OF, V, mask, 0)                                                                                 \
        UNROLL for (int v = 0; v < V; v++) to[v] += c[v];                                                        \
      }                                                                                                          \
  }
#define EACH_LENGTH(X, OF)                                                                                       \
  X(OF, 1) X(OF, 2) X(OF, 3) X(OF, 4) X(OF, 5) X(OF, 6) X(OF, 7) X(OF, 8) X(OF, 9) X(OF, 10) X(OF, 11) X(OF, 12) \
  X(OF, 13)
EACH_LENGTH(SUM, REALS)
EACH_LENGTH(SUM, BYTES)
#define SUM_VECTORS 13  // as many as 16 registers hold
#define OF_WORD(OF, V) sum_of_word_##OF##_##V,
#define OF_WORDS(OF, V) sum_of_words_##OF##_##V,
static Sum *const sums[2][2][SUM_VECTORS + 1] = {  // for one word or several, numbers or bytes
    {{0, EACH_LENGTH(OF_WORD, REALS)}, {0, EACH_LENGTH(OF_WORD, BYTES)}},
    {{0, EACH_LENGTH(OF_WORDS, REALS)}, {0, EACH_LENGTH(OF_WORDS, BYTES)}}};
static pthread_once_t tables_are_filled = PTHREAD_ONCE_INIT;
static void fill_tables(void) {
  for (int byte = 0; byte < 256; byte++) scaled[byte] = byte * (1 / (REAL)255);
}

// A number of columns is cut into parts of as many vectors as a sum takes, and this is where part p begins.
static int64_t parts_of_columns(int64_t n) { return ((n + LANES - 1) / LANES + SUM_VECTORS - 1) / SUM_VECTORS; }
static int64_t first_vector(int64_t n, int64_t p) { return (n + LANES - 1) / LANES * p / parts_of_columns(n); }

typedef struct {  // rows of a batch
  const uint64_t *marks;  // their masks
  int64_t words;          // of each of them
  const void *numbers;    // bytes or numbers, `stride` from row to row; or null, if they are
  int64_t stride;
  const void **stored;    // stored without their zeros
} Sparse;

// Rows [from, to) of Z += X W, with n columns that matter.
static void add_forward(const Setup *s, const Sparse *X, int64_t from, int64_t to, const REAL *W, int64_t ldw, int64_t n,
                        REAL *Z, int64_t ldz, REAL *values) {
  const int64_t together = X->stored ? 1 : to - from;
  for (int64_t w = 0, words; w < X->words; w += words) {
    words = X->words - w < s->words ? X->words - w : s->words;
    for (int64_t p = 0; p < parts_of_columns(n); p++) {
      const int64_t o = first_vector(n, p) * LANES, V = first_vector(n, p + 1) - first_vector(n, p);
      for (int64_t q = from; q < to; q += together) {
        const uint64_t *masks = X->marks + q * X->words + w;
        const char *x = (const char *)X->numbers + (q * X->stride + 64 * w) * size_of_number(s);
        if (X->stored) {
          for (int64_t i = 0; i < words; i++)
            for (uint64_t mask = masks[i]; mask; mask &= mask - 1) {
              const int64_t j = 64 * i + __builtin_ctzll(mask);
              values[j] = stored_number(X->stored[q], 64 * w + j);
            }
          x = (const char *)values;
        }
        const Marked A = {masks, x, words, X->words, 1, X->stride, 1};
        sums[words > 1][s->bytes][V](&A, together, W + 64 * w * ldw + o, ldw, Z + q * ldz + o, ldz);
      }
    }
  }
}

#define COLUMNS 256  // that are worked on together
// The masks of columns [j0, j1), so many at most, of rows [i, i + 64 words) of m: a line of COLUMNS words for each 64.
static void masks_of_columns(const Sparse *X, int64_t m, int64_t i, int64_t words, int64_t j0, int64_t j1, uint64_t *to) {
  for (int64_t w = 0; w < words; w++, i += 64)
    for (int64_t j = j0; j < j1; j += 64) {
      uint64_t *t = to + w * COLUMNS + j - j0;
      for (int64_t q = 0; q < 64; q++) t[q] = i + q < m ? X->marks[(i + q) * X->words + j / 64] : 0;
      transpose(t);
    }
}
// Rows [j0, j1) of dW += X^T dZ, from m rows; j0 is a multiple of 64. dW begins with row j0.
static void add_backward(const Setup *s, const Sparse *X, int64_t m, int64_t j0, int64_t j1, const REAL *dZ, int64_t n,
                         int64_t ld, REAL *dW, REAL *values, uint64_t *masks) {
  const int64_t together = X->stored ? 1 : j1 - j0;
  for (int64_t i = 0, words; i < m; i += 64 * words) {
    words = (m - i + 63) / 64 < s->words ? (m - i + 63) / 64 : s->words;
    masks_of_columns(X, m, i, words, j0, j1, masks);
    for (int64_t p = 0; p < parts_of_columns(n); p++) {
      const int64_t o = first_vector(n, p) * LANES, V = first_vector(n, p + 1) - first_vector(n, p);
      for (int64_t j = j0; j < j1; j += together) {
        const char *x = (const char *)X->numbers + (i * X->stride + j) * size_of_number(s);
        if (X->stored) {
          for (int64_t w = 0; w < words; w++)
            for (uint64_t mask = masks[w * COLUMNS + j - j0]; mask; mask &= mask - 1) {
              const int64_t q = 64 * w + __builtin_ctzll(mask);
              values[q] = stored_number(X->stored[i + q], j);
            }
          x = (const char *)values;
        }
        const Marked A = {masks + j - j0, x, words, 1, COLUMNS, 1, X->stored ? 1 : X->stride};
        sums[words > 1][s->bytes][V](&A, together, dZ + i * ld + o, ld, dW + (j - j0) * ld + o, ld);
      }
    }
  }
}

// Products with a matrix that has many zeros, which are skipped one by one.
//
// Rows are taken in pairs. For each pair there is a list of the columns that either row uses, and the numbers of both
// rows there; the product adds up the rows of B that the list names, for both rows at once. Two rows are as many as
// the load of B from the second cache pays for. Backwards, columns are taken in pairs, with lists of rows.
//
// A sum follows its list, which is in order, and what the other row brings along adds zero: the bits do not depend on
// which rows are pairs, how wide a vector is, or how the work is shared.
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
INLINE REAL number(const Setup *s, const void *row, int64_t j) {
  if (s->starts) return stored_number(row, j);
  if (s->bytes) return ((const uint8_t *)row)[j] * (1 / (REAL)255);
  const REAL x = ((const Anywhere *)row)[j];
  return s->background ? x - ((const REAL *)s->background)[j] : x;
}

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
    uint64_t mask = 0;
    const int64_t count = d - j < 64 ? d - j : 64;
    if (s->bytes)
      mask = mark_bytes((const uint8_t *)row + j, count);
    else
      for (int64_t q = 0; q < count; q++) mask |= (uint64_t)(number(s, row, j + q) != 0) << q;
    masks[j / 64] = mask;
  }
}

// Append the positions of the bits of a mask, plus `first`; up to seven numbers behind the last are overwritten.
static uint16_t offsets[256][8];
static uint8_t counts[256];
static pthread_once_t tables_are_filled = PTHREAD_ONCE_INIT;
static void fill_tables(void) {
  for (int byte = 0; byte < 256; byte++) {
    counts[byte] = 0;
    for (int bit = 0; bit < 8; bit++)
      if (byte >> bit & 1) offsets[byte][counts[byte]++] = bit;
  }
}
typedef uint16_t Eight __attribute__((vector_size(16), aligned(2)));
INLINE uint16_t *positions(uint64_t mask, uint16_t first, uint16_t *to) {
  for (; mask; mask >>= 8, first += 8) {
    *(Eight *)to = *(const Eight *)offsets[mask & 255] + first;
    to += counts[mask & 255];
  }
  return to;
}

#define PAIRS 32         // of rows or columns, that are worked on together
#define INDEXED (1 << 16)  // columns or rows, at most: an index has 16 bits
typedef struct {
  uint16_t *index;  // of the pairs, one after another
  REAL *values;     // two for each index
  int64_t starts[PAIRS + 1];
} Lists;

// The list of the rows from `one` on, two of them or the last one alone: columns from `first` on that either uses.
static void list_rows(const Setup *s, const void **rows, const uint64_t **masks, int64_t one, int64_t last,
                      int64_t first, Lists *to, int64_t pair) {
  const int64_t two = one + 1 < last ? one + 1 : one, begin = to->starts[pair];
  uint16_t *index = to->index + begin, *end = index;
  const int64_t stop = first + INDEXED < s->sizes[0] ? first + INDEXED : s->sizes[0];
  for (int64_t j = first; j < stop; j += 64)
    end = positions(masks[one][j / 64] | masks[two][j / 64], j - first, end);
  REAL *values = to->values + 2 * begin;
  for (; index < end; index++, values += 2) {
    values[0] = number(s, rows[one], first + *index);
    values[1] = number(s, rows[two], first + *index);
  }
  to->starts[pair + 1] = end - to->index;
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

// The masks of 64 columns from j on: for each, a word for every 64 rows.
static void masks_of_columns(const uint64_t **masks, int64_t m, int64_t j, uint64_t *by_column) {
  for (int64_t i = 0; i < m; i += 64) {
    uint64_t *t = by_column + i;
    for (int64_t q = 0; q < 64; q++) t[q] = i + q < m ? masks[i + q][j / 64] : 0;
    transpose(t);
  }
}
// The list of columns j + c and j + c + 1, or of the last one alone: rows that use either.
static void list_columns(const Setup *s, const void **rows, int64_t m, int64_t j, int64_t c, const uint64_t *by_column,
                         Lists *to, int64_t pair) {
  const int64_t other = j + c + 1 < s->sizes[0] ? c + 1 : c, begin = to->starts[pair];
  uint16_t *index = to->index + begin, *end = index;
  for (int64_t i = 0; i < m; i += 64) end = positions(by_column[i + c] | by_column[i + other], i, end);
  REAL *values = to->values + 2 * begin;
  for (; index < end; index++, values += 2) {
    values[0] = number(s, rows[*index], j + c);
    values[1] = number(s, rows[*index], j + other);
  }
  to->starts[pair + 1] = end - to->index;
}

// Two rows of the product, V vectors of each: they begin at zero and are added once, which is more exact.
#define PAIR(V)                                                                                                  \
  static void pair_##V(const uint16_t *index, int64_t count, const REAL *values, const REAL *B, int64_t ldb,     \
                       REAL *one, REAL *two) {                                                                   \
    Vector c[V], e[V];                                                                                           \
    UNROLL for (int v = 0; v < V; v++) c[v] = e[v] = (Vector){0};                                                \
    for (int64_t i = 0; i < count; i++) {                                                                        \
      const Vector *b = (const Vector *)(B + index[i] * ldb);                                                    \
      const REAL x = values[2 * i], y = values[2 * i + 1];                                                       \
      UNROLL for (int v = 0; v < V; v++) {                                                                       \
        Vector u = b[v];                                                                                         \
        LOADED(u); /* once: GCC would put the load into both products */                                         \
        c[v] += x * u;                                                                                           \
        e[v] += y * u;                                                                                           \
      }                                                                                                          \
    }                                                                                                            \
    UNROLL for (int v = 0; v < V; v++)((Vector *)one)[v] += c[v];                                                \
    if (two) UNROLL for (int v = 0; v < V; v++)((Vector *)two)[v] += e[v];                                       \
  }
typedef void Pair(const uint16_t *, int64_t, const REAL *, const REAL *, int64_t, REAL *, REAL *);
PAIR(1) PAIR(2) PAIR(3) PAIR(4) PAIR(5) PAIR(6)
#if PAIR_VECTORS == 13
PAIR(7) PAIR(8) PAIR(9) PAIR(10) PAIR(11) PAIR(12) PAIR(13)
static Pair *const pairs[] = {0,      pair_1, pair_2, pair_3,  pair_4,  pair_5,  pair_6,
                              pair_7, pair_8, pair_9, pair_10, pair_11, pair_12, pair_13};
#else
static Pair *const pairs[] = {0, pair_1, pair_2, pair_3, pair_4, pair_5, pair_6};
#endif

// `rows` rows of O += what the lists of pairs say of B, both with n columns that matter and `ld` in all. Some columns at a
// time, so that this part of B stays in the cache.
static void add_pairs(const Lists *lists, int64_t rows, const REAL *B, int64_t ldb, REAL *O, int64_t n, int64_t ld) {
  const int64_t vectors = (n + LANES - 1) / LANES, parts = (vectors + PAIR_VECTORS - 1) / PAIR_VECTORS;
  for (int64_t part = 0; part < parts; part++) {
    const int64_t first = vectors * part / parts, V = vectors * (part + 1) / parts - first, o = first * LANES;
    for (int64_t p = 0; 2 * p < rows; p++) {
      const int64_t begin = lists->starts[p], count = lists->starts[p + 1] - begin;
      REAL *one = O + 2 * p * ld + o, *two = 2 * p + 1 < rows ? one + ld : 0;
      if (count) pairs[V](lists->index + begin, count, lists->values + 2 * begin, B + o, ldb, one, two);
    }
  }
}

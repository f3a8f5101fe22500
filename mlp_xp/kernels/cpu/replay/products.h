// Matrix products in registers: C = begin + A B, where rows of B and C are whole vectors and A has any strides.
//
// Of B, so many rows are taken at a time that what a tile reads of them stays in the first cache, while all rows of A meet
// it. Each entry of C is a sum in the order of k, of sums over so many rows: the bits do not depend on how rows are cut.
#pragma once

#define DEPTH 192  // rows of B at a time, times vectors of a tile

// `begin` has rows of its own, `after` one another, or one for all; null stands for zeros.
#define VECTOR_TILE(R, V)                                                                                    \
  static void tile_##R##_##V(int64_t k, const REAL *A, int64_t down, int64_t along, const REAL *B, int64_t ldb, \
                             const REAL *begin, int64_t after, REAL *C, int64_t ldc) {                       \
    Vector c[R][V];                                                                                          \
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++) c[r][v] = (Vector){0};             \
    for (int64_t p = 0; p < k; p++) {                                                                        \
      Vector b[V];                                                                                           \
      UNROLL for (int v = 0; v < V; v++) b[v] = ((const Vector *)(B + p * ldb))[v];                          \
      UNROLL for (int r = 0; r < R; r++) {                                                                   \
        const REAL a = A[r * down + p * along];                                                              \
        UNROLL for (int v = 0; v < V; v++) c[r][v] += a * b[v];                                              \
      }                                                                                                      \
    }                                                                                                        \
    if (begin)                                                                                               \
      UNROLL for (int r = 0; r < R; r++)                                                                     \
          UNROLL for (int v = 0; v < V; v++) c[r][v] += ((const Vector *)(begin + r * after))[v];            \
    UNROLL for (int r = 0; r < R; r++) UNROLL for (int v = 0; v < V; v++)((Vector *)(C + r * ldc))[v] = c[r][v]; \
  }
typedef void Tile(int64_t k, const REAL *A, int64_t down, int64_t along, const REAL *B, int64_t ldb, const REAL *begin,
                  int64_t after, REAL *C, int64_t ldc);

#if TILE_ROWS == 8
#define EACH_ROW(X, V) X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V) X(7, V) X(8, V)
#define NAMES(V) {0, tile_1_##V, tile_2_##V, tile_3_##V, tile_4_##V, tile_5_##V, tile_6_##V, tile_7_##V, tile_8_##V}
#else
#define EACH_ROW(X, V) X(1, V) X(2, V) X(3, V) X(4, V)
#define NAMES(V) {0, tile_1_##V, tile_2_##V, tile_3_##V, tile_4_##V}
#endif
EACH_ROW(VECTOR_TILE, 1)
EACH_ROW(VECTOR_TILE, 2)
EACH_ROW(VECTOR_TILE, 3)
static Tile *const tiles[4][TILE_ROWS + 1] = {{0}, NAMES(1), NAMES(2), NAMES(3)};
// Of a single row, more columns at a time: there are more sums then than one addition takes cycles.
VECTOR_TILE(1, 4) VECTOR_TILE(1, 5) VECTOR_TILE(1, 6) VECTOR_TILE(1, 7) VECTOR_TILE(1, 8)
VECTOR_TILE(1, 9) VECTOR_TILE(1, 10) VECTOR_TILE(1, 11) VECTOR_TILE(1, 12)
#define UP_TO_12 0, tile_1_1, tile_1_2, tile_1_3, tile_1_4, tile_1_5, tile_1_6, tile_1_7, tile_1_8, tile_1_9, tile_1_10, \
                 tile_1_11, tile_1_12
#if TILE_ROWS == 8
VECTOR_TILE(1, 13) VECTOR_TILE(1, 14) VECTOR_TILE(1, 15) VECTOR_TILE(1, 16)
static Tile *const wide_tiles[] = {UP_TO_12, tile_1_13, tile_1_14, tile_1_15, tile_1_16};
#else
static Tile *const wide_tiles[] = {UP_TO_12};
#endif
#define WIDEST ((int64_t)(sizeof wide_tiles / sizeof *wide_tiles) - 1)

#define LARGE (1 << 19)  // bytes of A: so many are hardly in a core's cache yet
// Fetch what is needed next of a tile's rows, which lie too far apart for a processor to expect it.
INLINE void fetch(const REAL *A, int64_t down, int64_t rows, int64_t numbers) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < numbers; j += ROW) __builtin_prefetch(A + r * down + j, 0, 2);
}

// C (m, n) = begin + A (m, k) B (k, n); n is filled up to whole vectors in B and C.
static void multiply(int64_t m, int64_t n, int64_t k, const REAL *A, int64_t down, int64_t along, const REAL *B,
                     int64_t ldb, const REAL *begin, int64_t after, REAL *C, int64_t ldc) {
  const int64_t vectors = (n + LANES - 1) / LANES, parts = (vectors + WIDEST - 1) / WIDEST;
  for (int64_t part = 0; m == 1 && part < parts; part++) {
    const int64_t v = vectors * part / parts, wide = vectors * (part + 1) / parts - v, o = v * LANES;
    wide_tiles[wide](k, A, down, along, B + o, ldb, begin ? begin + o : 0, after, C + o, ldc);
  }
  const int large = along == 1 && m * k * (int64_t)sizeof(REAL) > LARGE;
  for (int64_t v = 0, wide; m > 1 && v < vectors; v += wide) {
    const int64_t left = vectors - v, o = v * LANES;
    wide = left == 4 ? 2 : left < 3 ? left : 3;
    const REAL *to_add = begin ? begin + o : 0;
    int64_t apart = after;
    for (int64_t p = 0, depth; p < k; p += depth, to_add = C + o, apart = ldc) {
      depth = k - p < DEPTH / wide ? k - p : DEPTH / wide;
      const int64_t next = large && v == 0 ? (k - p - depth < depth ? k - p - depth : depth) : 0;
      for (int64_t i = 0; i < m; i += TILE_ROWS) {
        const int64_t rows = m - i < TILE_ROWS ? m - i : TILE_ROWS;
        if (next) fetch(A + i * down + p + depth, down, rows, next);
        tiles[wide][rows](depth, A + i * down + p * along, down, along, B + p * ldb + o, ldb,
                          to_add ? to_add + i * apart : 0, apart, C + i * ldc + o, ldc);
      }
    }
  }
}

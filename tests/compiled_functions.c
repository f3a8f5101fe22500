// The functions of the library by themselves, for tests: activations, dropout, slopes and losses on arrays.
#include "replay.h"

#include <math.h>
#define INLINE static inline __attribute__((always_inline))
#include "functions.h"

void exponential(REAL *z, int64_t n) {
  for (int64_t i = 0; i < n; i++) z[i] = EXP(z[i]);
}
void activation(int name, REAL *z, int64_t n) { activate(name, z, n); }
void thinned(const uint32_t *key, int64_t sample, uint32_t threshold, REAL factor, const REAL *from, REAL *to,
             int64_t n) {
  thin(key, sample, threshold, factor, from, to, n);
}
void derivative(int name, REAL *d, const REAL *a, int64_t n) { slope(name, d, a, n); }
double sum_of_losses(int name, REAL *A, const void *y, int64_t m, int64_t k, int64_t ld, REAL scale) {
  return loss(name, A, y, m, k, ld, scale);
}

// What `python -m bench.skipping` measures: the sparse products of the library, phase by phase, and the processor's peak.
#include "replay.c"

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__x86_64__)
#define LOADED(u) __asm__("" : "+v"(u))
#else
#define LOADED(u) __asm__("" : "+w"(u))
#endif
#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define LOAD(i) Vector c##i = v[i];
#define MULTIPLY(i) c##i = c##i * v[12] + v[13]; LOADED(c##i);
#define STORE(i) v[i] = c##i;
// Multiplications with an addition that one thread does in a second, in registers alone.
static __attribute__((noinline)) void multiply_registers(Vector *v, int64_t times) {
  EACH(LOAD)
  for (int64_t i = 0; i < times; i++) {
    EACH(MULTIPLY)
  }
  EACH(STORE)
}
double peak(void) {
  const int64_t times = 1000000;
  Vector v[14];
  for (int i = 0; i < 14; i++) v[i] = (Vector){0} + (REAL)0.5;
  const double begin = cpu_seconds();
  multiply_registers(v, times);
  const double seconds = cpu_seconds() - begin;
  static volatile REAL used;  // or a compiler leaves it all out
  for (int i = 0; i < 12; i++) used = v[i][0];
  (void)used;
  return 12.0 * LANES * times / seconds;
}
int64_t vector_bytes(void) { return VECTOR_BYTES; }

// CPU seconds for all batches of m rows of X (n, d), with `units` in the first layer: of copies of the rows and their
// masks, of Z += X W, and of dW += X^T dZ in slices of the columns.
int64_t phases(const uint8_t *X, int64_t n, int64_t d, int64_t m, int64_t units, double *seconds) {
  const int64_t sizes[] = {d, units}, ld = padded(units), words = (d + 63) / 64, stride = up(d, 64);
  const Setup s = {.sizes = sizes, .bytes = 1, .words = 1};
  uint64_t *marks = new (n * words * 8), *taken = new (m * words * 8), *masks = new (COLUMNS * 8);
  uint8_t *rows = new (m * stride);
  REAL *W = new (d * ld * sizeof(REAL)), *dW = new (d * ld * sizeof(REAL)), *Z = new (m * ld * sizeof(REAL));
  const int made = marks && taken && masks && rows && W && dW && Z;
  pthread_once(&tables_are_filled, fill_tables);
  for (int64_t i = 0; made && i < n; i++) mark(&s, X + i * d, marks + i * words);
  for (int64_t first = 0; made && first + m <= n; first += m) {
    double begin = cpu_seconds(), end;
    for (int64_t i = 0; i < m; i++) {
      memcpy(taken + i * words, marks + (first + i) * words, words * 8);
      memcpy(rows + i * stride, X + (first + i) * d, d);
    }
    const Sparse batch = {taken, words, rows, stride, 0};
    seconds[0] += (end = cpu_seconds()) - begin, begin = end;
    for (int64_t q = 0; q < m; q += 32) add_forward(&s, &batch, q, least(m, q + 32), W, ld, units, Z, ld, 0);
    seconds[1] += (end = cpu_seconds()) - begin, begin = end;
    for (int64_t j = 0; j < d; j += 128)
      add_backward(&s, &batch, m, j, least(d, j + 128), Z, units, ld, dW + j * ld, 0, masks);
    seconds[2] += cpu_seconds() - begin;
  }
  free(marks), free(taken), free(masks), free(rows), free(W), free(dW), free(Z);
  return made;
}

// Activations and their slopes. Written so that a compiler vectorizes the loops over them: no branch, no call.
#pragma once

// exp(x): 2^k e^r with x = k log(2) + r. The polynomials' errors are below a unit in the last place.
INLINE float exp_float(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float magic = 0x1.8p23f, shifted = x * 0x1.715476p+0f + magic, k = shifted - magic;
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;  // Cephes, expf.c
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  union { float f; uint32_t bits; } power = {shifted};
  power.bits = (power.bits << 23) + 0x3f800000u;
  return p * power.f;
}
INLINE double exp_double(double x) {
  x = x < -708.0 ? -708.0 : x;
  x = x > 709.0 ? 709.0 : x;
  const double magic = 0x1.8p52, shifted = x * 0x1.71547652b82fep+0 + magic, k = shifted - magic;
  const double r = (x - k * 0x1.62e42fefa38p-1) - k * 0x1.ef35793c7673p-45;
  double p = 1.0 / 6227020800;  // Taylor's series: |r| < 0.35
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r * r + r + 1.0;
  union { double f; uint64_t bits; } power = {shifted};
  power.bits = (power.bits << 52) + 0x3ff0000000000000u;
  return p * power.f;
}

// tanh(x): near zero Cephes's approximations, which keep the relative error small; elsewhere by exp.
INLINE float tanh_float(float x) {
  const float z = x * x, a = fabsf(x);
  float p = -5.70498872745e-3f;  // tanhf.c
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = p * z * a + a, large = 1.0f - 2.0f / (exp_float(2.0f * a) + 1.0f);
  return copysignf(a < 0.625f ? small : large, x);
}
INLINE double tanh_double(double x) {
  const double z = x * x, a = fabs(x);
  const double p = (-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3;  // tanh.c
  const double q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3;
  const double small = a + a * z * (p / q), large = 1.0 - 2.0 / (exp_double(2.0 * a) + 1.0);
  return copysign(a < 0.625 ? small : large, x);
}

#define EXP(x) _Generic((x), float: exp_float, double: exp_double)(x)
#define TANH_OF(x) _Generic((x), float: tanh_float, double: tanh_double)(x)
#define LEAK ((REAL)0.01)

static void activate(int name, REAL *z, int64_t n) {
  switch (name) {
    case SIGMOID:
      for (int64_t i = 0; i < n; i++) z[i] = 1 / (1 + EXP(-z[i]));
      break;
    case TANH:
      for (int64_t i = 0; i < n; i++) z[i] = TANH_OF(z[i]);
      break;
    case RELU:  // -0 for z < 0, and 0 for zeros of both signs: it tells the slope
      for (int64_t i = 0; i < n; i++) z[i] = z[i] < 0 ? (REAL)-0.0 : (REAL)fabs(z[i]);
      break;
    case LEAKY_RELU:
      for (int64_t i = 0; i < n; i++) z[i] = z[i] < 0 ? LEAK * z[i] : z[i];
      break;
  }
}
static void slope(int name, REAL *restrict d, const REAL *restrict a, int64_t n) {
  switch (name) {
    case SIGMOID:
      for (int64_t i = 0; i < n; i++) d[i] *= a[i] * (1 - a[i]);
      break;
    case TANH:
      for (int64_t i = 0; i < n; i++) d[i] *= 1 - a[i] * a[i];
      break;
    case RELU:
      for (int64_t i = 0; i < n; i++) d[i] *= (REAL)!signbit(a[i]);
      break;
    case LEAKY_RELU:
      for (int64_t i = 0; i < n; i++) d[i] *= a[i] < 0 ? LEAK : 1;
      break;
  }
}

// Dropout, as in dropout.py: what becomes of a row of n numbers. `key` is that of the epoch and the layer.
INLINE uint32_t mixed(uint32_t h) {
  h = (h ^ h >> 16) * 0x85EBCA6Bu;  // MurmurHash3's finalizer
  h = (h ^ h >> 13) * 0xC2B2AE35u;
  return h ^ h >> 16;
}
static void thin(const uint32_t *key, int64_t sample, uint32_t threshold, REAL factor, const REAL *restrict from,
                 REAL *restrict to, int64_t n) {
  const uint32_t row = mixed(mixed((uint32_t)sample + key[0]) + (uint32_t)(sample >> 32) + key[1]);
  for (int64_t j = 0; j < n; j++) to[j] = from[j] * (mixed(row + (uint32_t)j * 0x9E3779B9u) < threshold ? 0 : factor);
}

// Sums of rows' losses, and scale * dloss/dA in place of A, which has `ld` numbers in a row, of which k count.
// Of the losses, those that scikit-learn reports count probabilities as eps to 1 - eps; eps = 0 leaves them as they are.
#define EPSILON (sizeof(REAL) == 4 ? 0x1p-23 : 0x1p-52)
INLINE double within(double x, double least, double most) { return x < least ? least : x > most ? most : x; }

static double softmax_cross_entropy(REAL *A, const int32_t *y, int64_t m, int64_t k, int64_t ld, REAL scale,
                                    double eps) {
  const double least = -log1p(-eps), most = -log(eps);
  double sum_of_losses = 0;
  for (int64_t i = 0; i < m; i++) {
    REAL *a = A + i * ld, top = a[0], sum = 0;
    for (int64_t j = 1; j < k; j++) top = a[j] > top ? a[j] : top;
    const REAL right = a[y[i]] - top;
    for (int64_t j = 0; j < ld; j++) a[j] = EXP(a[j] - top);
    for (int64_t j = 0; j < k; j++) sum += a[j];
    sum_of_losses += within(log((double)sum) - right, least, most);
    const REAL by = scale / sum;
    for (int64_t j = 0; j < ld; j++) a[j] *= j < k ? by : 0;
    a[y[i]] -= scale;
  }
  return sum_of_losses;
}

// Losses of one output against its target; the slope takes the place of the output.
INLINE double sigmoid_log_loss(REAL *a, REAL target) {
  const REAL s = 1 / (1 + exp(-(double)*a)), p = within(s, EPSILON, 1 - EPSILON);
  *a = s - target;
  return -(target * log((double)p) + (1 - target) * log((double)(1 - p)));
}
INLINE double sigmoid_cross_entropy(REAL *a, REAL target) {
  const REAL size = fabs(*a);
  const double loss = (size + *a) / 2 + log1p(exp(-(double)size)) - (double)*a * target;
  *a = 1 / (1 + EXP(-*a)) - target;
  return loss;
}
INLINE double half_squared_error(REAL *a, REAL target) {
  *a -= target;
  return (double)*a * *a / 2;
}
INLINE double perceptron_criterion(REAL *a, REAL target) {
  const REAL sign = 2 * target - 1, slope = sign * *a <= 0 ? -sign : 0;
  const double loss = (double)slope * *a;
  *a = slope;
  return loss;
}
INLINE double absolute_error(REAL *a, REAL target) {
  const REAL error = *a - target;
  *a = error > 0 ? 1 : error < 0 ? -1 : error;  // 0 and NaN stay
  return fabs((double)error);
}
INLINE double huber(REAL *a, REAL target) {
  const REAL error = *a - target, slope = within(error, -1, 1);
  *a = slope;
  return slope * (error - (double)slope / 2);
}
INLINE double poisson_deviance(REAL *a, REAL target) {
  const double y = target, mean = exp((double)*a), loss = (y > 0 ? y * log(y) : 0) - y * *a - y + mean;
  *a = mean - y;
  return loss;
}
#define ADD_LOSSES(of)                    \
  for (int64_t i = 0; i < m; i++)         \
    for (int64_t j = 0; j < k; j++) {     \
      REAL *a = A + i * ld + j;           \
      sum += of(a, targets[i * k + j]);   \
      *a *= scale;                        \
    }

static double loss(int name, REAL *A, const void *y, int64_t m, int64_t k, int64_t ld, REAL scale) {
  const REAL *targets = y;
  double sum = 0;
  switch (name) {
    case SOFTMAX_CROSS_ENTROPY: sum = softmax_cross_entropy(A, y, m, k, ld, scale, 0); break;
    case SOFTMAX_LOG_LOSS: sum = softmax_cross_entropy(A, y, m, k, ld, scale, EPSILON); break;
    case SIGMOID_CROSS_ENTROPY: ADD_LOSSES(sigmoid_cross_entropy) break;
    case SIGMOID_LOG_LOSS: ADD_LOSSES(sigmoid_log_loss) break;
    case HALF_SQUARED_ERROR: ADD_LOSSES(half_squared_error) break;
    case HALF_MEAN_SQUARED_ERROR: ADD_LOSSES(half_squared_error) sum /= k; break;
    case ABSOLUTE_ERROR: ADD_LOSSES(absolute_error) break;
    case HUBER: ADD_LOSSES(huber) break;
    case PERCEPTRON_CRITERION: ADD_LOSSES(perceptron_criterion) break;
    case POISSON_DEVIANCE: ADD_LOSSES(poisson_deviance) break;
  }
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = k; j < ld; j++) A[i * ld + j] = 0;
  return sum;
}

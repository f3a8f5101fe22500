// The losses on independent outputs, with their gradients, in one pass; a thread for each row.
//
// Bound by memory: A and Y are read once and dA is written once. Neighboring threads are on neighboring rows, so with
// many outputs their loads are far apart; the few outputs that such networks have stay in the cache between them.
#include "common.cuh"

constexpr int THREADS = 256;

// Cross-entropy of a target y in [0, 1] and sigmoid(a): stable for any a, as exp never sees a positive number.
struct SigmoidCrossEntropy {
  static __device__ REAL value(REAL a, REAL y) { return (fabs(a) + a) / 2 + log1p(exp(-fabs(a))) - a * y; }
  static __device__ REAL slope(REAL a, REAL y) { return activation::sigmoid::value(a) - y; }
};

struct HalfSquaredError {
  static __device__ REAL value(REAL a, REAL y) { return (a - y) * (a - y) / 2; }
  static __device__ REAL slope(REAL a, REAL y) { return a - y; }
};

// How far a is on the wrong side of zero, for a target y of 0 or 1: zero itself is wrong for both.
struct PerceptronCriterion {
  static __device__ REAL value(REAL a, REAL y) { return slope(a, y) * a; }
  static __device__ REAL slope(REAL a, REAL y) {
    const REAL side = 2 * y - 1;
    return side * a <= 0 ? -side : 0;
  }
};

template <class Loss>
DEVICE void each_row(REAL* sums, const REAL* __restrict__ A, const REAL* __restrict__ Y, REAL* __restrict__ dA,
                     REAL* losses, REAL* totals, int rows, int units) {
  REAL sum = 0;
  for (long long row = (long long)THREADS * blockIdx.x + threadIdx.x; row < rows; row += (long long)THREADS * gridDim.x) {
    REAL loss = 0;
#pragma unroll 2  // more would need more registers than the compiler grants
    for (long long i = row * units; i < (row + 1) * units; ++i) {
      loss += Loss::value(A[i], Y[i]);
      dA[i] = Loss::slope(A[i], Y[i]);
    }
    losses[row] = loss;
    sum += loss;
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < THREADS; ++i) sum += sums[i];
    totals[blockIdx.x] = sum;
  }
}

// Outputs A, targets Y, and dA = d loss / d A (rows, units). losses (rows,). totals (blocks,): each block's sum of losses.
extern "C" __global__ void __launch_bounds__(THREADS)
    sigmoid_cross_entropy(const REAL* A, const REAL* Y, REAL* dA, REAL* losses, REAL* totals, int rows, int units) {
  __shared__ REAL sums[THREADS];
  each_row<SigmoidCrossEntropy>(sums, A, Y, dA, losses, totals, rows, units);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    half_squared_error(const REAL* A, const REAL* Y, REAL* dA, REAL* losses, REAL* totals, int rows, int units) {
  __shared__ REAL sums[THREADS];
  each_row<HalfSquaredError>(sums, A, Y, dA, losses, totals, rows, units);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    perceptron_criterion(const REAL* A, const REAL* Y, REAL* dA, REAL* losses, REAL* totals, int rows, int units) {
  __shared__ REAL sums[THREADS];
  each_row<PerceptronCriterion>(sums, A, Y, dA, losses, totals, rows, units);
}

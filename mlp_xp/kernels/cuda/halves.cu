// Matrices as pairs of float16, see common.cuh: to and fro. Bound by memory, each number read and written once.
#include "common.cuh"

constexpr int THREADS = 256;

// X (rows, columns) -> halves (rows, 2 * columns): the high halves, then the low ones.
extern "C" __global__ void __launch_bounds__(THREADS)
    split_matrix(const float* __restrict__ X, half_bits* __restrict__ halves, int rows, int columns) {
  for (long long row = blockIdx.x; row < rows; row += gridDim.x)
    for (int j = threadIdx.x; j < columns; j += THREADS) {
      const Halves x = split(X[row * columns + j]);
      halves[2 * row * columns + j] = x.high;
      halves[(2 * row + 1) * columns + j] = x.low;
    }
}

// Products (rows, 2 * columns) of whole pixels with the halves of a matrix -> Z (rows, columns): the product of
// pixels / 255 with the matrix, added to Z if `accumulate`.
extern "C" __global__ void __launch_bounds__(THREADS)
    join_products(const float* __restrict__ products, float* __restrict__ Z, int rows, int columns, int accumulate) {
  for (long long row = blockIdx.x; row < rows; row += gridDim.x)
    for (int j = threadIdx.x; j < columns; j += THREADS) {
      const float z = join(products[2 * row * columns + j], products[(2 * row + 1) * columns + j]);
      Z[row * columns + j] = accumulate ? Z[row * columns + j] + z : z;
    }
}

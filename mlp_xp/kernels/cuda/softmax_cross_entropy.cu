// Softmax, cross-entropy, and its gradient in one pass over the logits, a warp for each row.
//
// Bound by memory, which holds few numbers here: with ten classes two thirds of a warp idle, and the logits of 60,000 rows
// are still only 2.4 MB. In return it takes any number of classes.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;
constexpr unsigned ALL = 0xffffffff;

// Every lane gets the sum, and the same bits of it.
DEVICE REAL warp_sum(REAL v) {
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(ALL, v, distance);
  return v;
}

// Every lane gets the greatest value.
DEVICE REAL warp_max(REAL v) {
  for (int distance = 16; distance > 0; distance /= 2) {
    const REAL other = __shfl_xor_sync(ALL, v, distance);
    v = other > v ? other : v;
  }
  return v;
}

// Logits Z (rows, classes), labels y (rows,) in [0, classes). dZ (rows, classes) = softmax(Z) - Y. losses (rows,).
// totals (blocks,): each block's sum of losses.
//
// The 1 lets ptxas take more registers than it does unasked: doubles would spill some on compute capability 12.0.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    softmax_cross_entropy(const REAL* __restrict__ Z, const int* __restrict__ y, REAL* __restrict__ dZ, REAL* losses,
                          REAL* totals, int rows, int classes) {
  __shared__ REAL sums[WARPS];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  REAL loss_sum = 0;
  for (long long row = (long long)WARPS * blockIdx.x + warp; row < rows; row += (long long)WARPS * gridDim.x) {
    const REAL* z = Z + row * classes;
    REAL* dz = dZ + row * classes;
    const int label = y[row];

    REAL top = LOWEST;
    for (int c = lane; c < classes; c += 32) top = z[c] > top ? z[c] : top;
    top = warp_max(top);

    // Shifted by the greatest logit, exp cannot overflow and the sum is at least 1: its logarithm is finite.
    REAL sum = 0, at_label = 0;
    for (int c = lane; c < classes; c += 32) {
      const REAL shifted = z[c] - top;
      if (c == label) at_label = shifted;
      dz[c] = exp(shifted);
      sum += dz[c];
    }
    sum = warp_sum(sum);
    const REAL loss = log(sum) - warp_sum(at_label);

    for (int c = lane; c < classes; c += 32) dz[c] = dz[c] / sum - (c == label);
    if (lane == 0) losses[row] = loss;
    loss_sum += loss;
  }

  if (lane == 0) sums[warp] = loss_sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    REAL total = 0;
    for (int w = 0; w < WARPS; ++w) total += sums[w];
    totals[blockIdx.x] = total;
  }
}

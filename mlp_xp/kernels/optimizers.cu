// Updates of the flat parameter vector, which first add up what the shards left behind: one launch for all layers.
//
// Nothing here waits for the host: learning rates come from a schedule on the device, at a step that `tick` counts, so
// that one CUDA graph replays any number of steps.
#include "common.cuh"

constexpr int THREADS = 256;

// Parameters from the end of the range before to `end`, and where their gradient is. Ranges are in order, without gaps.
struct Range {
  long long end;
  const REAL* gradient;  // of the range's first parameter, by the first shard
  long long stride;      // from one shard to the next
  int shards;
  int is_bias;           // 0 or 1: biases have a learning rate of their own, and no l2
};

// Learning rates: rates (length, 2), of weights and of biases. Each holds for `period` steps, the last from then on.
struct Schedule {
  const REAL* rates;
  int length, period;
};

// What one thread needs to update one parameter.
struct Update {
  int parameter;
  bool mine;      // whether it is for this thread to update `parameter`
  bool is_bias;
  REAL gradient;  // mean over rows
  REAL rate;      // learning rate
};

// Thread row y of the block (threadIdx.y) sums shards y, y + blockDim.y, ...; thread row 0 adds up the thread rows: a
// fixed order. All threads of the block must call it, with blockDim.x * blockDim.y == THREADS.
DEVICE Update prepare(REAL* sums, const Range* ranges, Schedule schedule, int step, int parameters, REAL scale) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool inside = i < parameters;
  Range range = {};
  REAL sum = 0;
  if (inside) {
    long long begin = 0;
    for (range = *ranges; i >= range.end; range = *++ranges) begin = range.end;
#pragma unroll 8
    for (int shard = threadIdx.y; shard < range.shards; shard += blockDim.y)
      sum += range.gradient[shard * range.stride + (i - begin)];
  }
  sums[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0)
    for (int y = 1; y < blockDim.y; ++y) sum += sums[y * blockDim.x + threadIdx.x];
  const int entry = min(step / schedule.period, schedule.length - 1);
  return {i, inside && threadIdx.y == 0, range.is_bias != 0, sum * scale, schedule.rates[2 * entry + range.is_bias]};
}

// v = momentum v + g;  theta -= rate (nesterov ? g + momentum v : v), with g = mean gradient, + l2 theta for weights.
// velocity (parameters,), or null for no momentum. *step counts from 0. scale is 1 / number of rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    sgd(REAL* theta, REAL* velocity, const Range* ranges, const REAL* rates, const int* step, int length, int period,
        int parameters, REAL scale, REAL l2, REAL momentum, int nesterov) {
  __shared__ REAL sums[THREADS];
  const Update u = prepare(sums, ranges, {rates, length, period}, *step, parameters, scale);
  if (!u.mine) return;
  const int i = u.parameter;
  REAL g = u.gradient + (u.is_bias ? 0 : l2 * theta[i]);
  if (velocity) {
    const REAL v = momentum * velocity[i] + g;
    velocity[i] = v;
    g = nesterov ? g + momentum * v : v;
  }
  theta[i] -= u.rate * g;
}

// 1 - beta^t from 1 - beta.
DEVICE REAL one_minus_power(REAL one_minus_beta, REAL t) { return -expm1(t * log1p(-one_minus_beta)); }

// Adam (Kingma and Ba 2015, algorithm 1) with g = mean gradient, + l2 theta for weights; AdamW (Loshchilov and Hutter
// 2019, algorithm 2) with decay > 0. mean and square (parameters,). *step counts from 0. scale is 1 / number of rows.
// The host passes 1 - beta: it has the digits that a float beta near 1 has lost.
extern "C" __global__ void __launch_bounds__(THREADS)
    adam(REAL* theta, REAL* mean, REAL* square, const Range* ranges, const REAL* rates, const int* step, int length,
         int period, int parameters, REAL scale, REAL l2, REAL decay, REAL one_minus_beta1, REAL one_minus_beta2,
         REAL epsilon) {
  __shared__ REAL sums[THREADS];
  const Update u = prepare(sums, ranges, {rates, length, period}, *step, parameters, scale);
  if (!u.mine) return;
  const int i = u.parameter;
  const REAL t = *step + 1;
  const REAL g = u.gradient + (u.is_bias ? 0 : l2 * theta[i]);
  mean[i] += one_minus_beta1 * (g - mean[i]);
  square[i] += one_minus_beta2 * (g * g - square[i]);
  const REAL direction = mean[i] / one_minus_power(one_minus_beta1, t);
  const REAL size = sqrt(square[i] / one_minus_power(one_minus_beta2, t));
  theta[i] -= u.rate * (direction / (size + epsilon) + decay * theta[i]);
}

// Close a step, with one block: history[*step % capacity] = the sum of the pairs (loss, hits) in totals (count, 2), and
// *step += 1. history (capacity, 2).
extern "C" __global__ void __launch_bounds__(THREADS)
    tick(int* step, const REAL* totals, int count, REAL* history, int capacity) {
  __shared__ REAL sums[2][THREADS];
  REAL loss = 0, hits = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) {
    loss += totals[2 * i];
    hits += totals[2 * i + 1];
  }
  sums[0][threadIdx.x] = loss;
  sums[1][threadIdx.x] = hits;
  __syncthreads();
  if (threadIdx.x < 2) {
    REAL sum = 0;
    for (int i = 0; i < THREADS; ++i) sum += sums[threadIdx.x][i];
    history[2 * (*step % capacity) + threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) *step += 1;
}

// Updates of the flat parameter vector, which first add up what the shards left behind: one launch for all layers.
//
// Bound by memory, or for the usual 155,830 parameters by the time of a launch (some microseconds): hence one kernel for
// the sum over shards, the penalty, and the update.
//
// Nothing here waits for the host: learning rates and the number of the step are read from the device, so that one CUDA
// graph replays any number of steps.
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

// Return the range of parameter i, and where it begins.
DEVICE Range find(const Range* ranges, long long i, long long& begin) {
  begin = 0;
  for (; i >= ranges->end; ++ranges) begin = ranges->end;
  return *ranges;
}

// Sum of part[0], part[stride], ..., in a fixed order, for the threads with threadIdx.y == 0: thread row y of the block
// sums shards y, y + blockDim.y, ...; thread row 0 adds up the thread rows. All threads of the block must call it, with
// blockDim.x * blockDim.y == THREADS.
DEVICE REAL add_up(REAL* sums, const REAL* part, long long stride, int shards) {
  REAL sum = 0;
#pragma unroll 8
  for (int shard = threadIdx.y; shard < shards; shard += blockDim.y) sum += part[shard * stride];
  sums[threadIdx.y * blockDim.x + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0)
    for (int y = 1; y < blockDim.y; ++y) sum += sums[y * blockDim.x + threadIdx.x];
  return sum;
}

// into[i] = the sum over shards of parts[shard * stride + i], for i < count; added to into[i] if `accumulate`.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_shards(REAL* into, const REAL* parts, int stride, int shards, int count, int accumulate) {
  __shared__ REAL sums[THREADS];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const REAL sum = add_up(sums, parts + i, stride, i < count ? shards : 0);
  if (i < count && threadIdx.y == 0) into[i] = accumulate ? into[i] + sum : sum;
}

// into[i] = the sum of what the ranges have of i, for i < count: what ranks tell one another.
extern "C" __global__ void __launch_bounds__(THREADS) collect(REAL* into, const Range* ranges, int count) {
  __shared__ REAL sums[THREADS];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  long long begin = 0;
  const Range range = i < count ? find(ranges, i, begin) : Range{};
  const REAL sum = add_up(sums, range.gradient + (i - begin), range.stride, range.shards);
  if (i < count && threadIdx.y == 0) into[i] = sum;
}

// What one thread needs to update one parameter.
struct Update {
  int parameter;
  bool mine;      // whether it is for this thread to update `parameter`
  bool is_bias;
  REAL gradient;  // mean over rows, with the l2 term's
  REAL rate;      // learning rate
};

DEVICE Update prepare(REAL* sums, const REAL* theta, const Range* ranges, const REAL* rates, int parameters, REAL scale,
                      REAL l2) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const bool inside = i < parameters;
  long long begin = 0;
  const Range range = inside ? find(ranges, i, begin) : Range{};
  const REAL sum = add_up(sums, range.gradient + (i - begin), range.stride, range.shards);
  const bool mine = inside && threadIdx.y == 0;  // the other thread rows would read what this one is updating
  const REAL penalty = mine && !range.is_bias ? l2 * theta[i] : 0;
  return {i, mine, range.is_bias != 0, sum * scale + penalty, rates[range.is_bias]};
}

// v = momentum v + g;  theta -= rate (nesterov ? g + momentum v : v), with g = mean gradient, + l2 theta for weights.
// velocity (parameters,), or null for no momentum. gradient (parameters,) is given g. rates (2,), of weights and of
// biases. scale is 1 / number of rows.
extern "C" __global__ void __launch_bounds__(THREADS)
    sgd(REAL* theta, REAL* velocity, REAL* gradient, const Range* ranges, const REAL* rates, int parameters, REAL scale,
        REAL l2, REAL momentum, int nesterov) {
  __shared__ REAL sums[THREADS];
  const Update u = prepare(sums, theta, ranges, rates, parameters, scale, l2);
  if (!u.mine) return;
  const int i = u.parameter;
  REAL direction = u.gradient;
  gradient[i] = u.gradient;
  if (velocity) {
    const REAL v = momentum * velocity[i] + u.gradient;
    velocity[i] = v;
    direction = nesterov ? u.gradient + momentum * v : v;
  }
  theta[i] -= u.rate * direction;
}

// 1 - beta^t from 1 - beta.
DEVICE REAL one_minus_power(REAL one_minus_beta, REAL t) { return -expm1(t * log1p(-one_minus_beta)); }

// Adam (Kingma and Ba 2015, algorithm 1) with g = mean gradient, + l2 theta for weights; AdamW (Loshchilov and Hutter
// 2019, algorithm 2) with decay > 0. mean and square (parameters,). *step: updates before this one. The rest is as for
// sgd.
// The host passes 1 - beta: it has the digits that a float beta near 1 has lost.
extern "C" __global__ void __launch_bounds__(THREADS)
    adam(REAL* theta, REAL* mean, REAL* square, REAL* gradient, const Range* ranges, const REAL* rates, const int* step,
         int parameters, REAL scale, REAL l2, REAL decay, REAL one_minus_beta1, REAL one_minus_beta2, REAL epsilon) {
  __shared__ REAL sums[THREADS];
  const Update u = prepare(sums, theta, ranges, rates, parameters, scale, l2);
  if (!u.mine) return;
  const int i = u.parameter;
  const REAL t = *step + 1, g = u.gradient;
  gradient[i] = g;
  mean[i] += one_minus_beta1 * (g - mean[i]);
  square[i] += one_minus_beta2 * (g * g - square[i]);
  const REAL direction = mean[i] / one_minus_power(one_minus_beta1, t);
  const REAL size = sqrt(square[i] / one_minus_power(one_minus_beta2, t));
  theta[i] -= u.rate * (direction / (size + epsilon) + decay * theta[i]);
}

// totals (blocks,): factor times each block's sum of squared weights, for `tick` to add to the losses.
extern "C" __global__ void __launch_bounds__(THREADS)
    squared_weights(const REAL* theta, const Range* ranges, REAL* totals, int parameters, REAL factor) {
  __shared__ REAL sums[THREADS];
  REAL sum = 0;
  for (int i = blockIdx.x * THREADS + threadIdx.x; i < parameters; i += gridDim.x * THREADS) {
    long long begin;
    if (!find(ranges, i, begin).is_bias) sum += theta[i] * theta[i];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < THREADS; ++i) sum += sums[i];
    totals[blockIdx.x] = factor * sum;
  }
}

// Close a step, with one block: what is in totals (count,) is added to *sum, which every epoch of `updates` steps begins
// anew. step (2,): steps before this one, and those of this epoch; counted on.
//
// *sum is a double even for floats: a float that has grown to the sum of 200,000 losses would lose five digits of each
// loss that is added to it. One such addition a step costs nothing, even on GPUs with slow doubles.
extern "C" __global__ void __launch_bounds__(THREADS)
    tick(int* step, const REAL* totals, int count, double* sum, int updates) {
  __shared__ REAL sums[THREADS];
  REAL loss = 0;
  for (int i = threadIdx.x; i < count; i += THREADS) loss += totals[i];
  sums[threadIdx.x] = loss;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < THREADS; ++i) loss += sums[i];
  *sum = (step[1] == 0 ? 0 : *sum) + loss;
  step[0] += 1;
  step[1] = (step[1] + 1) % updates;
}

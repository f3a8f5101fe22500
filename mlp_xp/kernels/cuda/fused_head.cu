// Everything between the two large matrix products of a network with one hidden layer and a softmax, in one launch.
//
// Given the hidden layer's Z1 = A0 W1' it does what is local to a row: the hidden activation, the logits, softmax and
// cross-entropy, and back through both layers to dZ1. On the way it sums the gradients of W2, b2 and b1. Z1 is read once
// and dZ1 written once; kernels and products in sequence move four times as many bytes. It is bound by that memory: for
// the 8 bytes of a hidden unit it does 3 CLASSES multiply-adds, which ten classes hide behind the loads and stores.
//
// Macros besides ACTIVATION:
//   HIDDEN   units of the hidden layer: a multiple of 4, at most 256
//   CLASSES  from 2 to 16
//   TILE     rows in shared memory at a time, 64 or 32: 32 for devices with less shared memory
//   HALVES   1 if Z1 comes as products with both halves of W1 and dZ1 leaves as its halves, see common.cuh; else 0
// Numbers are floats. A block needs sizeof(Shared) bytes of dynamic shared memory and THREADS threads.
//
// Legend: n rows in the tile, h hidden units, k classes.
#include "common.cuh"

#ifndef TILE
#define TILE 64
#endif

DEVICE constexpr int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

constexpr int THREADS = HIDDEN > TILE ? round_up(HIDDEN, 32) : TILE;
constexpr int WARPS = THREADS / 32;
constexpr int ROWS_PER_LANE = TILE / 32;
constexpr int QUADS = HIDDEN / 4;
constexpr int STRIDE = QUADS % 2 ? HIDDEN : HIDDEN + 4;  // of odd length in quads, 8 rows meet 32 different banks
constexpr int PADDED = round_up(CLASSES, 4);
constexpr int WIDTH = HALVES ? 2 * HIDDEN : HIDDEN;  // of a row of Z1 and dZ1: the high halves, then the low ones

#if HALVES
using Gradient = half_bits;
#else
using Gradient = float;
#endif

static_assert(sizeof(REAL) == 4, "fused_head computes in float");
static_assert(HIDDEN % 4 == 0 && HIDDEN >= 4 && HIDDEN <= 256, "HIDDEN must be a multiple of 4 from 4 to 256");
static_assert(CLASSES >= 2 && CLASSES <= 16, "CLASSES must be from 2 to 16");
static_assert(TILE == 32 || TILE == 64, "TILE must be 32 or 64");

struct alignas(16) Shared {
  float A[TILE][STRIDE];               // hidden outputs                   (n, h)
  float b1[HIDDEN];                    // hidden biases                    (h,)
  float W[HIDDEN][PADDED];             // output weights, transposed       (h, k)
  float dZ[TILE][PADDED];              // gradient at the logits           (n, k)
  float logits[WARPS][CLASSES][TILE];  // each warp's share of the logits  (k, n)
  float sums[CLASSES + 1][TILE];       // at the end, of each thread of the softmax: db2 and loss
};

// What a thread of the softmax, one for each row of the tile, adds up over all tiles.
struct RowSums {
  float db2[CLASSES] = {};
  float loss = 0;
};

// What a thread of the backward pass, one for each hidden unit, adds up over all rows.
struct UnitSums {
  float dW2[CLASSES] = {};
  float db1 = 0;
};

// A = g(Z1 + b1) for the rows of the tile. The rows after the last keep what they had; nothing reads their logits.
DEVICE void hidden_outputs(Shared& s, const float* Z1, int n) {
#pragma unroll 4
  for (int i = threadIdx.x; i < n * QUADS; i += THREADS) {
    const int row = i / QUADS, unit = i % QUADS * 4;
    Pack<4> z = *reinterpret_cast<const Pack<4>*>(Z1 + row * WIDTH + unit);
#if HALVES
    const Pack<4> low = *reinterpret_cast<const Pack<4>*>(Z1 + row * WIDTH + HIDDEN + unit);
#pragma unroll
    for (int j = 0; j < 4; ++j) z.x[j] = join(z.x[j], low.x[j]);
#endif
#pragma unroll
    for (int j = 0; j < 4; ++j) z.x[j] = Activation::value(z.x[j] + s.b1[unit + j]);
    *reinterpret_cast<Pack<4>*>(&s.A[row][unit]) = z;
  }
}

// Logits without bias: each warp takes its share of the hidden units, each lane its rows.
DEVICE void partial_logits(Shared& s) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float z[ROWS_PER_LANE][CLASSES] = {};
  for (int quad = warp; quad < QUADS; quad += WARPS) {
    Pack<4> a[ROWS_PER_LANE];
#pragma unroll
    for (int r = 0; r < ROWS_PER_LANE; ++r) a[r] = *reinterpret_cast<const Pack<4>*>(&s.A[lane + 32 * r][4 * quad]);
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int c = 0; c < CLASSES; ++c)
#pragma unroll
        for (int r = 0; r < ROWS_PER_LANE; ++r) z[r][c] += a[r].x[j] * s.W[4 * quad + j][c];
  }
#pragma unroll
  for (int c = 0; c < CLASSES; ++c)
#pragma unroll
    for (int r = 0; r < ROWS_PER_LANE; ++r) s.logits[warp][c][lane + 32 * r] = z[r][c];
}

// dZ2 = softmax(logits) - Y for one row. Loops over classes unroll, so that z stays in registers.
DEVICE void softmax_row(Shared& s, RowSums& sums, const float* b2, int row, int label) {
  float z[CLASSES], top = LOWEST;
#pragma unroll
  for (int c = 0; c < CLASSES; ++c) {
    z[c] = b2[c];
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) z[c] += s.logits[warp][c][row];
    top = z[c] > top ? z[c] : top;
  }
  float sum = 0, at_label = 0;
#pragma unroll
  for (int c = 0; c < CLASSES; ++c) {
    const float shifted = z[c] - top;  // at most 0: exp cannot overflow
    if (c == label) at_label = shifted;
    z[c] = exp(shifted);
    sum += z[c];
  }
  const float scale = 1 / sum;
#pragma unroll
  for (int c = 0; c < CLASSES; ++c) {
    const float dz = z[c] * scale - (c == label);
    s.dZ[row][c] = dz;
    sums.db2[c] += dz;
  }
  sums.loss += log(sum) - at_label;
}

// dW2 += A dZ2, dZ1 = (dZ2 W2) * g'(Z1), db1 += dZ1 for one hidden unit and the n rows of the tile.
DEVICE void backward_unit(const Shared& s, UnitSums& sums, Gradient* dZ1, int unit, int n) {
  float w[CLASSES];
#pragma unroll
  for (int c = 0; c < CLASSES; ++c) w[c] = s.W[unit][c];
#pragma unroll 4
  for (int row = 0; row < n; ++row) {
    const float a = s.A[row][unit];
    float da = 0;
#pragma unroll
    for (int c = 0; c < CLASSES; ++c) {
      da += s.dZ[row][c] * w[c];
      sums.dW2[c] += s.dZ[row][c] * a;
    }
    const float dz = da * Activation::derivative(a);
    sums.db1 += dz;
#if HALVES
    const Halves halves = split(dz);
    dZ1[row * WIDTH + unit] = halves.high;
    dZ1[row * WIDTH + HIDDEN + unit] = halves.low;
#else
    dZ1[row * WIDTH + unit] = dz;
#endif
  }
}

// Z (rows, WIDTH), on a 16-byte boundary: Z1 without its bias. dZ (rows, WIDTH): dZ1, may be Z itself if not HALVES.
// b1 (HIDDEN,), b2 (CLASSES,), W2 transposed (HIDDEN, CLASSES), labels y (rows,) in [0, CLASSES).
// gradients (blocks, HIDDEN + CLASSES + HIDDEN * CLASSES): each block's sums db1, db2 and dW2, transposed as W2 is.
// totals (blocks,): each block's sum of losses.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    fused_head(const float* Z, Gradient* dZ, const float* __restrict__ b1, const float* __restrict__ b2,
               const float* __restrict__ W2, const int* __restrict__ y, float* gradients, float* totals, int rows) {
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int thread = threadIdx.x;
  for (int i = thread; i < HIDDEN * CLASSES; i += THREADS) s.W[i / CLASSES][i % CLASSES] = W2[i];
  if (thread < HIDDEN) s.b1[thread] = b1[thread];
  __syncthreads();
  RowSums row_sums;
  UnitSums unit_sums;

  const int tiles = (rows + TILE - 1) / TILE;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int first = tile * TILE, n = min(TILE, rows - first);
    hidden_outputs(s, Z + (long long)first * WIDTH, n);
    __syncthreads();
    partial_logits(s);
    __syncthreads();
    if (thread < n) softmax_row(s, row_sums, b2, thread, y[first + thread]);
    __syncthreads();
    if (thread < HIDDEN) backward_unit(s, unit_sums, dZ + (long long)first * WIDTH, thread, n);
    __syncthreads();  // A and dZ are free for the next tile
  }

  float* db1 = gradients + (long long)blockIdx.x * (HIDDEN + CLASSES + HIDDEN * CLASSES);
  float* db2 = db1 + HIDDEN;
  float* dW2 = db2 + CLASSES;
  if (thread < HIDDEN) {
    db1[thread] = unit_sums.db1;
    for (int c = 0; c < CLASSES; ++c) dW2[thread * CLASSES + c] = unit_sums.dW2[c];
  }
  if (thread < TILE) {
    for (int c = 0; c < CLASSES; ++c) s.sums[c][thread] = row_sums.db2[c];
    s.sums[CLASSES][thread] = row_sums.loss;
  }
  __syncthreads();
  if (thread < CLASSES + 1) {
    float sum = 0;
    for (int row = 0; row < TILE; ++row) sum += s.sums[thread][row];
    if (thread < CLASSES)
      db2[thread] = sum;
    else
      totals[blockIdx.x] = sum;
  }
}

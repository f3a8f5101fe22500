// The two sweeps over a hidden layer that are not matrix products. Matrices are (rows, units), C order, with no gap
// between rows and on a 16-byte boundary.
//
// Both are bound by memory: the first reads and writes Z once, the second reads dA and A and writes dZ. What counts is
// wide loads, and to make no second pass for the sum over rows: CuPy's sum(axis=0) starts a block for every 32 columns and
// leaves most of a GPU idle (cupy/cupy#5194).
//
// Both kernels cut a row into packs and give each thread one column of packs, for a lane of rows: where a row has
// fewer packs than the block has threads, the block works on several rows at once; where it has more, in chunks.
// So a thread fetches its bias once, finds its place without dividing, and neighbors read neighboring addresses.
#include "common.cuh"

constexpr int THREADS = 256;
constexpr int WIDE = 16 / sizeof(REAL);  // numbers in the widest load there is

struct Place {
  int width;   // packs of a row that the block works on at once
  int lanes;   // rows that it works on at once
  int lane;    // this thread's; equal to `lanes` in the few threads left over
  int column;  // this thread's pack within the row
};

DEVICE Place place(int packs, int chunk) {
  const int width = min(packs - chunk, THREADS);
  const int thread = threadIdx.x;
  return {width, THREADS / width, min(thread / width, THREADS / width), chunk + thread % width};
}

// ---------------------------------------------------------------------------------------------------------------------
// A = g(Z + b), in place.

template <int N>
DEVICE void bias_activation_by(REAL* Z, const REAL* b, int rows, int units) {
  const int packs = units / N;
  Pack<N>* matrix = reinterpret_cast<Pack<N>*>(Z);
  for (int chunk = 0; chunk < packs; chunk += THREADS) {
    const Place p = place(packs, chunk);
    if (p.lane == p.lanes) continue;
    Pack<N> bias;
    for (int j = 0; j < N; ++j) bias.x[j] = b ? b[p.column * N + j] : 0;
    const long long stride = (long long)p.lanes * gridDim.x;
    for (long long row = (long long)p.lanes * blockIdx.x + p.lane; row < rows; row += stride) {
      Pack<N> z = matrix[row * packs + p.column];
      for (int j = 0; j < N; ++j) z.x[j] = Activation::value(z.x[j] + bias.x[j]);
      matrix[row * packs + p.column] = z;
    }
  }
}

// Z (rows, units), b (units,) or null for none.
extern "C" __global__ void __launch_bounds__(THREADS) bias_activation(REAL* Z, const REAL* b, int rows, int units) {
  if (units % WIDE == 0)
    bias_activation_by<WIDE>(Z, b, rows, units);
  else
    bias_activation_by<1>(Z, b, rows, units);
}

// ---------------------------------------------------------------------------------------------------------------------
// dZ = dA * g'(Z), in place, and db = the column sums of dZ.
//
// The order of additions is fixed, so the result is the same to the last bit in every run with the same grid: each
// thread sums its lane of rows, the block its lanes, and the block that happens to finish last the blocks' sums.

// Add up rows [begin, end) of source(row, column), packs of N, and hand each column's sum to sink(column, sum).
template <int N, class Source, class Sink>
DEVICE void add_columns(Pack<N>* sums, int packs, int begin, int end, Source source, Sink sink) {
  for (int chunk = 0; chunk < packs; chunk += THREADS) {
    const Place p = place(packs, chunk);
    if (p.lane < p.lanes) {
      Pack<N> sum = {};
#pragma unroll 2
      for (int row = begin + p.lane; row < end; row += p.lanes) {
        const Pack<N> v = source(row, p.column);
        for (int j = 0; j < N; ++j) sum.x[j] += v.x[j];
      }
      sums[threadIdx.x] = sum;
    }
    __syncthreads();  // one is enough: only in the last chunk does a thread read what others wrote
    if (p.lane == 0) {
      Pack<N> sum = {};
      for (int lane = 0; lane < p.lanes; ++lane)
        for (int j = 0; j < N; ++j) sum.x[j] += sums[lane * p.width + threadIdx.x].x[j];
      sink(p.column, sum);
    }
  }
}

template <int N>
DEVICE void activation_gradient_by(Pack<N>* sums, bool* last, REAL* dZ, const REAL* __restrict__ A, REAL* partial,
                                   REAL* db, unsigned* ticket, int rows, int units) {
  const int packs = units / N;
  const int share = (rows + gridDim.x - 1) / gridDim.x;
  const int begin = min((long long)rows, (long long)share * blockIdx.x);
  Pack<N>* gradients = reinterpret_cast<Pack<N>*>(dZ);
  const Pack<N>* outputs = reinterpret_cast<const Pack<N>*>(A);
  Pack<N>* block_sums = reinterpret_cast<Pack<N>*>(partial);

  add_columns(
      sums, packs, begin, min(share, rows - begin) + begin,
      [=](int row, int column) {
        Pack<N> g = gradients[(long long)row * packs + column];
        const Pack<N> a = outputs[(long long)row * packs + column];
        for (int j = 0; j < N; ++j) g.x[j] *= Activation::derivative(a.x[j]);
        gradients[(long long)row * packs + column] = g;
        return g;
      },
      [=](int column, const Pack<N>& sum) { block_sums[(long long)blockIdx.x * packs + column] = sum; });

  __threadfence();  // this block's sums are visible before its ticket is drawn
  __syncthreads();
  // The counter wraps to 0 at the last ticket: ready for the next launch, also inside a CUDA graph.
  if (threadIdx.x == 0) *last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();

  add_columns(
      sums, packs, 0, gridDim.x, [=](int block, int column) { return block_sums[(long long)block * packs + column]; },
      [=](int column, const Pack<N>& sum) {
        for (int j = 0; j < N; ++j) db[column * N + j] = sum.x[j];
      });
}

// dZ (rows, units): dA on entry. A (rows, units). db (units,) is overwritten.
// partial (blocks, units) is scratch on a 16-byte boundary. *ticket is 0, on entry and on return.
extern "C" __global__ void __launch_bounds__(THREADS)
    activation_gradient(REAL* dZ, const REAL* A, REAL* partial, REAL* db, unsigned* ticket, int rows, int units) {
  __shared__ Pack<WIDE> sums[THREADS];
  __shared__ bool last;
  if (units % WIDE == 0)
    activation_gradient_by<WIDE>(sums, &last, dZ, A, partial, db, ticket, rows, units);
  else
    activation_gradient_by<1>(reinterpret_cast<Pack<1>*>(sums), &last, dZ, A, partial, db, ticket, rows, units);
}

// The rows of a batch, gathered in the order of the epoch and made the numbers that the first product takes.
//
// Bound by memory: each row is read once, by neighboring threads. Bytes are converted on the way, because cuBLAS
// multiplies no bytes into floats.
//
// Macros besides REAL:
//   INPUT   byte or REAL: the type of the data
//   ENTRY   REAL, or half_bits for bytes only: the type of the batch
//   TARGET  int for labels, REAL for other targets
#include "common.cuh"

constexpr int THREADS = 256;

template <class T, int N>
struct alignas(N * sizeof(T)) Items {
  T x[N];
};

DEVICE void convert(byte x, REAL& a) { a = x * PIXEL; }
DEVICE void convert(byte x, half_bits& a) { a = to_half(x); }  // a whole number; the product is divided by 255
DEVICE void convert(REAL x, REAL& a) { a = x; }

template <int N>
DEVICE void copy_row(const INPUT* x, ENTRY* a, int columns) {
  for (int i = threadIdx.x; i < columns / N; i += THREADS) {
    const Items<INPUT, N> from = reinterpret_cast<const Items<INPUT, N>*>(x)[i];
    Items<ENTRY, N> to;
    for (int j = 0; j < N; ++j) convert(from.x[j], to.x[j]);
    reinterpret_cast<Items<ENTRY, N>*>(a)[i] = to;
  }
}

// Row i of the batch is row order[first + i] of the data, or row first + i if there is no order; `first` is `offset`
// rows into the batch that this step of the epoch is about. step (2,), or null for the first step: steps before this
// one, and those of this epoch. X (n, columns), on a boundary of 4 numbers. y (n, width). order (n,) or null.
// A (rows, columns). T (rows, width). Where `width` is 0, y and T may be null.
extern "C" __global__ void __launch_bounds__(THREADS)
    gather(const INPUT* __restrict__ X, const TARGET* __restrict__ y, const int* __restrict__ order, const int* step,
           ENTRY* __restrict__ A, TARGET* __restrict__ T, int batch_size, int offset, int rows, int columns,
           int width) {
  const int first = (step ? step[1] * batch_size : 0) + offset;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const long long source = order ? order[first + row] : first + row;
    const INPUT* x = X + source * columns;
    ENTRY* a = A + (long long)row * columns;
    if (columns % 4 == 0)
      copy_row<4>(x, a, columns);
    else
      copy_row<1>(x, a, columns);
    for (int j = threadIdx.x; j < width; j += THREADS) T[(long long)row * width + j] = y[source * width + j];
  }
}

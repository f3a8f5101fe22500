// cuBLAS's matrix products, by NumPy's BLAS. The types are cuBLAS's by size; its header is in a wheel of half a gigabyte.
#include <cstring>

#include "emulator.h"

enum Status { SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { FLOAT = 0, DOUBLE = 1, HALF = 2, BFLOAT = 14 };                            // cudaDataType_t
enum Compute { AS_FLOAT = 68, AS_DOUBLE = 70, BY_BFLOAT = 75, BY_TF32 = 77 };  // cublasComputeType_t

using Gemm = void (*)(const char*, const char*, const long*, const long*, const long*, const void*, const void*,
                      const long*, const void*, const long*, const void*, void*, const long*);
static Gemm sgemm, dgemm;
API void emulated_blas(Gemm single_precision, Gemm double_precision) {
  sgemm = single_precision;
  dgemm = double_precision;
}

struct Handle {
  int device = current;
  cudaStream_t stream = nullptr;
  int pointer_mode = 0, math_mode = 0;
  void* workspace = nullptr;
};
API int cublasCreate_v2(Handle** handle) { *handle = new Handle; return SUCCESS; }
API int cublasDestroy_v2(Handle* handle) {  // waits for the device, whether or not that may be waited for now
  cudaDeviceSynchronize();
  delete handle;
  return SUCCESS;
}
API int cublasSetStream_v2(Handle* handle, cudaStream_t stream) {
  LOCK;
  Stream* known = stream_of(stream);
  if (!known || known->device != handle->device) return INVALID_VALUE;
  handle->stream = stream;
  handle->workspace = nullptr;  // it goes with the stream
  return SUCCESS;
}
API int cublasGetStream_v2(Handle* handle, cudaStream_t* stream) { *stream = handle->stream; return SUCCESS; }
API int cublasSetWorkspace_v2(Handle* handle, void* p, size_t bytes) {
  LOCK;
  if (!on_device(p, bytes, handle->device) || reinterpret_cast<size_t>(p) % 256) return INVALID_VALUE;
  handle->workspace = p;
  return SUCCESS;
}
API int cublasSetPointerMode_v2(Handle* handle, int mode) { handle->pointer_mode = mode; return SUCCESS; }
API int cublasGetPointerMode_v2(Handle* handle, int* mode) { *mode = handle->pointer_mode; return SUCCESS; }
API int cublasSetMathMode(Handle* handle, int mode) { handle->math_mode = mode; return SUCCESS; }
API int cublasGetMathMode(Handle* handle, int* mode) { *mode = handle->math_mode; return SUCCESS; }
API int cublasGetVersion_v2(Handle*, int* version) { *version = 10 * CUDART_VERSION; return SUCCESS; }
API const char* cublasGetStatusString(int status) { return status == INVALID_VALUE ? "invalid value" : "not supported"; }
API const char* cublasGetStatusName(int status) { return cublasGetStatusString(status); }

static long width(int type) { return type == DOUBLE ? 8 : type == FLOAT ? 4 : 2; }

static float number(const void* p, long i, int type) {
  if (type == FLOAT) return static_cast<const float*>(p)[i];
  if (type == HALF) return static_cast<const _Float16*>(p)[i];
  const unsigned bits = static_cast<const unsigned short*>(p)[i] << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
static float rounded(float x, int digits) {  // to so many binary digits of mantissa, to the nearest even number
  unsigned bits;
  memcpy(&bits, &x, 4);
  const int dropped = 23 - digits;
  if (!dropped || (bits & 0x7f800000) == 0x7f800000) return x;
  bits += (1u << (dropped - 1)) - 1 + (bits >> dropped & 1);
  bits &= ~0u << dropped;
  memcpy(&x, &bits, 4);
  return x;
}

struct Factor {  // column-major, transposed or not
  const void* p;
  long rows, columns, leading;
  int type;
  bool transposed;

  bool is_on(int device) const {
    return !rows || !columns || on_device(p, width(type) * (leading * (columns - 1) + rows), device);
  }
  std::vector<float> numbers(int digits) const {
    std::vector<float> x(rows * columns);
    for (long j = 0; j < columns; ++j)
      for (long i = 0; i < rows; ++i) x[i + j * rows] = rounded(number(p, i + j * leading, type), digits);
    return x;
  }
};

static int gemm(Handle* handle, int transpose_a, int transpose_b, long m, long n, long k, const void* alpha,
                const void* A, int type_a, long lda, const void* B, int type_b, long ldb, const void* beta, void* C,
                int type_c, long ldc, int compute) {
  const Factor a{A, transpose_a ? k : m, transpose_a ? m : k, lda, type_a, bool(transpose_a)};
  const Factor b{B, transpose_b ? n : k, transpose_b ? k : n, ldb, type_b, bool(transpose_b)};
  if (m < 0 || n < 0 || k < 0 || lda < std::max(1L, a.rows) || ldb < std::max(1L, b.rows) || ldc < std::max(1L, m))
    return INVALID_VALUE;
  const bool doubles = compute == AS_DOUBLE;
  if (type_a != type_b || doubles != (type_a == DOUBLE) || type_c != (doubles ? DOUBLE : FLOAT)) return NOT_SUPPORTED;
  if ((compute == BY_TF32 || compute == BY_BFLOAT) && type_a != FLOAT) return NOT_SUPPORTED;
  if (handle->device != current) return EXECUTION_FAILED;
  if (!m || !n) return SUCCESS;
  emulated_counts[PRODUCTS]++;
  auto scalar = [=](const void* p) { return doubles ? *static_cast<const double*>(p) : *static_cast<const float*>(p); };
  const double by = scalar(alpha), keep = scalar(beta);
  void* workspace = handle->workspace;
  const int device = current, digits = compute == BY_TF32 ? 10 : compute == BY_BFLOAT ? 7 : 23;
  const int error = ask(stream_of(handle->stream), [=] {
    if (!a.is_on(device) || !b.is_on(device)) return fail(cudaErrorIllegalAddress, "gemm: a factor is not on the device");
    if (!on_device(C, width(type_c) * (ldc * (n - 1) + m), device))
      return fail(cudaErrorIllegalAddress, "gemm: the product is not on the device");
    if (workspace && !on_device(workspace, 256, device))
      return fail(cudaErrorIllegalAddress, "gemm: the workspace is not on the device");
    if (workspace) memset(workspace, 0xff, 256);  // whoever else uses it finds out
    const char *op_a = a.transposed ? "T" : "N", *op_b = b.transposed ? "T" : "N";
    const float by_float = by, keep_float = keep;
    if (doubles) {
      dgemm(op_a, op_b, &m, &n, &k, &by, A, &lda, B, &ldb, &keep, C, &ldc);
    } else if (type_a == FLOAT && digits == 23) {
      sgemm(op_a, op_b, &m, &n, &k, &by_float, A, &lda, B, &ldb, &keep_float, C, &ldc);
    } else {
      const auto x = a.numbers(digits), y = b.numbers(digits);
      const long ldx = std::max(1L, a.rows), ldy = std::max(1L, b.rows);
      sgemm(op_a, op_b, &m, &n, &k, &by_float, x.data(), &ldx, y.data(), &ldy, &keep_float, C, &ldc);
    }
    return 0;
  });
  return error ? EXECUTION_FAILED : SUCCESS;
}
API int cublasGemmEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha,
                     const void* A, int type_a, int lda, const void* B, int type_b, int ldb, const void* beta, void* C,
                     int type_c, int ldc, int compute, int) {
  LOCK;
  return gemm(handle, transpose_a, transpose_b, m, n, k, alpha, A, type_a, lda, B, type_b, ldb, beta, C, type_c, ldc,
              compute);
}
API int cublasGemmStridedBatchedEx(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k,
                                   const void* alpha, const void* A, int type_a, int lda, long long stride_a,
                                   const void* B, int type_b, int ldb, long long stride_b, const void* beta, void* C,
                                   int type_c, int ldc, long long stride_c, int count, int compute, int) {
  LOCK;
  auto at = [](const void* p, long long i, int type) { return static_cast<const char*>(p) + i * width(type); };
  for (int i = 0; i < count; ++i)
    if (int status = gemm(handle, transpose_a, transpose_b, m, n, k, alpha, at(A, i * stride_a, type_a), type_a, lda,
                          at(B, i * stride_b, type_b), type_b, ldb, beta,
                          const_cast<char*>(at(C, i * stride_c, type_c)), type_c, ldc, compute))
      return status;
  return SUCCESS;
}
// C = alpha op(A) + beta op(B), by which CuPy transposes.
template <class T>
static int geam(Handle* handle, int transpose_a, int transpose_b, long m, long n, const T* alpha, const T* A, long lda,
                const T* beta, const T* B, long ldb, T* C, long ldc) {
  if (handle->device != current) return EXECUTION_FAILED;
  const T by_a = *alpha, by_b = *beta;
  const int device = current;
  const int error = ask(stream_of(handle->stream), [=] {
    if (!on_device(A, 0, device) || !on_device(B, 0, device) || !on_device(C, sizeof(T) * (ldc * (n - 1) + m), device))
      return fail(cudaErrorIllegalAddress, "geam: a matrix is not on the device");
    for (long j = 0; j < n; ++j)
      for (long i = 0; i < m; ++i)
        C[i + j * ldc] = (by_a == 0 ? 0 : by_a * A[transpose_a ? j + i * lda : i + j * lda]) +
                         (by_b == 0 ? 0 : by_b * B[transpose_b ? j + i * ldb : i + j * ldb]);
    return 0;
  });
  return error ? EXECUTION_FAILED : SUCCESS;
}
API int cublasSgeam(Handle* handle, int transpose_a, int transpose_b, int m, int n, const float* alpha, const float* A,
                    int lda, const float* beta, const float* B, int ldb, float* C, int ldc) {
  LOCK;
  return geam(handle, transpose_a, transpose_b, m, n, alpha, A, lda, beta, B, ldb, C, ldc);
}
API int cublasDgeam(Handle* handle, int transpose_a, int transpose_b, int m, int n, const double* alpha,
                    const double* A, int lda, const double* beta, const double* B, int ldb, double* C, int ldc) {
  LOCK;
  return geam(handle, transpose_a, transpose_b, m, n, alpha, A, lda, beta, B, ldb, C, ldc);
}
API int cublasSgemm_v2(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const float* alpha,
                       const float* A, int lda, const float* B, int ldb, const float* beta, float* C, int ldc) {
  return cublasGemmEx(handle, transpose_a, transpose_b, m, n, k, alpha, A, FLOAT, lda, B, FLOAT, ldb, beta, C, FLOAT,
                      ldc, AS_FLOAT, -1);
}
API int cublasDgemm_v2(Handle* handle, int transpose_a, int transpose_b, int m, int n, int k, const double* alpha,
                       const double* A, int lda, const double* B, int ldb, const double* beta, double* C, int ldc) {
  return cublasGemmEx(handle, transpose_a, transpose_b, m, n, k, alpha, A, DOUBLE, lda, B, DOUBLE, ldb, beta, C, DOUBLE,
                      ldc, AS_DOUBLE, -1);
}

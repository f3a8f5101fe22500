// What the kernels share. Macros of a build:
//   REAL        float or double: the type of every number
//   ACTIVATION  a struct of namespace activation
// No header of the CUDA toolkit is needed, so NVRTC compiles the sources anywhere.

#ifndef REAL
#define REAL float
#endif
#ifndef ACTIVATION
#define ACTIVATION identity
#endif

#define DEVICE __device__ __forceinline__

using byte = unsigned char;
using half_bits = unsigned short;  // a float16, whose own type is in a header of the toolkit

DEVICE half_bits to_half(float x) {
  half_bits bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
DEVICE float from_half(half_bits bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// N neighboring numbers that travel in one load or store.
template <int N>
struct alignas(N * sizeof(REAL)) Pack {
  REAL x[N];
};

inline constexpr REAL LOWEST = sizeof(REAL) == 4 ? -3.402823466e+38 : -1.7976931348623157e+308;
inline constexpr REAL LEAK = 0.01;  // slope of the leaky ReLU below zero
inline constexpr REAL PIXEL = 1.0 / 255;

// A float as two float16, so that the tensor cores' products with small whole numbers are as exact as those in float:
// x = high + low / LOW with high = float16(x) and low = float16(LOW (x - high)) has 22 bits of mantissa for numbers from
// 6e-5 to 65504, and an absolute error of 1.5e-11 at most for smaller ones. A whole number up to 2048 is a float16, and
// its products with both halves are exact in float.
inline constexpr float LOW = 2048;

struct Halves {
  half_bits high, low;
};

DEVICE Halves split(float x) {
  const half_bits high = to_half(x);
  return {high, to_half(LOW * (x - from_half(high)))};
}

// From products of whole pixels with both halves of a number, that of pixels / 255 with the number.
DEVICE float join(float high, float low) { return PIXEL * (high + low / LOW); }

// 1 / x for x >= 1, to 1 unit in the last place: a float division would cost four times as much.
DEVICE float reciprocal(float x) { return __fdividef(1.0f, x); }
DEVICE double reciprocal(double x) { return 1.0 / x; }

// A = value(Z), and dA/dZ = derivative(A): from the output, so that Z need not be kept. The host looks here for the names
// of the activations that have kernels; any other runs by its formula in kernels/functions.py.
// Both ReLUs have slope 1 at Z = 0. The output of relu is 0 there and -0 for Z < 0: the sign of the zero tells which.
namespace activation {

struct sigmoid {
  static __device__ REAL value(REAL z) { return reciprocal(1 + exp(-z)); }  // exp may be infinite: its reciprocal is 0
  static __device__ REAL derivative(REAL a) { return a * (1 - a); }
};

struct tanh {
  static __device__ REAL value(REAL z) { return ::tanh(z); }
  static __device__ REAL derivative(REAL a) { return 1 - a * a; }
};

struct relu {
  static __device__ REAL value(REAL z) { return z < 0 ? REAL(-0.0) : fabs(z); }
  static __device__ REAL derivative(REAL a) { return signbit(a) ? REAL(0) : REAL(1); }
};

struct leaky_relu {
  static __device__ REAL value(REAL z) { return z < 0 ? LEAK * z : z; }
  static __device__ REAL derivative(REAL a) { return a < 0 ? LEAK : REAL(1); }
};

struct identity {
  static __device__ REAL value(REAL z) { return z; }
  static __device__ REAL derivative(REAL) { return 1; }
};

}  // namespace activation

using Activation = activation::ACTIVATION;

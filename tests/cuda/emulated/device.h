// What NVRTC gives a kernel, for g++. Blocks run one after another, and a block's threads take turns at its barriers.
#pragma once
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include <vector_functions.h>
#include <vector_types.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using std::abs, std::ceil, std::copysign, std::exp, std::fabs, std::floor, std::fma, std::fmod, std::isfinite,
    std::isinf, std::isnan, std::log, std::pow, std::ptrdiff_t, std::signbit, std::size_t, std::sqrt, std::tanh;
#undef __align__
#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __host__
#undef __launch_bounds__
#undef __noinline__
#undef __restrict__
#undef __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __device__
#define __forceinline__ inline
#define __global__
#define __host__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __shared__ static __attribute__((section("cuda_shared")))

extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

#pragma GCC visibility push(hidden)
#define UNWATCHED __attribute__((no_sanitize("thread", "address", "undefined")))

namespace emulated {

constexpr int MOST_THREADS = 1024, WARP = 32;
constexpr size_t STACK = 32 * 1024;

// A thread begins as a call on the stack that is running. Only where it waits for others does it keep that stack: the
// threads after it begin on another one. So a block without barriers is a loop.
enum State : char { NEW, READY, AT_WARP, AT_BLOCK, DONE };
static State states[MOST_THREADS];
static int order[MOST_THREADS], begun, current, threads;
static void* resume_at[MOST_THREADS];  // stack pointers
static void* scheduler;
static char* stacks;
static char mailbox[MOST_THREADS][16];  // for shuffles
static char* dynamic;                   // shared memory
static void (*body)(void**);
static void** arguments;

extern "C" void emulated_switch(void** from, void* to);
asm(R"(
.text
.hidden emulated_switch
.globl emulated_switch
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

UNWATCHED static void become(int thread) {
  current = thread;
  threadIdx.x = thread % blockDim.x;
  threadIdx.y = thread / blockDim.x % blockDim.y;
  threadIdx.z = thread / (blockDim.x * blockDim.y);
}
UNWATCHED static void run_new_threads() {
  while (begun < threads) {
    become(order[begun++]);
    body(arguments);
    states[current] = DONE;
  }
  void* never;
  emulated_switch(&never, scheduler);
  abort();
}
UNWATCHED static void wait(State barrier) {
  states[current] = barrier;
  emulated_switch(&resume_at[current], scheduler);
}
UNWATCHED static bool release(State barrier, int begin, int end) {
  bool any = false;
  for (int i = begin; i < end; ++i) {
    if (states[i] != barrier && states[i] != DONE) return false;
    any |= states[i] == barrier;
  }
  for (int i = begin; i < end; ++i)
    if (states[i] == barrier) states[i] = READY;
  return any;
}

#ifdef __SANITIZE_THREAD__
#include "races.h"
#else
static void begin_launch() {}
static void begin_block(size_t) {}
static void block_barrier() {}
static void warp_barrier(int) {}
static void fence() {}
static void atomic() {}
static int races() { return 0; }
#endif

UNWATCHED static unsigned random(unsigned& seed, unsigned below) {
  seed = seed * 1664525u + 1013904223u;
  return (seed >> 8) % below;
}
// Natural for 0, reversed for -1, else permuted by this seed.
UNWATCHED static void arrange(int* to, int count, long how) {
  for (int i = 0; i < count; ++i) to[i] = how < 0 ? count - 1 - i : i;
  unsigned seed = how;
  if (how > 0)
    for (int i = count; i > 1; --i) std::swap(to[i - 1], to[random(seed, i)]);
}
UNWATCHED static void begin_threads() {
  begun = 0;
  for (int i = 0; i < threads; ++i) states[i] = NEW;
  for (int used = 1; begun < threads; ++used) {  // each stack is used until one of the threads on it waits
    void** top = reinterpret_cast<void**>(stacks + used * STACK - 64);
    *--top = nullptr;  // the boundary that a call leaves
    *--top = reinterpret_cast<void*>(run_new_threads);
    emulated_switch(&scheduler, top - 6);
  }
}
UNWATCHED static int run_block() {
  begin_threads();
  for (;;) {
    int done = 0;
    for (int i = 0; i < threads; ++i) done += states[i] == DONE;
    if (done == threads) return 0;
    bool released = release(AT_BLOCK, 0, threads);
    if (released) block_barrier();
    for (int i = 0; i < threads; i += WARP)
      if (release(AT_WARP, i, i + WARP < threads ? i + WARP : threads)) released = true, warp_barrier(i / WARP);
    if (!released) return -1;
    for (int k = 0; k < threads; ++k) {
      if (states[order[k]] != READY) continue;
      become(order[k]);
      emulated_switch(&scheduler, resume_at[current]);
    }
  }
}
UNWATCHED static int launch(const unsigned* shape, size_t shared, long how, void (*kernel)(void**), void** parameters) {
  gridDim = dim3(shape[0], shape[1], shape[2]);
  blockDim = dim3(shape[3], shape[4], shape[5]);
  threads = blockDim.x * blockDim.y * blockDim.z;
  body = kernel;
  arguments = parameters;
  const int blocks = gridDim.x * gridDim.y * gridDim.z;
  const size_t room = (shared + 255) / 128 * 128;
  if (!stacks) stacks = static_cast<char*>(aligned_alloc(4096, MOST_THREADS * STACK));
  dynamic = static_cast<char*>(aligned_alloc(128, room));
  int* order_of_blocks = static_cast<int*>(malloc(blocks * sizeof(int)));
  arrange(order_of_blocks, blocks, how);
  arrange(order, threads, how);
  begin_launch();
  int status = 0;
  for (int k = 0; k < blocks && !status; ++k) {
    const int block = order_of_blocks[k];
    blockIdx.x = block % gridDim.x;
    blockIdx.y = block / gridDim.x % gridDim.y;
    blockIdx.z = block / (gridDim.x * gridDim.y);
    memset(dynamic, 0xff, room);
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    begin_block(room);
    status = run_block();
    for (size_t i = shared; i < room && !status; ++i) status = dynamic[i] == char(0xff) ? 0 : -2;
  }
  free(order_of_blocks);
  free(dynamic);
  return status ? status : races();
}

// A kernel takes its parameters from their addresses, by its own types.
template <auto F>
struct Entry;
template <class... A, void (*F)(A...)>
struct Entry<F> {
  template <size_t... I>
  static void call(void** p, std::index_sequence<I...>) {
    F(*static_cast<std::remove_reference_t<A>*>(p[I])...);
  }
  static void body(void** p) { call(p, std::index_sequence_for<A...>{}); }
  static int sizes(long* to) {
    ((*to++ = std::is_pointer_v<A> ? -long(sizeof(A)) : long(sizeof(A))), ...);
    return sizeof...(A);
  }
};

UNWATCHED static unsigned short to_half(float x) {
  const _Float16 half = x;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}
UNWATCHED static float from_half(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, 2);
  return half;
}
template <class T>
UNWATCHED static T shuffle(T value, int source) {
  static_assert(sizeof value <= sizeof mailbox[0]);
  memcpy(mailbox[current], &value, sizeof value);
  wait(AT_WARP);
  T other;
  memcpy(&other, mailbox[source], sizeof other);
  wait(AT_WARP);
  return other;
}
template <class T, class F>
UNWATCHED static T change(T* p, F function) {
  atomic();
  const T old = *p;
  *p = function(old);
  return old;
}

}  // namespace emulated
#pragma GCC visibility pop

#define EMULATED_KERNEL(name, ...)                                                                                   \
  extern "C" int emulated_launch_##name(const unsigned* shape, size_t shared, long how, void** parameters) {       \
    return emulated::launch(shape, shared, how, emulated::Entry<__VA_ARGS__>::body, parameters);                     \
  }                                                                                                                  \
  extern "C" long emulated_shared_##name() {                                                                         \
    return __start_cuda_shared ? __stop_cuda_shared - __start_cuda_shared : 0;                                       \
  }                                                                                                                  \
  extern "C" int emulated_sizes_##name(long* to) { return emulated::Entry<__VA_ARGS__>::sizes(to); }

static inline void __syncthreads() { emulated::wait(emulated::AT_BLOCK); }
static inline void __syncwarp(unsigned = ~0u) { emulated::wait(emulated::AT_WARP); }
static inline void __threadfence() { emulated::fence(); }
static inline void __threadfence_block() {}

template <class T>
static T __shfl_sync(unsigned, T x, int lane, int = 32) {
  return emulated::shuffle(x, (emulated::current & ~31) | (lane & 31));
}
template <class T>
static T __shfl_xor_sync(unsigned, T x, int mask, int = 32) {
  return emulated::shuffle(x, emulated::current ^ mask);
}
template <class T>
static T __shfl_down_sync(unsigned, T x, unsigned by, int = 32) {
  return emulated::shuffle(x, (emulated::current & 31) + by < 32 ? emulated::current + by : emulated::current);
}
template <class T>
static T __shfl_up_sync(unsigned, T x, unsigned by, int = 32) {
  return emulated::shuffle(x, unsigned(emulated::current & 31) >= by ? emulated::current - by : emulated::current);
}

template <class T> static T atomicAdd(T* p, T x) { return emulated::change(p, [x](T old) { return old + x; }); }
template <class T> static T atomicMax(T* p, T x) { return emulated::change(p, [x](T old) { return old < x ? x : old; }); }
template <class T> static T atomicMin(T* p, T x) { return emulated::change(p, [x](T old) { return x < old ? x : old; }); }
template <class T> static T atomicExch(T* p, T x) { return emulated::change(p, [x](T) { return x; }); }
template <class T> static T atomicOr(T* p, T x) { return emulated::change(p, [x](T old) { return old | x; }); }
template <class T> static T atomicAnd(T* p, T x) { return emulated::change(p, [x](T old) { return old & x; }); }
template <class T> static T atomicXor(T* p, T x) { return emulated::change(p, [x](T old) { return old ^ x; }); }
template <class T> static T atomicCAS(T* p, T is, T x) {
  return emulated::change(p, [=](T old) { return old == is ? x : old; });
}
static inline unsigned atomicInc(unsigned* p, unsigned last) {
  return emulated::change(p, [last](unsigned old) { return old >= last ? 0 : old + 1; });
}

#define BITS(name, from, to) \
  static inline to name(from x) { to y; memcpy(&y, &x, sizeof y); return y; }
BITS(__float_as_int, float, int)
BITS(__int_as_float, int, float)
BITS(__float_as_uint, float, unsigned)
BITS(__uint_as_float, unsigned, float)
BITS(__double_as_longlong, double, long long)
BITS(__longlong_as_double, long long, double)
#undef BITS
static inline int __double2hiint(double x) { return int(__double_as_longlong(x) >> 32); }
static inline int __double2loint(double x) { return int(__double_as_longlong(x)); }
static inline double __hiloint2double(int high, int low) {
  return __longlong_as_double((long long)(uint64_t(unsigned(high)) << 32 | unsigned(low)));
}
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __expf(float x) { return expf(x); }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
template <class A, class B>
static constexpr auto min(A a, B b) -> std::common_type_t<A, B> { return b < a ? b : a; }
template <class A, class B>
static constexpr auto max(A a, B b) -> std::common_type_t<A, B> { return a < b ? b : a; }
template <class T>
static T __ldg(const T* p) { return *p; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }

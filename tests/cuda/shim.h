// Runs CUDA kernels on a CPU under Linux: each thread of a block is a fiber, and blocks run one after another.
//
// A fiber runs until it meets a barrier and goes on when all of its block (__syncthreads) or its warp (__syncwarp, the
// shuffles) are there. Between barriers the fibers run in ascending or, on demand, descending order: a result that
// depends on the order differs between the two. Shared memory holds NaNs when a block starts: numbers that are read
// before they are written show up. What it cannot see: races between blocks or within a warp, and what is about speed.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))
#define DYNAMIC_SHARED(type, name) type& name = *reinterpret_cast<type*>(shim::dynamic_shared)

extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[], __stop_cuda_shared[];

struct Index {
  unsigned x = 0, y = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

constexpr size_t STACK = 64 * 1024;
constexpr int MOST_THREADS = 1024;
enum State { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };

static jmp_buf scheduler, fibers[MOST_THREADS];  // where each goes on; swapcontext would ask the system at every switch
static State states[MOST_THREADS];
static unsigned char mailbox[MOST_THREADS][8];  // what a lane offers in a shuffle
static char* dynamic_shared;
static int current;
static void (*body)(void*);
static void* arguments;

static void wait(State state) {
  states[current] = state;
  if (!_setjmp(fibers[current])) _longjmp(scheduler, 1);
}

static void run_fiber() {  // one thread of every block, until the launch ends
  for (;;) {
    wait(DONE);
    body(arguments);
  }
}

static void start_fiber(char* stack) {
  ucontext_t context, unused;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = STACK;
  makecontext(&context, run_fiber, 0);
  if (!_setjmp(scheduler)) swapcontext(&unused, &context);
}

// Let the threads [begin, end) go on if each is at the barrier or has ended.
static bool release(State barrier, int begin, int end) {
  bool any = false;
  for (int i = begin; i < end; ++i) {
    if (states[i] != barrier && states[i] != DONE) return false;
    any |= states[i] == barrier;
  }
  for (int i = begin; i < end; ++i)
    if (states[i] == barrier) states[i] = READY;
  return any;
}

static void run_block(int threads, bool reversed) {
  for (int i = 0; i < threads; ++i) states[i] = READY;
  for (int done = 0; done < threads;) {
    for (int k = 0; k < threads; ++k) {
      current = reversed ? threads - 1 - k : k;
      if (states[current] != READY) continue;
      threadIdx = {current % blockDim.x, current / blockDim.x};
      if (!_setjmp(scheduler)) _longjmp(fibers[current], 1);
    }
    bool released = release(AT_BLOCK_BARRIER, 0, threads);
    for (int i = 0; i < threads; i += 32) released |= release(AT_WARP_BARRIER, i, i + 32 < threads ? i + 32 : threads);
    done = 0;
    for (int i = 0; i < threads; ++i) done += states[i] == DONE;
    if (!released && done < threads) {
      fprintf(stderr, "deadlock: the threads of a block wait at different barriers\n");
      abort();
    }
  }
}

static void launch(Index grid, Index block, size_t shared_bytes, bool reversed, void (*kernel)(void*),
                   void* kernel_arguments) {
  const int threads = block.x * block.y, blocks = grid.x * grid.y;
  gridDim = grid;
  blockDim = block;
  body = kernel;
  arguments = kernel_arguments;
  char* stacks = static_cast<char*>(malloc(threads * STACK));
  for (current = 0; current < threads; ++current) start_fiber(stacks + current * STACK);
  dynamic_shared = static_cast<char*>(aligned_alloc(64, (shared_bytes + 127) / 64 * 64));
  for (int k = 0; k < blocks; ++k) {
    const unsigned b = reversed ? blocks - 1 - k : k;
    blockIdx = {b % grid.x, b / grid.x};
    memset(dynamic_shared, 0xff, shared_bytes);
    if (__start_cuda_shared) memset(__start_cuda_shared, 0xff, __stop_cuda_shared - __start_cuda_shared);
    run_block(threads, reversed);
  }
  free(stacks);
  free(dynamic_shared);
}

}  // namespace shim

// The CUDA functions that the kernels call.

static void __syncthreads() { shim::wait(shim::AT_BLOCK_BARRIER); }
static void __threadfence() {}
static float __fdividef(float a, float b) { return a / b; }

static unsigned short to_half(float x) {
  const _Float16 half = x;
  unsigned short bits;
  memcpy(&bits, &half, sizeof bits);
  return bits;
}

static float from_half(unsigned short bits) {
  _Float16 half;
  memcpy(&half, &bits, sizeof half);
  return half;
}

static unsigned atomicInc(unsigned* counter, unsigned last) {
  const unsigned old = *counter;
  *counter = old >= last ? 0 : old + 1;
  return old;
}

template <class T>
static T __shfl_xor_sync(unsigned, T value, int mask) {
  const int me = shim::current;
  T other;
  memcpy(shim::mailbox[me], &value, sizeof value);
  shim::wait(shim::AT_WARP_BARRIER);
  memcpy(&other, shim::mailbox[me ^ mask], sizeof other);
  shim::wait(shim::AT_WARP_BARRIER);
  return other;
}

template <class T>
static T min(T a, T b) {
  return b < a ? b : a;
}

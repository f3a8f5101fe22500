// Numbers below the smallest normal one count as zero while the library computes.
//
// Adam's means of gradients that have become zero decay into that range and stay there, where processors take a hundred
// cycles for an operation: weights of pixels that few images use made an update of a small batch half as slow again.
#pragma once

#if defined(__x86_64__)
typedef unsigned Mode;  // of the thread's arithmetic
INLINE Mode mode(void) { return __builtin_ia32_stmxcsr(); }
INLINE void set_mode(Mode m) { __builtin_ia32_ldmxcsr(m); }
#define ZERO_FOR_SUBNORMALS 0x8040u  // results (FTZ), and operands (DAZ)
#elif defined(__aarch64__)
typedef uint64_t Mode;
INLINE Mode mode(void) {
  Mode m;
  __asm__ volatile("mrs %0, fpcr" : "=r"(m));
  return m;
}
INLINE void set_mode(Mode m) { __asm__ volatile("msr fpcr, %0" : : "r"(m)); }
#define ZERO_FOR_SUBNORMALS (1u << 24)  // FZ
#else
typedef int Mode;
INLINE Mode mode(void) { return 0; }
INLINE void set_mode(Mode m) { (void)m; }
#define ZERO_FOR_SUBNORMALS 0
#endif

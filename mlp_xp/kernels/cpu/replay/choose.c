// Which of the sets of instructions that the library was built for this processor has.
const char *mlp_xp_instructions(void) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return "v4";
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return "v3";
#endif
  return "base";
}

// A digest of the sources that the library was built from.
const char *mlp_xp_sources(void) { return SOURCES; }

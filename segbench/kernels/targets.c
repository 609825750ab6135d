/* Which of the compiled targets this machine can run, and from which sources they were compiled. */
#define VISIBLE __attribute__((visibility("default")))

VISIBLE int segbench_supports_baseline(void) { return 1; }

#if defined(__x86_64__)
VISIBLE int segbench_supports_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
VISIBLE int segbench_supports_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

VISIBLE const char *segbench_sources(void) { return SOURCES; }

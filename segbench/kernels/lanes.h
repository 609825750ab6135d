/* What every compiled kernel stands on: vectors of the width that the target has, and the target's name.
 *
 * A kernel's file is compiled once for every target (build.py), with -DTARGET=avx512, avx2 or baseline: EXPORT(name) is
 * then name_avx512 and so on, and the caller takes the best that the machine can run. Plain C with GCC's vector
 * extension, which clang knows as well: hardly an intrinsic, no headers of Python, no state outside the arguments.
 */
#ifndef SEGBENCH_LANES_H
#define SEGBENCH_LANES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#define JOIN_(name, target) name##_##target
#define JOIN(name, target) JOIN_(name, target)
#define EXPORT(name) __attribute__((visibility("default"))) JOIN(name, TARGET)

typedef float floats __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES)));

static inline floats load(const float *from) { /* at any address */
    floats lanes;
    memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

static inline floats all(float value) { return value - (floats){0}; }
static inline ints all_int(int32_t value) { return value - (ints){0}; }

/* `mask` has all bits of a lane set or none, as a comparison leaves it. */
static inline ints choose(ints mask, ints yes, ints no) { return (mask & yes) | (~mask & no); }
static inline floats choose_float(ints mask, floats yes, floats no) {
    return (floats)choose(mask, (ints)yes, (ints)no);
}

/* The larger one in every lane, which compilers do not find to be one instruction. */
static inline floats larger(floats x, floats y) {
#if LANES == 16
    return (floats)_mm512_max_ps((__m512)x, (__m512)y);
#elif LANES == 8
    return (floats)_mm256_max_ps((__m256)x, (__m256)y);
#elif defined(__SSE__)
    return (floats)_mm_max_ps((__m128)x, (__m128)y);
#else
    return choose_float(x > y, x, y);
#endif
}

static inline float largest(floats x) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)x);
#else
    float found = x[0];
    for (int l = 1; l < LANES; l++) found = x[l] > found ? x[l] : found;
    return found;
#endif
}

/* Whether a number is infinite, NaN or of a size at which differences overflow. Looks at bits: the compiler may assume
 * that there is no such float. */
static inline int unbounded(const float *numbers, int64_t n, float limit) {
    int32_t largest = 0, bound;
    memcpy(&bound, &limit, sizeof bound);
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, numbers + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    return largest > bound;
}

#if defined(__clang__)
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (ints){__VA_ARGS__})
#endif
#define ADD_HALVES(n, first, second) \
    for (int i = 0; i < n; i++) part[i] = SHUFFLE(part[i], part[i + n], first) + SHUFFLE(part[i], part[i + n], second);
#define OF(...) __VA_ARGS__

/* The sum over all lanes of part[i] in lane i, for LANES vectors; they are used up. */
static inline floats sums(floats part[LANES]) {
#if LANES == 16
    ADD_HALVES(8, OF(0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
               OF(8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
    ADD_HALVES(4, OF(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
               OF(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    ADD_HALVES(2, OF(0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
               OF(2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    ADD_HALVES(1, OF(0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
               OF(1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
#elif LANES == 8
    ADD_HALVES(4, OF(0, 1, 2, 3, 8, 9, 10, 11), OF(4, 5, 6, 7, 12, 13, 14, 15))
    ADD_HALVES(2, OF(0, 1, 8, 9, 4, 5, 12, 13), OF(2, 3, 10, 11, 6, 7, 14, 15))
    ADD_HALVES(1, OF(0, 8, 2, 10, 4, 12, 6, 14), OF(1, 9, 3, 11, 5, 13, 7, 15))
#else
    ADD_HALVES(2, OF(0, 1, 4, 5), OF(2, 3, 6, 7))
    ADD_HALVES(1, OF(0, 4, 2, 6), OF(1, 5, 3, 7))
#endif
    return part[0];
}

/* Numbers below the smallest normal one are as good as zero here, and many times slower. */
#if defined(__SSE__)
typedef uint32_t Denormals;
static inline Denormals flush_denormals(void) {
    Denormals before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(before | 0x8040);
    return before;
}
static inline void restore_denormals(Denormals before) { __builtin_ia32_ldmxcsr(before); }
#else
typedef int Denormals;
static inline Denormals flush_denormals(void) { return 0; }
static inline void restore_denormals(Denormals before) { (void)before; }
#endif

#endif

/* What every compiled kernel stands on: vectors of the width that the target has, and the target's name.
 *
 * A kernel's file is compiled once for every target (build.py), with -DTARGET=avx512, avx2 or baseline: EXPORT(name) is
 * then name_avx512 and so on, and the caller takes the best that the machine can run. Plain C with GCC's vector
 * extension, which clang knows as well: no intrinsics, no headers of Python, no state outside the arguments.
 */
#ifndef SEGBENCH_LANES_H
#define SEGBENCH_LANES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

#endif

/* exp(u z) for all |u| <= U and |z| <= 1 as a short sum of powers: sum over m < M of q_m(z) u^m.
 *
 * The Taylor series, economised (Lanczos 1938): a power above the last is replaced by what the Chebyshev polynomial of
 * its degree lacks of it, which spreads the error evenly over |u| <= U. Where a run of pixels has z evenly spaced from
 * -1 to 1, the powers' sums over the classes replace the sums at the pixels, and there are fewer of them.
 */
#ifndef SEGBENCH_POWERS_H
#define SEGBENCH_POWERS_H

#include <stdint.h>

enum { LEVELS = 12, POWERS = 24 };
enum { LONGEST = 96 }; /* pixels */
enum { SPARE = 12 };   /* powers beyond the last that the Taylor series needs */
enum { KEPT = 4 };     /* lengths of runs; an image has two or three, and their halves */

/* Terms M, and the largest U at which they miss exp(u z) by less than 6e-8 of exp(|u| - U (1 - |z|)), the least that a
 * sum of exponentials with such slopes can be whose largest terms at z = -1 and z = 1 are 1. */
static const struct { int64_t terms; float reach; } LEVEL[LEVELS] = {
    {2, .0004f}, {4, .058f},  {6, .333f},  {8, .862f},  {10, 1.594f}, {12, 2.475f},
    {14, 3.462f}, {16, 4.526f}, {18, 5.645f}, {20, 6.806f}, {22, 7.997f}, {POWERS, 9.212f}};

typedef struct { /* of a run of n pixels; q_m at its second half, z falling from 1 to the middle */
    int64_t n, terms;
    float q[(LONGEST + 1) / 2][POWERS];
} Powers;

typedef struct { /* what a call has made so far */
    Powers kept[LEVELS][KEPT];
    int next; /* to give way */
} Book;

/* Fill in q. */
static void economise(Powers *powers, double reach) {
    int64_t terms = powers->terms, n = powers->n;
    double swap[SPARE][POWERS + SPARE] = {{0}}; /* what a power too high is replaced by */
    for (int64_t j = terms + SPARE - 1; j >= terms; j--) {
        double part = 1, *low = swap[j - terms]; /* T_j, scaled so that its first coefficient is 1 */
        for (int64_t i = 1; 2 * i <= j; i++) {
            part *= -(double)((j - 2 * i + 2) * (j - 2 * i + 1)) / (double)(4 * i * (j - i));
            low[j - 2 * i] = -part;
        }
    }
    for (int64_t p = 0; 2 * p < n; p++) {
        double z = n > 1 ? 1 - 2 * (double)p / (double)(n - 1) : 0, series[POWERS + SPARE] = {1};
        for (int64_t j = 1; j < terms + SPARE; j++) series[j] = series[j - 1] * reach * z / (double)j;
        for (int64_t j = terms + SPARE - 1; j >= terms; j--)
            for (int64_t m = 0; m < j; m++) series[m] += swap[j - terms][m] * series[j];
        double scale = 1;
        for (int64_t m = 0; m < terms; m++, scale /= reach) powers->q[p][m] = (float)(series[m] * scale);
    }
}

/* For |u| up to `reach`; NULL where the terms of a progression are fewer, or not many more for as few classes. */
static const Powers *powers_of(Book *book, int64_t classes, int64_t n, float reach) {
    int level = 0;
    while (level < LEVELS && reach > LEVEL[level].reach) level++;
    if (level == LEVELS || classes * (n + 5 - LEVEL[level].terms) <= n * LEVEL[level].terms / 2) return NULL;
    for (int slot = 0; slot < KEPT; slot++)
        if (book->kept[level][slot].n == n) return &book->kept[level][slot];
    Powers *made = &book->kept[level][book->next++ % KEPT];
    made->n = n, made->terms = LEVEL[level].terms;
    economise(made, LEVEL[level].reach);
    return made;
}

#endif

/* Cross-entropy of up-sampled logits and its gradient, without full-resolution logits.
 *
 * Along a row of pixels between two patch centres a class's logit is linear, so its exponential is a geometric
 * progression: two exponentials per row, cell and class, then one multiplication per pixel and class. The gradient's
 * sums over the pixels of a run, sum s(x) r^x and sum s(x) x r^x, are Horner's scheme. Lanes are rows of pixels.
 *
 * The ground truth enters linearly: cross-entropy = sum over pixels of log sum exp - <mass, logits>, where mass is the
 * transposed up-sampling of the one-hot mask (plan.c); here pixels need one bit each, whether they count.
 *
 * Every term is kept relative to the chord between the largest logits at a run's two ends, so that none exceeds 1. One
 * that starts too small for float32 must not rise to where it matters: a run in which a class gains more than FAR on
 * the chord is cut in two, down to single pixels, and so is one whose chord is too coarse a number.
 */
#include "lanes.h"

enum { RUN = 48 };                      /* pixels; also bounds the rounding of the progression's last term */
enum { GROUP = LANES == 16 ? 8 : 4 };   /* classes whose progressions are in registers at a time */
static const float LEAST = -87.3f; /* its exponential is about float32's smallest normal number */
static const float FAR = 40;       /* exp(LEAST + FAR) is still beneath all rounding */
static const float LARGE = 1e4f;   /* the chord between larger logits is off by more than a thousandth */

typedef struct { /* rows of pixels, one a lane, as mixtures of rows of the grid */
    int64_t count;
    int64_t row[2 * LANES];
    floats weight[2 * LANES];
} Mix;

typedef struct { /* the cell at hand; arrays over the classes, and room for a whole GROUP */
    int64_t classes;
    floats *logit[2], *gradient[2]; /* at its left and its right column */
    floats *first, *ratio;          /* of the run at hand's progression */
    double loss;
} Cell;

static inline floats most(floats x, floats y) { return choose_float(x > y, x, y); }

static inline float largest(floats x) {
    float found = x[0];
    for (int l = 1; l < LANES; l++) found = x[l] > found ? x[l] : found;
    return found;
}

/* Cephes' polynomials (expf, logf; Moshier 1989), for x <= 88 and for positive normal x. */
static inline floats exponential(floats x) {
    const floats round = all(12582912.f); /* 1.5 * 2^23 */
    x = most(x, all(LEAST));
    floats shifted = x * 1.44269504088896341f + round, n = shifted - round;
    floats f = x - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
    floats p = 1.9875691500e-4f * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f, p = p * f + 4.1665795894e-2f, p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f, p = p * (f * f) + (f + 1.f);
    return (floats)((ints)p + ((ints)shifted << 23));
}

static inline floats logarithm(floats x) {
    ints exponent = ((ints)x - 0x3f3504f3) >> 23;
    floats f = (floats)((ints)x - (exponent << 23)) - 1.f, e = __builtin_convertvector(exponent, floats);
    floats p = 7.0376836292e-2f * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f, p = p * f - 1.2420140846e-1f, p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f, p = p * f + 2.0000714765e-1f, p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    floats square = f * f;
    return e * 0.693359375f + (f + (p * f * square - 0.5f * square - e * 2.12194440e-4f));
}

static inline ints counted(uint32_t bits) {
    ints lane;
    for (int l = 0; l < LANES; l++) lane[l] = 1 << l;
    return (all_int((int32_t)bits) & lane) != 0;
}

/* Add the terms of `group` classes to every pixel's total. */
static inline __attribute__((always_inline)) void forward(
    const floats *first, const floats *ratio, floats *total, int64_t n, const int group) {
    floats term[GROUP], by[GROUP];
    for (int g = 0; g < group; g++) term[g] = first[g], by[g] = ratio[g];
    for (int64_t x = 0; x < n; x++) {
        floats even = total[x], odd = all(0);
        for (int g = 0; g < group; g += 2) even += term[g], odd += term[g + 1];
        total[x] = even + odd;
        for (int g = 0; g < group; g++) term[g] *= by[g];
    }
}

/* With s the pixels' weights: add to both columns what the terms of `group` classes pull at them. */
static inline __attribute__((always_inline)) void backward(
    Cell *cell, int64_t k, const floats *weight, int64_t n, float start, float step, const int group) {
    floats sum[GROUP], moment[GROUP], by[GROUP]; /* sum s r^x and sum s (x + 1) r^x */
    for (int g = 0; g < group; g++) sum[g] = moment[g] = all(0), by[g] = cell->ratio[k + g];
    for (int64_t x = n - 1; x >= 0; x--)
        for (int g = 0; g < group; g++) {
            sum[g] = sum[g] * by[g] + weight[x];
            moment[g] = moment[g] * by[g] + sum[g];
        }
    for (int g = 0; g < group; g++) {
        floats right = cell->first[k + g] * (start * sum[g] + step * (moment[g] - sum[g]));
        cell->gradient[0][k + g] += cell->first[k + g] * sum[g] - right;
        cell->gradient[1][k + g] += right;
    }
}

/* n pixels of every lane's row, at start + x * step of the way from the cell's left column to its right one. */
static void run(Cell *cell, float start, float step, int64_t n, const uint16_t *bits, int shift) {
    uint32_t any = 0, lanes = (1u << LANES) - 1;
    for (int64_t x = 0; x < n; x++) any |= bits[x];
    if (!(any >> shift & lanes)) return;
    if (n == 1) step = 0; /* a ratio that nobody needs must not overflow */
    const floats *left = cell->logit[0], *right = cell->logit[1];
    float end = start + step * (float)(n - 1);
    int64_t half = n / 2, k;
    floats top = all(-3e38f), top_end = top, gain = top;
    if (n <= RUN)
        for (k = 0; k < cell->classes; k++) {
            floats slope = right[k] - left[k];
            cell->first[k] = left[k] + start * slope;
            top = most(top, cell->first[k]);
            top_end = most(top_end, left[k] + end * slope);
            gain = most(gain, slope * (end - start));
        }
    floats size = most(most(top, -top), most(top_end, -top_end));
    if (n > RUN || (n > 1 && (largest(gain - (top_end - top)) > FAR || largest(size) > LARGE))) {
        run(cell, start, step, half, bits, shift);
        run(cell, start + (float)half * step, step, n - half, bits + half, shift);
        return;
    }
    floats chord = (top_end - top) / (float)(n > 1 ? n - 1 : 1), total[RUN];
    for (k = 0; k < cell->classes; k++) {
        cell->first[k] = exponential(cell->first[k] - top);
        cell->ratio[k] = exponential(step * (right[k] - left[k]) - chord);
    }
    for (; k % GROUP; k++) cell->first[k] = cell->ratio[k] = all(0);
    for (int64_t x = 0; x < n; x++) total[x] = all(0);
    for (k = 0; k + 4 < cell->classes; k += GROUP) forward(cell->first + k, cell->ratio + k, total, n, GROUP);
    if (k < cell->classes) forward(cell->first + k, cell->ratio + k, total, n, 4);
    floats above = all(0), pixels = all(0), way = all(0); /* the chord itself in float64: it may be large */
    for (int64_t x = 0; x < n; x++) {
        ints mask = counted(bits[x] >> shift);
        above += (floats)((ints)logarithm(total[x]) & mask);
        pixels += (floats)((ints)all(1) & mask);
        way += (floats)((ints)all((float)x) & mask);
        total[x] = (floats)((ints)(1.f / total[x]) & mask);
    }
    for (int l = 0; l < LANES; l++)
        cell->loss += (double)above[l] + (double)top[l] * (double)pixels[l] + (double)chord[l] * (double)way[l];
    for (k = 0; k + 4 < cell->classes; k += GROUP) backward(cell, k, total, n, start, step, GROUP);
    if (k < cell->classes) backward(cell, k, total, n, start, step, 4);
}

static void mix_row(Mix *mix, int64_t row, int lane, float weight) {
    int64_t i = 0;
    while (i < mix->count && mix->row[i] != row) i++;
    if (i == mix->count) mix->count++, mix->row[i] = row, mix->weight[i] = all(0);
    mix->weight[i][lane] += weight;
}

/* The logits of one column of the grid, mixed for every lane. */
static void mixed(const Mix *mix, const float *column, int64_t row_stride, int64_t classes, floats *logit) {
    for (int64_t k = 0; k < classes; k++) logit[k] = mix->weight[0] * column[mix->row[0] * row_stride + k];
    for (int64_t i = 1; i < mix->count; i++) {
        const float *from = column + mix->row[i] * row_stride;
        for (int64_t k = 0; k < classes; k++) logit[k] += mix->weight[i] * from[k];
    }
}

/* The way back: what every lane says of one column goes to the rows of the grid; `gradient` is zero afterwards. */
static void unmixed(const Mix *mix, floats *gradient, int64_t classes, int64_t row_stride, float *column) {
    for (int64_t i = 0; i < mix->count; i++) {
        float *to = column + mix->row[i] * row_stride;
        for (int64_t k = 0; k < classes; k += LANES) {
            floats lane[LANES];
            for (int l = 0; l < LANES; l++) lane[l] = gradient[k + l] * mix->weight[i];
            floats sum = sums(lane);
            if (k + LANES <= classes) {
                sum += load(to + k);
                memcpy(to + k, &sum, sizeof sum);
            } else
                for (int64_t l = 0; k + l < classes; l++) to[k + l] += sum[l];
        }
    }
    memset(gradient, 0, (size_t)classes * sizeof *gradient);
}

/* sum over the counted pixels of log sum exp, and its gradient added to a zeroed [h][w][classes]. */
static double log_sum_exp(
    Cell *cell, const float *logits, int64_t h, int64_t w, const int32_t *row_low, const float *row_t,
    const int32_t *run_cell, const int32_t *run_start, const float *run_t, int64_t runs, int64_t height,
    int64_t width, const uint16_t *bits, float *gradient) {
    int64_t classes = cell->classes, stride = w * classes;
    cell->loss = 0;
    for (int64_t y = 0; y < height; y += LANES) {
        const uint16_t *strip = bits + y / 16 * width;
        Mix mix = {.count = 0};
        for (int l = 0; l < LANES && y + l < height; l++) {
            int64_t row = row_low[y + l];
            mix_row(&mix, row, l, 1 - row_t[y + l]);
            if (row + 1 < h) mix_row(&mix, row + 1, l, row_t[y + l]);
        }
        int64_t at = -2; /* the column of the grid that is left of the cell */
        for (int64_t i = 0; i < runs; i++) {
            int64_t next = run_cell[i];
            if (next != at) {
                if (at >= 0) unmixed(&mix, cell->gradient[0], classes, stride, gradient + at * classes);
                if (next == at + 1) {
                    floats *logit = cell->logit[0], *freed = cell->gradient[0];
                    cell->logit[0] = cell->logit[1], cell->gradient[0] = cell->gradient[1];
                    cell->logit[1] = logit, cell->gradient[1] = freed;
                } else {
                    if (at >= 0) unmixed(&mix, cell->gradient[1], classes, stride, gradient + (at + 1) * classes);
                    mixed(&mix, logits + next * classes, stride, classes, cell->logit[0]);
                }
                int64_t right = next + 1 < w ? next + 1 : next;
                mixed(&mix, logits + right * classes, stride, classes, cell->logit[1]);
                at = next;
            }
            int64_t x = run_start[i], n = run_start[i + 1] - x;
            run(cell, run_t[2 * i], run_t[2 * i + 1], n, strip + x, (int)(y % 16));
        }
        if (at < 0) continue;
        int64_t right = at + 1 < w ? at + 1 : at;
        unmixed(&mix, cell->gradient[0], classes, stride, gradient + at * classes);
        unmixed(&mix, cell->gradient[1], classes, stride, gradient + right * classes);
    }
    return cell->loss;
}

/* Logits are [probes][h][w][classes]. Pixel row y lies row_t[y] of the way from grid row row_low[y] to the next. Run i
 * holds the columns run_start[i] <= x < run_start[i + 1], and its pixels lie run_t[i][0] + (x - run_start[i]) *
 * run_t[i][1] of the way from column run_cell[i] of the grid to the next. `bits` [height / 16][width] says which pixels
 * count, row by row from the lowest bit; `pixels` [places] how many of them pull at a patch towards a class, which
 * `place` [places][2] names. Writes `loss` [probes] and `gradient`, like the logits; NaN for a probe with a logit
 * beyond `limit`. Returns 0, or -2 where there is no memory.
 */
int64_t EXPORT(segbench_loss)(
    const float *logits, int64_t probes, int64_t h, int64_t w, int64_t classes, float limit, /* */
    const int32_t *row_low, const float *row_t, const int32_t *run_cell, const int32_t *run_start, const float *run_t,
    int64_t runs, int64_t height, int64_t width, const uint16_t *bits, const int32_t *place, const double *pixels,
    int64_t places, double *loss, float *gradient) {
    int64_t room = (classes + LANES - 1) & -(int64_t)LANES, all_logits = h * w * classes;
    char *space = calloc((size_t)(6 * room + 1), sizeof(floats)); /* no pull yet */
    if (!space) return -2;
    floats *part = (floats *)(((uintptr_t)space + sizeof(floats) - 1) & -(uintptr_t)sizeof(floats));
    Cell cell = {.classes = classes, .first = part + 4 * room, .ratio = part + 5 * room};
    for (int side = 0; side < 2; side++) cell.logit[side] = part + side * room, cell.gradient[side] = part + (2 + side) * room;
    Denormals before = flush_denormals();
    for (int64_t probe = 0; probe < probes; probe++) {
        const float *grid = logits + probe * all_logits;
        float *pull = gradient + probe * all_logits;
        if (unbounded(grid, all_logits, limit)) { /* all bits are set in a NaN */
            memset(loss + probe, 0xff, sizeof *loss);
            memset(pull, 0xff, (size_t)all_logits * sizeof *pull);
            continue;
        }
        memset(pull, 0, (size_t)all_logits * sizeof *pull);
        double total = log_sum_exp(
            &cell, grid, h, w, row_low, row_t, run_cell, run_start, run_t, runs, height, width, bits, pull);
        for (int64_t i = 0; i < places; i++) {
            int64_t at = place[2 * i] * classes + place[2 * i + 1];
            total -= pixels[i] * (double)grid[at];
            pull[at] = (float)((double)pull[at] - pixels[i]);
        }
        loss[probe] = total;
    }
    restore_denormals(before);
    free(space);
    return 0;
}

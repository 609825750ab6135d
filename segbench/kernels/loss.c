/* Cross-entropy of up-sampled logits and its gradient, without full-resolution logits.
 *
 * Along a run of pixels of a row between two patch centres a class's logit is linear. Its exponential is then a sum of
 * a few powers (powers.h): one exponential per row, cell and class, the powers' sums over the classes, and from those
 * the sums at the pixels. Where logits move too far for that, or pixels are few, it is a geometric progression: two
 * exponentials, then one multiplication per pixel and class. The gradient's sums over the pixels are Horner's scheme
 * either way. Lanes are rows of pixels.
 *
 * The ground truth enters linearly: cross-entropy = sum over pixels of log sum exp - <mass, logits>, where mass is the
 * transposed up-sampling of the one-hot mask (plan.c); here pixels need one bit each, whether they count.
 *
 * Every term is kept relative to the chord between the largest logits at a run's two ends, so that none exceeds 1. One
 * that starts too small for float32 must not rise to where it matters: a run in which a class gains more than FAR on
 * the chord is cut in two, down to single pixels, and so is one whose chord is too coarse a number.
 */
#include "lanes.h"
#include "powers.h"

enum { STEPS = 48 };                  /* pixels; bounds the rounding of a progression's last term */
enum { GROUP = LANES == 16 ? 8 : 4 }; /* classes whose terms are in registers at a time */
static const float LEAST = -87.3f;    /* its exponential is about float32's smallest normal number */
static const float FAR = 40;          /* exp(LEAST + FAR) is still beneath all rounding */
static const float LARGE = 1e4f;      /* the chord between larger logits is off by more than a thousandth */

typedef struct { /* rows of pixels, one a lane, as mixtures of rows of the grid */
    int64_t count;
    int64_t row[2 * LANES];
    floats weight[2 * LANES];
} Mix;

typedef struct { /* a line that no logit exceeds: its height at the start, and by how much it rises up to the end */
    floats start, rises, above, below; /* most that a class gains on it, or loses */
} Chord;

typedef struct { /* the cell at hand; arrays over the classes, and room for a whole GROUP */
    int64_t classes;
    floats *logit[2], *gradient[2]; /* at its left and its right column */
    floats top[2];                  /* the largest logits there */
    Chord chord;                    /* between them */
    floats *first, *by;             /* of every class, whose terms are first, first * by, first * by^2 and so on */
    Book *book;
    double loss;
} Cell;

typedef struct { /* n pixels of every lane's row, at start + x * step of the way from the left column to the right */
    int64_t n;
    float start, step, end;
    const uint16_t *bits;
    int shift;
} Run;

/* Cephes' polynomials (expf, logf; Moshier 1989), for x <= 88 and for positive normal x. */
static inline floats exponential(floats x) {
    const floats round = all(12582912.f); /* 1.5 * 2^23 */
    x = larger(x, all(LEAST));
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

/* Add the m-th terms of `group` classes to sum[m]. */
static inline __attribute__((always_inline)) void forward(
    const floats *first, const floats *ratio, floats *sum, int64_t terms, const int group) {
    floats term[GROUP], by[GROUP];
    for (int g = 0; g < group; g++) term[g] = first[g], by[g] = ratio[g];
    for (int64_t m = 0; m < terms; m++) {
        floats even = sum[m], odd = all(0);
        for (int g = 0; g < group; g += 2) even += term[g], odd += term[g + 1];
        sum[m] = even + odd;
        for (int g = 0; g < group; g++) term[g] *= by[g];
    }
}

/* Add to both columns what the terms of `group` classes pull at them: `weight` at both, `start * weight + step * moved`
 * of it at the right one. */
static inline __attribute__((always_inline)) void backward(
    Cell *cell, int64_t k, const floats *weight, const floats *moved, float start, float step, int64_t terms,
    const int group) {
    floats pull[GROUP], moment[GROUP], by[GROUP];
    for (int g = 0; g < group; g++) pull[g] = moment[g] = all(0), by[g] = cell->by[k + g];
    for (int64_t m = terms - 1; m >= 0; m--)
        for (int g = 0; g < group; g++) {
            pull[g] = pull[g] * by[g] + weight[m];
            moment[g] = moment[g] * by[g] + moved[m];
        }
    for (int g = 0; g < group; g++) {
        floats right = start * pull[g] + step * moment[g];
        cell->gradient[0][k + g] += cell->first[k + g] * (pull[g] - right);
        cell->gradient[1][k + g] += cell->first[k + g] * right;
    }
}

/* The sums at the pixels, from the powers' sums. */
static void expand(const Powers *powers, const floats *sum, floats *total) {
    for (int64_t p = 0, n = powers->n; 2 * p < n; p++) {
        floats even = all(0), odd = all(0);
        for (int64_t m = 0; m < powers->terms; m += 2) {
            even += powers->q[p][m] * sum[m];
            odd += powers->q[p][m + 1] * sum[m + 1];
        }
        total[p] = even - odd, total[n - 1 - p] = even + odd;
    }
}

/* The way back: the powers' weights, from the pixels'; of two kinds, to read q once. */
static void gather(const Powers *powers, const floats *const pixel[2], floats *const weight[2]) {
    int64_t n = powers->n;
    floats at[(LONGEST + 1) / 2][4]; /* even in z, and odd */
    for (int64_t p = 0; 2 * p < n; p++)
        for (int kind = 0; kind < 2; kind++) {
            floats far = pixel[kind][n - 1 - p], near = 2 * p == n - 1 ? all(0) : pixel[kind][p];
            at[p][2 * kind] = far + near, at[p][2 * kind + 1] = far - near;
        }
    for (int64_t m = 0; m < powers->terms; m += 4) {
        floats sum[2][4] = {{all(0), all(0), all(0), all(0)}, {all(0), all(0), all(0), all(0)}};
        for (int64_t p = 0; 2 * p < n; p++)
            for (int i = 0; i < 4; i++)
                for (int kind = 0; kind < 2; kind++) sum[kind][i] += powers->q[p][m + i] * at[p][2 * kind + i % 2];
        for (int kind = 0; kind < 2; kind++) memcpy(weight[kind] + m, sum[kind], sizeof sum[kind]);
    }
}

/* The chord between the run's largest logits. */
static Chord chord_of(const Cell *cell, const Run *run) {
    const floats lowest = all(-3e38f);
    floats start = lowest, end = lowest, up = lowest, down = lowest;
    for (int64_t k = 0; k < cell->classes; k++) {
        floats from = cell->logit[0][k], slope = cell->logit[1][k] - from, move = slope * (run->end - run->start);
        start = larger(start, from + run->start * slope), end = larger(end, from + run->end * slope);
        up = larger(up, move), down = larger(down, -move);
    }
    return (Chord){start, end - start, up - (end - start), down + (end - start)};
}

/* Whether float32 can hold a run's terms relative to its chord. */
static int holds(const Chord *chord) {
    floats end = chord->start + chord->rises, size = larger(larger(chord->start, -chord->start), larger(end, -end));
    return largest(chord->above) <= FAR && largest(size) <= LARGE;
}

/* The part of the cell's own chord that lies over a run. */
static Chord part_of(const Chord *chord, const Run *run) {
    float share = run->end - run->start;
    return (Chord){
        chord->start + run->start * chord->rises, chord->rises * share, chord->above * share, chord->below * share};
}

/* From the totals of the run's pixels to their weights, also times from + x * by; the sum of log total over the counted
 * pixels, of `many` at a time, whose product float32 must hold. */
static inline __attribute__((always_inline)) floats weigh(
    const Run *run, const floats *total, float from, float by, floats *weight, floats *moved, const int many) {
    floats above = all(0);
    for (int64_t x = 0; x < run->n; x += many) {
        floats product = all(1);
        for (int64_t i = x; i < x + many && i < run->n; i++) {
            ints mask = counted(run->bits[i] >> run->shift);
            product *= choose_float(mask, total[i], all(1));
            weight[i] = (floats)((ints)(1.f / total[i]) & mask);
            moved[i] = weight[i] * (from + by * (float)i);
        }
        above += logarithm(product);
    }
    return above;
}

/* The chord's height, summed over the counted pixels; in float64, as it may be large. */
static double under(const Run *run, const Chord *chord) {
    floats pixels = all(0), along = all(0);
    for (int64_t x = 0; x < run->n; x++) {
        ints mask = counted(run->bits[x] >> run->shift);
        pixels -= __builtin_convertvector(mask, floats);
        along += (floats)((ints)all((float)x) & mask);
    }
    double total = 0, pixel = run->n > 1 ? 1. / (double)(run->n - 1) : 0;
    for (int l = 0; l < LANES; l++)
        total += (double)chord->start[l] * (double)pixels[l] + (double)chord->rises[l] * pixel * (double)along[l];
    return total;
}

/* Loss and gradient of a run that its chord holds: by powers of what a class's logit gains on the chord on half of the
 * run, its terms then being those of the middle; without powers by a progression from the first pixel. */
static void walk(Cell *cell, const Run *run, const Chord *chord, const Powers *powers) {
    int64_t n = run->n, classes = cell->classes, k;
    float half = (run->end - run->start) / 2, pixel = 1 / (float)(n > 1 ? n - 1 : 1);
    float way = powers ? run->start + half : run->start, step = powers ? half : run->step;
    floats line = powers ? chord->start + chord->rises / 2 : chord->start;
    floats line_step = powers ? chord->rises / 2 : chord->rises * pixel;
    for (k = 0; k < classes; k++) {
        floats from = cell->logit[0][k], slope = cell->logit[1][k] - from;
        cell->first[k] = exponential(from + way * slope - line);
        cell->by[k] = step * slope - line_step;
    }
    for (k = 0; !powers && k < classes; k++) cell->by[k] = exponential(cell->by[k]);
    for (k = classes; k % GROUP; k++) cell->first[k] = cell->by[k] = all(0);
    floats total[LONGEST], weight[LONGEST], moved[LONGEST], sum[POWERS], sum_moved[POWERS];
    floats *sums = powers ? sum : total;
    int64_t terms = powers ? powers->terms : n;
    for (int64_t m = 0; m < terms; m++) sums[m] = all(0);
    for (k = 0; k + 4 < classes; k += GROUP) forward(cell->first + k, cell->by + k, sums, terms, GROUP);
    if (k < classes) forward(cell->first + k, cell->by + k, sums, terms, 4);
    float start = powers ? 0 : run->start; /* a progression's sums of whole pixels are exact */
    step = powers ? 1 : run->step;
    if (powers) expand(powers, sum, total);
    floats above = powers ? weigh(run, total, run->start, run->step, weight, moved, 4)
                          : weigh(run, total, 0, 1, weight, moved, 2); /* a total is above exp(-FAR) */
    if (powers) gather(powers, (const floats *[]){weight, moved}, (floats *[]){sum, sum_moved});
    for (int l = 0; l < LANES; l++) cell->loss += (double)above[l];
    cell->loss += under(run, chord);
    const floats *weights = powers ? sum : weight, *moments = powers ? sum_moved : moved;
    for (k = 0; k + 4 < classes; k += GROUP) backward(cell, k, weights, moments, start, step, terms, GROUP);
    if (k < classes) backward(cell, k, weights, moments, start, step, terms, 4);
}

/* The powers for a run, if they pay. */
static const Powers *fitting(Cell *cell, const Run *run, const Chord *chord) {
    if (run->n > LONGEST) return NULL;
    return powers_of(cell->book, cell->classes, run->n, largest(larger(chord->above, chord->below)) / 2);
}

/* Walk a run, in parts where the whole is too long or its chord too far from some logits. */
static void visit(Cell *cell, Run run) {
    uint32_t any = 0, lanes = (1u << LANES) - 1;
    for (int64_t x = 0; x < run.n; x++) any |= run.bits[x];
    if (!(any >> run.shift & lanes)) return;
    if (run.n == 1) run.step = 0; /* a ratio that nobody needs must not overflow */
    run.end = run.start + run.step * (float)(run.n - 1);
    float edge = 1.01f * run.step; /* the cell's chord is the run's where that goes from column to column, or nowhere */
    int across = holds(&cell->chord) && (run.step == 0 || (run.start <= edge && run.end >= 1 - edge));
    Chord chord = part_of(&cell->chord, &run);
    const Powers *powers = fitting(cell, &run, &chord);
    if (powers || run.n <= STEPS) {
        if (!across) chord = chord_of(cell, &run), powers = fitting(cell, &run, &chord);
        if (run.n == 1 || ((across || holds(&chord)) && (powers || run.n <= STEPS))) {
            walk(cell, &run, &chord, powers);
            return;
        }
    }
    Run rest = run;
    run.n /= 2, rest.n -= run.n, rest.start += (float)run.n * run.step, rest.bits += run.n;
    visit(cell, run);
    visit(cell, rest);
}

static void mix_row(Mix *mix, int64_t row, int lane, float weight) {
    int64_t i = 0;
    while (i < mix->count && mix->row[i] != row) i++;
    if (i == mix->count) mix->count++, mix->row[i] = row, mix->weight[i] = all(0);
    mix->weight[i][lane] += weight;
}

/* Read the logits of one column of the grid, mixed for every lane, and the chord to it from the other column. */
static inline __attribute__((always_inline)) void mixed_of(
    Cell *cell, int side, const Mix *mix, const float *column, int64_t row_stride, const int64_t count) {
    const floats lowest = all(-3e38f), *other = cell->logit[!side];
    floats *logit = cell->logit[side], top = lowest, up = lowest, down = lowest;
    for (int64_t k = 0; k < cell->classes; k++) {
        floats here = mix->weight[0] * column[mix->row[0] * row_stride + k];
        for (int64_t i = 1; i < count; i++) here += mix->weight[i] * column[mix->row[i] * row_stride + k];
        logit[k] = here;
        floats move = here - other[k];
        top = larger(top, here), up = larger(up, move), down = larger(down, -move);
    }
    cell->top[side] = top;
    floats rises = top - cell->top[!side];
    cell->chord = (Chord){cell->top[0], rises, up - rises, down + rises};
}

static void mixed(Cell *cell, int side, const Mix *mix, const float *column, int64_t row_stride) {
    if (mix->count == 2)
        mixed_of(cell, side, mix, column, row_stride, 2);
    else if (mix->count == 3)
        mixed_of(cell, side, mix, column, row_stride, 3);
    else
        mixed_of(cell, side, mix, column, row_stride, mix->count);
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
                    cell->top[0] = cell->top[1];
                } else {
                    if (at >= 0) unmixed(&mix, cell->gradient[1], classes, stride, gradient + (at + 1) * classes);
                    mixed(cell, 0, &mix, logits + next * classes, stride);
                }
                int64_t right = next + 1 < w ? next + 1 : next;
                mixed(cell, 1, &mix, logits + right * classes, stride);
                at = next;
            }
            int64_t x = run_start[i], n = run_start[i + 1] - x;
            visit(cell, (Run){n, run_t[2 * i], run_t[2 * i + 1], 0, strip + x, (int)(y % 16)});
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
    Book *book = calloc(1, sizeof *book);
    char *space = calloc((size_t)(6 * room + 1), sizeof(floats)); /* no pull yet */
    if (!space || !book) return free(space), free(book), -2;
    floats *part = (floats *)(((uintptr_t)space + sizeof(floats) - 1) & -(uintptr_t)sizeof(floats));
    Cell cell = {.classes = classes, .first = part + 4 * room, .by = part + 5 * room, .book = book};
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
    free(book);
    return 0;
}

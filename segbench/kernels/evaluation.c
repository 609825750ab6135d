/* argmax of up-sampled logits at every pixel, and its counts against the ground truth, without full-resolution logits.
 *
 * Between four patch centres (a cell) a class's logit is bilinear in the pixel's position, so it stays between the
 * smallest and the largest of its four corners. Two exact rules leave few classes to a cell: a class whose largest
 * corner is below another's smallest cannot win, nor can one that is beaten at all four corners by the same other.
 * Along a row of a cell a logit is linear: one multiplication and one addition per pixel and remaining class.
 * Classes stay in ascending order and only a greater logit takes over, so the first class wins a tie.
 */
#include "lanes.h"

enum { BLOCK = 4 }; /* vectors of pixels whose winners are in registers at a time; callers pad by PADDING floats */
enum { PADDING = BLOCK * LANES };

typedef struct { /* the classes that can win somewhere in the cell at hand */
    int64_t count;
    int32_t *label;
    uint8_t *keep;
    float *corner[4];    /* top left, top right, bottom left, bottom right */
    float *left, *slope; /* of the row at hand: the logit is left + slope * (position between the columns) */
} Classes;

typedef struct { /* where the counts go */
    int64_t classes;
    int64_t *counts; /* [classes][3]: hit, truth, predicted */
    int32_t *pairs;  /* [classes][classes]: truth, prediction; or NULL */
    uint8_t *begun;  /* whether a row of the pairs was set to 0: most images hold few classes */
} Tally;

static inline float least(float x, float y) { return x < y ? x : y; }
static inline float most(float x, float y) { return x > y ? x : y; }

static void select_classes(Classes *some, const float *const corners[4], int64_t classes) {
    const float *a = corners[0], *b = corners[1], *c = corners[2], *d = corners[3];
    float floor = -3e38f;
    for (int64_t k = 0; k < classes; k++) floor = most(floor, least(least(a[k], b[k]), least(c[k], d[k])));
    for (int64_t k = 0; k < classes; k++) some->keep[k] = most(most(a[k], b[k]), most(c[k], d[k])) >= floor;
    int64_t n = 0;
    for (int64_t k = 0; k < classes; k++) {
        some->label[n] = (int32_t)k;
        n += some->keep[k];
    }
    for (int i = 0; i < 4; i++)
        for (int64_t s = 0; s < n; s++) some->corner[i][s] = corners[i][some->label[s]];
    some->count = n;
}

/* Strictly beaten at all four corners: then beaten everywhere between them, whatever the order of the classes. */
static void drop_dominated(Classes *some) {
    const float *a = some->corner[0], *b = some->corner[1], *c = some->corner[2], *d = some->corner[3];
    int64_t n = some->count, m = 0;
    for (int64_t s = 0; s < n; s++) {
        int32_t beaten = 0;
        float as = a[s], bs = b[s], cs = c[s], ds = d[s];
        for (int64_t o = 0; o < n; o++) beaten |= (a[o] > as) & (b[o] > bs) & (c[o] > cs) & (d[o] > ds);
        some->keep[s] = !beaten;
    }
    for (int64_t s = 0; s < n; s++)
        if (some->keep[s]) {
            some->label[m] = some->label[s];
            for (int i = 0; i < 4; i++) some->corner[i][m] = some->corner[i][s];
            m++;
        }
    some->count = m;
}

/* Class of n <= vectors * LANES pixels of a row; writes whole vectors. */
static inline void winners(const Classes *some, const float *column_t, int vectors, int32_t *winner) {
    floats t[BLOCK], best[BLOCK];
    ints arg[BLOCK];
    for (int v = 0; v < vectors; v++) {
        t[v] = load(column_t + v * LANES);
        best[v] = some->left[0] + some->slope[0] * t[v];
        arg[v] = all_int(some->label[0]);
    }
    for (int64_t s = 1; s < some->count; s++) {
        floats left = all(some->left[s]), slope = all(some->slope[s]);
        ints label = all_int(some->label[s]);
        for (int v = 0; v < vectors; v++) {
            floats logit = left + slope * t[v];
            ints better = logit > best[v];
            best[v] = choose_float(better, logit, best[v]);
            arg[v] = choose(better, label, arg[v]);
        }
    }
    for (int v = 0; v < vectors; v++) memcpy(winner + v * LANES, &arg[v], sizeof arg[v]);
}

static void row_winners(Classes *some, float row_t, const float *column_t, int64_t n, int32_t *winner) {
    const float *a = some->corner[0], *b = some->corner[1], *c = some->corner[2], *d = some->corner[3];
    for (int64_t s = 0; s < some->count; s++) {
        some->left[s] = a[s] + row_t * (c[s] - a[s]);
        some->slope[s] = b[s] + row_t * (d[s] - b[s]) - some->left[s];
    }
    int64_t x = 0;
    for (; n - x > 3 * LANES; x += 4 * LANES) winners(some, column_t + x, 4, winner + x);
    if (n - x > 2 * LANES) winners(some, column_t + x, 3, winner + x);
    else if (n - x > LANES) winners(some, column_t + x, 2, winner + x);
    else if (n - x > 0) winners(some, column_t + x, 1, winner + x);
}

static inline void add(Tally *tally, int32_t truth, int32_t winner, int64_t pixels) {
    if (truth < 0 || truth >= tally->classes) return; /* too large a label is missed by the caller's sum */
    tally->counts[3 * truth] += truth == winner ? pixels : 0;
    tally->counts[3 * truth + 1] += pixels;
    tally->counts[3 * winner + 2] += pixels;
    if (!tally->pairs) return;
    int32_t *row = tally->pairs + truth * tally->classes;
    if (!tally->begun[truth]) tally->begun[truth] = 1, memset(row, 0, (size_t)tally->classes * sizeof *row);
    row[winner] += (int32_t)pixels;
}

/* Neighbours mostly agree, so pixels are counted by runs: no chain of increments of the same number. */
static void count_row(Tally *tally, const int16_t *label, const uint8_t *valid, const int32_t *winner, int64_t n) {
    int64_t start = 0;
    int32_t truth = valid[0] ? label[0] : -1, won = winner[0];
    for (int64_t x = 1; x < n; x++) {
        int32_t next = valid[x] ? label[x] : -1;
        if (next == truth && winner[x] == won) continue;
        add(tally, truth, won, x - start);
        start = x, truth = next, won = winner[x];
    }
    add(tally, truth, won, n - start);
}

/* Other threads may add to the same numbers. */
static void add_pairs(const Tally *tally, int64_t *confusion) {
    for (int64_t truth = 0; truth < tally->classes; truth++)
        for (int64_t k = truth * tally->classes; tally->begun[truth] && k < (truth + 1) * tally->classes; k++)
            if (tally->pairs[k]) __atomic_fetch_add(confusion + k, tally->pairs[k], __ATOMIC_RELAXED);
}

/* Logits are [h][w][classes]; pixels of row y lie in the cell i with row_start[i] <= y < row_start[i + 1], at row_t[y]
 * of the way from grid row i to the next; columns alike, with PADDING readable floats behind column_t. `prediction`
 * [height][width] gets the classes of the pixels inside the cells, or is NULL; `counts` [classes][3] and `confusion`
 * [classes][classes] are added to, or are NULL (confusion needs counts, and may be shared by threads). Returns 0; or 1
 * for a logit beyond `limit`, or -2 where there is no memory: then nothing was written.
 */
int64_t EXPORT(segbench_evaluate)(
    const float *logits, int64_t h, int64_t w, int64_t classes, float limit, const int32_t *row_start,
    const float *row_t, const int32_t *column_start, const float *column_t, int64_t height, int64_t width,
    const int16_t *labels, const uint8_t *valid, int16_t *prediction, int64_t *counts, int64_t *confusion) {
    int64_t room = (classes + LANES) & -(int64_t)LANES, cells_down = h > 1 ? h - 1 : 1, cells_across = w > 1 ? w - 1 : 1;
    if (unbounded(logits, h * w * classes, limit)) return 1;
    float *space = malloc((size_t)(room * 9 + width + PADDING) * sizeof(float));
    Tally tally = {.classes = classes, .counts = counts};
    if (confusion) tally.pairs = malloc((size_t)(classes * classes) * sizeof *tally.pairs);
    if (!space || (confusion && !tally.pairs)) {
        free(space), free(tally.pairs);
        return -2;
    }
    Classes some = {.keep = (uint8_t *)space, .label = (int32_t *)(space + room)};
    for (int i = 0; i < 4; i++) some.corner[i] = space + (2 + i) * room;
    some.left = space + 6 * room, some.slope = space + 7 * room;
    tally.begun = memset(space + 8 * room, 0, (size_t)classes);
    int32_t *winner = (int32_t *)(space + 9 * room);
    for (int64_t i = 0; i < cells_down; i++)
        for (int64_t j = 0; j < cells_across; j++) {
            int64_t top = row_start[i], bottom = row_start[i + 1], x = column_start[j], n = column_start[j + 1] - x;
            if (top >= bottom || n <= 0) continue;
            int64_t down = i + 1 < h ? w * classes : 0, right = j + 1 < w ? classes : 0;
            const float *corner = logits + (i * w + j) * classes;
            const float *corners[4] = {corner, corner + right, corner + down, corner + down + right};
            select_classes(&some, corners, classes);
            if (some.count > 2 && some.count < (bottom - top) * n) drop_dominated(&some); /* else it costs more */
            for (int64_t y = top; y < bottom; y++) {
                if (some.count > 1 || y == top) row_winners(&some, row_t[y], column_t + x, n, winner);
                if (counts) count_row(&tally, labels + y * width + x, valid + y * width + x, winner, n);
                if (prediction)
                    for (int64_t p = 0; p < n; p++) prediction[y * width + x + p] = (int16_t)winner[p];
            }
        }
    if (confusion) add_pairs(&tally, confusion);
    free(space), free(tally.pairs);
    return 0;
}

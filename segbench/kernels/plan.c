/* What the loss wants to know of one image's ground truth, for all probes and all epochs: which pixels count, and how
 * many pixels of a class pull at a patch, weighted as the up-sampling weights the patch at the pixel.
 */
#include "lanes.h"

/* Pixel row y lies row_t[y] of the way from grid row i to the next, row_start[i] <= y < row_start[i + 1]; columns alike.
 * Labels of valid pixels are below `classes`. Writes `bits` [height / 16, rounded up][width], a pixel row a bit from the
 * lowest; and (patch, class) to `place` [n][2] with its weighted number of pixels to `pixels` [n], patches and classes
 * ascending: room for h * w * classes. Returns n, or -2 where there is no memory.
 */
int64_t EXPORT(segbench_plan)(
    const int16_t *labels, const uint8_t *valid, int64_t height, int64_t width, int64_t h, int64_t w, int64_t classes,
    const int32_t *row_start, const double *row_t, const int32_t *column_start, const double *column_t, uint16_t *bits,
    int32_t *place, double *pixels) {
    memset(bits, 0, (size_t)((height + 15) / 16 * width) * sizeof *bits);
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++)
            bits[y / 16 * width + x] |= (uint16_t)(valid[y * width + x] << y % 16);
    int64_t line = w * classes, n = 0, cells_down = h > 1 ? h - 1 : 1, cells_across = w > 1 ? w - 1 : 1;
    double *space = calloc((size_t)(2 * line + width + 1), sizeof *space);
    if (!space) return -2;
    double *upper = space, *lower = space + line, *way = space + 2 * line; /* way[x]: sum of column_t before x */
    for (int64_t x = 0; x < width; x++) way[x + 1] = way[x] + column_t[x];
    for (int64_t i = 0; i < h; i++) {
        for (int64_t y = row_start[i]; i < cells_down && y < row_start[i + 1]; y++) {
            const int16_t *label = labels + y * width;
            const uint8_t *counts = valid + y * width;
            for (int64_t j = 0; j < cells_across; j++) {
                int64_t x = column_start[j], end = column_start[j + 1], other = j + 1 < w ? classes : 0;
                while (x < end) { /* neighbours mostly agree: one sum per run of pixels */
                    int64_t start = x;
                    int32_t here = counts[x] ? label[x] : -1;
                    while (++x < end && (counts[x] ? label[x] : -1) == here) continue;
                    if (here < 0) continue;
                    double right = way[x] - way[start], left = (double)(x - start) - right;
                    int64_t at = j * classes + here;
                    upper[at] += (1 - row_t[y]) * left, upper[at + other] += (1 - row_t[y]) * right;
                    lower[at] += row_t[y] * left, lower[at + other] += row_t[y] * right;
                }
            }
        }
        for (int64_t at = 0; at < line; at++)
            if (upper[at] > 0) {
                place[2 * n] = (int32_t)(i * w + at / classes), place[2 * n + 1] = (int32_t)(at % classes);
                pixels[n++] = upper[at];
            }
        double *done = upper;
        upper = lower, lower = done;
        memset(lower, 0, (size_t)line * sizeof *lower);
    }
    free(space);
    return n;
}

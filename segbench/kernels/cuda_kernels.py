"""The Triton kernels behind `cuda`; one program computes one tile of pixels for one probe on one image.

Logits come in units of log 2, as START (in the tile's first pixel row) and STEP (from pixel row to pixel row), both
[probe and image, row run, grid column, class], the classes padded to whole blocks with -1e30 and 0. Every program is
one warp with a pixel column per lane: sums over classes stay inside a lane. Nothing is added up by atomics.

The only module that imports triton while it is imported itself. What checks shapes at test time must not wrap a kernel.
"""

from typing import no_type_check

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

LIMIT = tl.constexpr(60.0)  # in log 2; a rise from float32's smallest number, 2^-126, stays far below what counts


@triton.jit
@no_type_check
def log_sums(
    START, STEP, ROWS, COLUMNS, SHARES, IMAGES, VALID, LSE, FAR, SUMS, images, row_runs, column_runs, width, classes,
    pixels, BK: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """LSE [probe, pixel]: log of the summed exponentials of every pixel; SUMS [tile]: their sum over valid pixels.

    The exponentials are scaled by a line between the largest logits of the tile's first and last row. If none rises
    against that line by more than LIMIT, then the largest is nowhere further below it, and what starts below float32's
    smallest number never matters. Otherwise (FAR [tile]) every pixel is scaled by its own largest logit.
    """
    both = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) // column_runs, tl.program_id(1) % column_runs
    image = both % images
    n, stride, left, right, share, inside, pixel = _tile(
        ROWS, COLUMNS, SHARES, IMAGES, image, row, column, row_runs, column_runs, BX
    )
    lse = LSE + both // images * pixels + pixel
    corner = (both * row_runs + row) * width * classes
    left, right = corner + left * classes + tl.arange(0, BK), corner + right * classes + tl.arange(0, BK)

    first = tl.full((BX,), -1e30, tl.float32)
    last, steepest = first, first
    for k in range(0, classes, BK):
        z, d = _lines(START, STEP, left + k, right + k, share)
        first = tl.maximum(first, tl.max(z, 0))
        last = tl.maximum(last, tl.max(z + (n - 1) * d, 0))
        steepest = tl.maximum(steepest, tl.max(d, 0))
    tile = (both * row_runs + row) * column_runs + column
    total = tl.zeros((BX,), tl.float32)
    near = tl.max(steepest * (n - 1) - (last - first), 0) < LIMIT
    tl.store(FAR + tile, tl.where(near, 0, 1).to(tl.int8))
    if near:
        slope = (last - first) / tl.maximum(n - 1, 1)
        for k in range(0, classes, BK):
            z, d = _lines(START, STEP, left + k, right + k, share)
            e, ratio = tl.exp2(z - first[None, :]), tl.exp2(d - slope[None, :])
            for y in range(n):
                at = lse + y * stride
                before = tl.load(at, mask=inside & (k > 0), other=0.0)
                tl.store(at, before + tl.sum(e, 0), mask=inside)
                e *= ratio
            tl.debug_barrier()  # the next block reads what this one stored
        for y in range(n):
            at = lse + y * stride
            value = tl.log2(tl.load(at, mask=inside, other=1.0)) + first + y * slope
            valid = tl.load(VALID + pixel + y * stride, mask=inside, other=0)
            tl.store(at, value, mask=inside)
            total += tl.where(valid != 0, value, 0.0)
    else:
        for y in range(n):
            top = tl.full((BX,), -1e30, tl.float32)
            for k in range(0, classes, BK):
                z, d = _lines(START, STEP, left + k, right + k, share)
                top = tl.maximum(top, tl.max(z + y * d, 0))
            exponentials = tl.zeros((BX,), tl.float32)
            for k in range(0, classes, BK):
                z, d = _lines(START, STEP, left + k, right + k, share)
                exponentials += tl.sum(tl.exp2(z + y * d - top[None, :]), 0)
            value = tl.log2(exponentials) + top
            valid = tl.load(VALID + pixel + y * stride, mask=inside, other=0)
            tl.store(lse + y * stride, value, mask=inside)
            total += tl.where(valid != 0, value, 0.0)
    tl.store(SUMS + tile, tl.sum(total, 0))


@triton.jit
@no_type_check
def gradients(
    START, STEP, ROWS, COLUMNS, SHARES, IMAGES, VALID, LSE, FAR, PARTS, images, row_runs, column_runs, width, classes,
    pixels, BK: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """PARTS [probe and image, row run, column run, (START, STEP), (left, right), class]: one tile's part of a gradient.

    A class's probability in row y is e ratio^y s[y], so that its sums over rows are polynomials in ratio (Horner). They
    are scaled by the line between the first and the last row's LSE: no further from the largest logits than log K.
    """
    both = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) // column_runs, tl.program_id(1) % column_runs
    k = tl.program_id(2) * BK + tl.arange(0, BK)
    image = both % images
    n, stride, left, right, share, inside, pixel = _tile(
        ROWS, COLUMNS, SHARES, IMAGES, image, row, column, row_runs, column_runs, BX
    )
    lse = LSE + both // images * pixels + pixel
    corner = (both * row_runs + row) * width * classes
    z, d = _lines(START, STEP, corner + left * classes + k, corner + right * classes + k, share)

    first = tl.load(lse, mask=inside, other=0.0)
    last = tl.load(lse + tl.maximum(n - 1, 0) * stride, mask=inside, other=0.0)
    slope = (last - first) / tl.maximum(n - 1, 1)
    tile = (both * row_runs + row) * column_runs + column
    sums = tl.zeros((BK, BX), tl.float32)
    moments = tl.zeros((BK, BX), tl.float32)  # rows counted from the tile's first
    if tl.load(FAR + tile) == 0:
        ratio = tl.exp2(d - slope[None, :])
        for back in range(n):
            y = n - 1 - back
            valid = tl.load(VALID + pixel + y * stride, mask=inside, other=0)
            s = tl.exp2(first + y * slope - tl.load(lse + y * stride, mask=inside, other=0.0))
            s = tl.where(valid != 0, s, 0.0)
            sums = sums * ratio + s[None, :]
            moments = moments * ratio + (s * y)[None, :]
        e = tl.exp2(z - first[None, :])
        sums *= e
        moments *= e
    else:
        for y in range(n):
            valid = tl.load(VALID + pixel + y * stride, mask=inside, other=0)
            p = tl.exp2(z + y * d - tl.load(lse + y * stride, mask=inside, other=0.0)[None, :])
            p = tl.where((valid != 0)[None, :], p, 0.0)
            sums += p
            moments += p * y
    side = tl.arange(0, 16)[None, :]  # a product with a matrix of two columns: sums over lanes are slow
    weights = tl.where(side == 0, 1 - share[:, None], tl.where(side == 1, share[:, None], 0.0))
    weights = tl.where(inside[:, None], weights, 0.0)
    part = PARTS + tile * 4 * classes + side * classes + k[:, None]
    tl.store(part, tl.dot(sums, weights, input_precision="tf32x3"), mask=side < 2)
    tl.store(part + 2 * classes, tl.dot(moments, weights, input_precision="tf32x3"), mask=side < 2)


@triton.jit
@no_type_check
def collect(PARTS, FIRST, OUT, images, row_runs, column_runs, width, classes, BK: tl.constexpr):
    """OUT [probe and image, row run, (START, STEP), grid column, class]: PARTS summed over the runs at a grid column.

    FIRST [image, width + 1]: the first column run that has this grid column or a later one on its left.
    """
    both = tl.program_id(0).to(tl.int64)
    row, j = tl.program_id(1) // width, tl.program_id(1) % width
    k = tl.program_id(2) * BK + tl.arange(0, BK)
    first = FIRST + both % images * (width + 1)
    from_left, own, end = tl.load(first + tl.maximum(j - 1, 0)), tl.load(first + j), tl.load(first + j + 1)
    sums = tl.zeros((BK,), tl.float32)
    moments = tl.zeros((BK,), tl.float32)
    for column in range(from_left, end):
        right = (column < own).to(tl.int32)
        part = PARTS + ((both * row_runs + row) * column_runs + column) * 4 * classes + right * classes + k
        sums += tl.load(part)
        moments += tl.load(part + 2 * classes)
    out = OUT + ((both * row_runs + row) * 2 * width + j) * classes + k
    tl.store(out, sums)
    tl.store(out + width * classes, moments)


@triton.jit
@no_type_check
def winners(
    START, STEP, ROWS, COLUMNS, SHARES, IMAGES, OUT, images, row_runs, column_runs, width, classes, pixels,
    BK: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr,
):  # fmt: skip
    """OUT [probe, pixel]: the class with the largest logit, the first on a tie.

    A class whose largest corner is below another's smallest wins nowhere between the four and is passed over.
    """
    both = tl.program_id(0).to(tl.int64)
    row, column = tl.program_id(1) // column_runs, tl.program_id(1) % column_runs
    image = both % images
    n, stride, left, right, share, inside, pixel = _tile(
        ROWS, COLUMNS, SHARES, IMAGES, image, row, column, row_runs, column_runs, BX
    )
    corner = (both * row_runs + row) * width * classes
    left, right = corner + left * classes, corner + right * classes
    highest = tl.full((BK,), -3e38, tl.float32)
    for k in range(0, classes, BK):
        ks = k + tl.arange(0, BK)
        a, b = tl.load(START + left + ks), tl.load(START + right + ks)
        c, d = a + (n - 1) * tl.load(STEP + left + ks), b + (n - 1) * tl.load(STEP + right + ks)
        highest = tl.maximum(highest, tl.minimum(tl.minimum(a, b), tl.minimum(c, d)))
    floor = tl.max(highest, 0)
    floor -= tl.abs(floor) * 1e-6  # interpolation rounds
    ys = tl.arange(0, BY)[:, None]
    best = tl.full((BY, BX), -3e38, tl.float32)
    winner = tl.zeros((BY, BX), tl.int32)
    for k in range(classes):
        a, b = tl.load(START + left + k), tl.load(START + right + k)
        below, beside = tl.load(STEP + left + k), tl.load(STEP + right + k)
        c, d = a + (n - 1) * below, b + (n - 1) * beside
        if tl.maximum(tl.maximum(a, b), tl.maximum(c, d)) >= floor:
            z, step = a + share * (b - a), below + share * (beside - below)
            logit = z[None, :] + ys * step[None, :]
            winner = tl.where(logit > best, k, winner)
            best = tl.maximum(best, logit)
    out = OUT + both // images * pixels + pixel[None, :] + ys * stride
    tl.store(out, winner.to(tl.int16), mask=(ys < n) & inside[None, :])


@triton.jit
@no_type_check
def tally(
    WINNERS, LABELS, VALID, BLOCKS, OUT, images, pixels, classes, BINS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """OUT [probe and image, block, (hit, truth, predicted), bin]: valid pixels of a class; what counts not is a bin.

    BLOCKS [image, block, 2]: its first pixel among those of all images, and the end of the image.
    """
    both, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    where = BLOCKS + (both % images * tl.num_programs(1) + block) * 2
    at = tl.load(where) + tl.arange(0, BLOCK)
    inside = at < tl.load(where + 1)
    winner = tl.load(WINNERS + both // images * pixels + at, mask=inside, other=0).to(tl.int32)
    label = tl.load(LABELS + at, mask=inside, other=0).to(tl.int32)
    counted = (tl.load(VALID + at, mask=inside, other=0) != 0) & (label < classes)
    out = OUT + (both * tl.num_programs(1) + block) * 3 * BINS + tl.arange(0, BINS)
    tl.store(out, tl.histogram(tl.where(counted & (winner == label), winner, classes), BINS))
    tl.store(out + BINS, tl.histogram(tl.where(counted, label, classes), BINS))
    tl.store(out + 2 * BINS, tl.histogram(tl.where(counted, winner, classes), BINS))


@triton.jit
@no_type_check
def _tile(ROWS, COLUMNS, SHARES, IMAGES, image, row, column, row_runs, column_runs, BX: tl.constexpr):
    """Its rows, pixels to the next row, grid columns, and of every pixel column: share, whether it is one, address."""
    rows, columns = ROWS + (image * row_runs + row) * 2, COLUMNS + (image * column_runs + column) * 4
    shares = SHARES + (image * column_runs + column) * 2
    x = tl.arange(0, BX)
    n = tl.load(rows + 1)
    inside = x < tl.where(n > 0, tl.load(columns + 1), 0)
    share = tl.load(shares) + tl.where(inside, x, 0) * tl.load(shares + 1)
    stride = tl.load(IMAGES + image * 2 + 1)
    pixel = tl.load(IMAGES + image * 2) + tl.load(rows) * stride + tl.load(columns) + x
    return n, stride, tl.load(columns + 2), tl.load(columns + 3), share, inside, pixel


@triton.jit
@no_type_check
def _lines(START, STEP, left, right, share):
    """Logit in the first pixel row of a tile, and its change from row to row, by [class, pixel column]."""
    a, b = tl.load(START + left)[:, None], tl.load(START + right)[:, None]
    c, d = tl.load(STEP + left)[:, None], tl.load(STEP + right)[:, None]
    return a + share[None, :] * (b - a), c + share[None, :] * (d - c)

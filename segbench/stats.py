"""Resampling images: every interval of segbench is a paired bootstrap over images on integer counts.

A resample is a row of weights (how often each image was drawn), so that resampling a sum is a matrix product.
Everything measured on the same images shares the same rows: sites of one model, conditions of one knockout, the two
models of a pair. Differences are taken inside each resample, which makes their intervals paired.

Counts are whole numbers, and sums of whole numbers below 2^53 are exact in float64: the draws of a mIoU do not depend
on the number of threads or on the order of the images' sums.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Num

from segbench.types import Interval

DRAWS = 1000
_BLOCK = 1 << 22  # float64 numbers of one intermediate product (32 MB)


Summary = Callable[[Num[np.ndarray, "*sites k 3"]], Float[np.ndarray, "*sites"]]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; the interval is absent where one image cannot tell."""

    value: int | float
    interval: Interval | None


@dataclass(frozen=True, eq=False)
class Sampled:
    """A number and what it is in every resample. A difference of two is taken inside each resample, so it is paired."""

    value: float
    drawn: Float[np.ndarray, " draws"]

    def __sub__(self, other: "Sampled") -> "Sampled":
        return Sampled(self.value - other.value, self.drawn - other.drawn)

    def estimate(self) -> Estimate | None:
        """The number with its interval; None where it does not exist (nothing was counted)."""
        return Estimate(float(self.value), interval(self.drawn)) if np.isfinite(self.value) else None


def resamples(n: int, draws: int = DRAWS, seed: int = 0) -> Int32[np.ndarray, "draws n"]:
    """How often each of `n` images is drawn in each resample; rows add up to n. The same n gives the same rows.

    A single image cannot be resampled: fewer than two give no rows at all, and hence no interval.
    """
    if n < 2:
        return np.zeros((0, n), np.int32)
    random = np.random.Generator(np.random.PCG64(seed))
    return random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.int32)


def miou(counts: Num[np.ndarray, "*sites k 3"]) -> Float[np.ndarray, "*sites"]:
    """Mean IoU in % from (hit, truth, predicted) pixels that are already summed over images.

    IoU = hit / (truth + predicted - hit), mean over the classes with a non-empty union; nan where no class has one.
    """
    hit, truth, predicted = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _percent(_mean_ratio(hit, truth + predicted - hit))


def pixel_accuracy(counts: Num[np.ndarray, "*sites k 3"]) -> Float[np.ndarray, "*sites"]:
    """Labelled pixels that are predicted right, in %, from counts summed over images; nan where none is labelled."""
    hit, truth, _ = np.moveaxis(np.sum(counts, -2, dtype=np.float64), -1, 0)
    return _percent(_divide(hit, truth))


def mean_accuracy(counts: Num[np.ndarray, "*sites k 3"]) -> Float[np.ndarray, "*sites"]:
    """Recall in %, mean over the classes with labelled pixels, from counts summed over images; nan where none has."""
    hit, truth, _ = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return _percent(_mean_ratio(hit, truth))


def present(counts: Int[np.ndarray, "*images k 3"]) -> Bool[np.ndarray, " k"]:
    """Which classes have a non-empty union, by label or by prediction: those that a mean IoU averages over."""
    return np.asarray(counts.reshape(-1, *counts.shape[-2:]).any((0, 2)))


def draws(
    summary: Summary, counts: Int[np.ndarray, "l n k 3"], weights: Int[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws l"]:
    """`summary` (`miou` ...) of every site in every resample: sums over the drawn images first, ratios last.

    A class that no drawn image holds or predicts is left out of that resample's mean.
    """
    result = np.empty((len(weights), len(counts)))
    for row, site in enumerate(counts):
        seen = site[:, present(site)]  # the others are empty in every resample
        flat = seen.reshape(len(site), -1).astype(np.float64)
        for block in _blocks(len(weights), max(flat.shape)):
            drawn = weights[block].astype(np.float64) @ flat
            result[block, row] = summary(drawn.reshape(-1, *seen.shape[1:]))
    return result


def miou_draws(counts: Int[np.ndarray, "l n k 3"], weights: Int[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws l"]:
    """Mean IoU in % of every site in every resample."""
    return draws(miou, counts, weights)


def ratio(top: Num[np.ndarray, "n *rest"], bottom: Num[np.ndarray, "n *rest"]) -> Float[np.ndarray, "*rest"]:
    """Sum of `top` over images divided by the sum of `bottom`; nan where nothing was counted."""
    return _divide(top.sum(0, dtype=np.float64), bottom.sum(0, dtype=np.float64))


def ratio_draws(
    top: Num[np.ndarray, "n *rest"], bottom: Num[np.ndarray, "n *rest"], weights: Int[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws *rest"]:
    """`ratio` in every resample; nan where no drawn image counts."""
    above, below = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (top, bottom))
    result = np.empty((len(weights), above.shape[1]))
    for block in _blocks(len(weights), max(above.shape)):
        drawn = weights[block].astype(np.float64)
        result[block] = _divide(drawn @ above, drawn @ below)
    return result.reshape(len(weights), *top.shape[1:])


def per_image(values: Num[np.ndarray, "m *rest"], image: Int[np.ndarray, " m"]) -> Float[np.ndarray, "n *rest"]:
    """Sums of rows that belong to the same image; images in ascending order, those without a row are not there.

    Images, not rows, are what is resampled: the rows of one image (its confused classes) are not independent.
    """
    names, index = np.unique(image, return_inverse=True)
    result = np.zeros((len(names), *values.shape[1:]))
    np.add.at(result, index, values)
    return result


def interval(drawn: Float[np.ndarray, " draws"]) -> Interval | None:
    """The 2.5th and 97.5th percentile of the draws that exist; None where none does."""
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return None
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(float(low), float(high))


def intervals(drawn: Float[np.ndarray, "draws l"]) -> list[Interval | None]:
    """`interval` of every column."""
    return [interval(column) for column in drawn.T]


def _mean_ratio(top: Float[np.ndarray, "*rest k"], bottom: Float[np.ndarray, "*rest k"]) -> Float[np.ndarray, "*rest"]:
    """Mean of the ratios that exist; nan where none does."""
    there = bottom > 0
    ratios = np.where(there, _divide(top, bottom), 0.0)
    return _divide(ratios.sum(-1), there.sum(-1))


def _divide(
    top: Num[np.ndarray, "*rest"] | np.number, bottom: Num[np.ndarray, "*rest"] | np.number
) -> Float[np.ndarray, "*rest"]:
    bottom = np.asarray(bottom)
    return np.divide(top, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def _percent(ratio: Float[np.ndarray, "*rest"]) -> Float[np.ndarray, "*rest"]:
    """numpy makes a scalar of an array without axes; this stays one."""
    return np.asarray(100 * ratio)


def _blocks(draws: int, width: int) -> Sequence[slice]:
    """Resamples to take at once, so that neither weights nor products of one block outgrow the memory."""
    step = max(1, _BLOCK // max(width, 1))
    return [slice(start, start + step) for start in range(0, draws, step)]

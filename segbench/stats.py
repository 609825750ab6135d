"""How far a number would move with other images: every interval of segbench, on integer counts.

A *unit* is what was sampled: an image, or a whole cluster where the data set says which images were taken together
(the cities of Cityscapes). An interval leaves every unit out once (the jackknife): the number +- t(units - 1) standard
errors, from what it is without each. Everything measured on the same images leaves out the same units: sites of one
model, conditions of one knockout, the two models of a pair. Differences are taken inside each, which pairs them.

Why not the percentiles of a bootstrap? `benchmarks/coverage.py` simulates both. With 150 classes, some of them in two
or three images, a bootstrap's 95 % intervals hold the truth in 91 % of cases, with 20 images in 88 %, with three cities
in 74 %, and recovery at the best of twelve equal layers in 67 %: a resample drops rare classes, and takes a lucky layer
twice. Leaving out one unit does neither and errs on the wide side (Efron & Stein 1981, doi:10.1214/aos/1176345462);
with t(units - 1) it is what MacKinnon, Nielsen & Webb advise for few clusters (2023, arXiv 2301.04527). It fails for
medians: they, and the layers that a peak may fall on, are bootstrapped.

Counts are whole numbers, and sums of whole numbers below 2^53 are exact in float64: nothing here depends on the number
of threads or on the order of the images' sums.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, Num

from segbench.types import Interval

CONFIDENCE = 0.95
DRAWS = 1000  # of a bootstrap
FEW = 50  # units: below it, percentiles of a bootstrap are too narrow
_BLOCK = 1 << 22  # float64 numbers of one intermediate product (32 MB)


Summary = Callable[[Num[np.ndarray, "*sites k 3"]], Float[np.ndarray, "*sites"]]


@dataclass(frozen=True, eq=False)
class Units:
    """What was sampled: the images of a split, or the clusters that they were taken in."""

    of: Int[np.ndarray, " n"]  # the unit of every image
    count: int
    kind: Literal["images", "clusters"]

    @classmethod
    def among(cls, images: int, clusters: Sequence[str] | None = None) -> "Units":
        """The images themselves, or the clusters by the name that each image has; in order of appearance."""
        if clusters is None:
            return cls(np.arange(images), images, "images")
        if len(clusters) != images:
            raise ValueError(f"{len(clusters)} names of clusters for {images} images")
        numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
        return cls(np.array([numbers[name] for name in clusters], int), len(numbers), "clusters")

    def taking(self, images: Int[np.ndarray, " some"]) -> "Units":
        """The units that some of the images belong to."""
        units, of = np.unique(self.of[images], return_inverse=True)
        return Units(of, len(units), self.kind)

    def sums(self, rows: Num[np.ndarray, "n *rest"]) -> Float[np.ndarray, "units *rest"]:
        """Sums over the images of each unit."""
        if self.kind == "images" and self.count == len(rows):
            return rows.astype(np.float64)
        result = np.zeros((self.count, *rows.shape[1:]))
        np.add.at(result, self.of, rows)
        return result

    def drawn(self, draws: int = DRAWS) -> Int32[np.ndarray, "draws n"]:
        """How often each image is drawn in each resample of a bootstrap, whole units together."""
        return resamples(self.count, draws)[:, self.of]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and standard error; both are absent where one unit alone carries the number."""

    value: int | float
    interval: Interval | None
    error: float | None = None
    units: int | None = None


@dataclass(frozen=True, eq=False)
class Sampled:
    """A number, and what it is again without each unit, or in each resample. A difference of two is paired."""

    value: float
    again: Float[np.ndarray, " resamples"]
    units: int
    method: Literal["leaving out", "drawing"] = "leaving out"
    within: tuple[float, float] = (-math.inf, math.inf)  # what it can be; no interval reaches beyond

    def __sub__(self, other: "Sampled") -> "Sampled":
        if (self.units, self.method) != (other.units, other.method):
            raise ValueError("numbers that were sampled differently cannot be paired")
        return Sampled(self.value - other.value, self.again - other.again, self.units, self.method)

    @property
    def error(self) -> float | None:
        """The standard error; None where one unit cannot be spared, or nothing was counted."""
        if self.units < 2 or not np.isfinite(self.value):
            return None
        if self.method == "drawing":
            return float(np.nanstd(self.again)) * math.sqrt(self.units / (self.units - 1))
        if not np.isfinite(self.again).all():
            return None
        return math.sqrt((self.units - 1) / self.units * float(np.square(self.again - self.value).sum()))

    def estimate(self) -> Estimate | None:
        """The number with its interval; None where it does not exist (nothing was counted)."""
        if not np.isfinite(self.value):
            return None
        error = self.error
        if error is None:
            return Estimate(float(self.value), None, None, self.units)
        half = student(0.5 + CONFIDENCE / 2, self.units - 1) * error
        least, most = self.within
        around = Interval(max(float(self.value - half), least), min(float(self.value + half), most))
        if self.method == "drawing" and self.units >= FEW:
            around = interval(self.again)
        return Estimate(float(self.value), around, error, self.units)


def best(of: Sequence[Sampled]) -> Sampled:
    """The highest number; chosen anew without each unit, as it was chosen on these units."""
    first = of[0]
    again = np.max([one.again for one in of], 0)
    return Sampled(max(one.value for one in of), again, first.units, first.method, first.within)


def sampled(summary: Summary, counts: Int[np.ndarray, "l n k 3"], units: Units) -> list[Sampled]:
    """`summary` (`miou` ..., in %) of every site. A class is left out of a mean if no unit holds or predicts it."""
    found = []
    for site in counts:
        parts = units.sums(site)
        total = parts.sum(0)
        found.append(Sampled(float(summary(total)), summary(total - parts), units.count, within=(0.0, 100.0)))
    return found


def sampled_ratio(top: Num[np.ndarray, "n m"], bottom: Num[np.ndarray, "n m"], units: Units) -> list[Sampled]:
    """Sum of `top` over images divided by the sum of `bottom`, in %, of every column; nan where nothing was counted."""
    above, below = units.sums(top), units.sums(bottom)
    tops, bottoms = above.sum(0), below.sum(0)
    values, again = _percent(_divide(tops, bottoms)), _percent(_divide(tops - above, bottoms - below))
    pairs = zip(values, again.T, strict=True)
    return [Sampled(float(value), column, units.count, within=(0.0, math.inf)) for value, column in pairs]


def sampled_median(values: Num[np.ndarray, "rows m"], image: Int[np.ndarray, " rows"], units: Units) -> list[Sampled]:
    """Median over the rows of every column, bootstrapped; all rows of an image are drawn as often as it is.

    Leaving out one unit moves a median to one of its neighbours or not at all: that says nothing about its error.
    """
    weights = np.concatenate([np.ones((1, len(units.of)), np.int32), units.drawn()])[:, image]
    found = []
    for column in values.T:
        medians = weighted_median(column, weights)
        found.append(Sampled(float(medians[0]), medians[1:], units.count, "drawing"))
    return found


def resamples(n: int, draws: int = DRAWS, seed: int = 0) -> Int32[np.ndarray, "draws n"]:
    """How often each of `n` units is drawn in each resample; rows add up to n. The same n gives the same rows.

    A single unit cannot be resampled: fewer than two give no rows at all, and hence no interval.
    """
    if n < 2:
        return np.zeros((0, n), np.int32)
    random = np.random.Generator(np.random.PCG64(seed))
    return random.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.int32)


@functools.cache
def student(probability: float, freedom: int | float) -> float:
    """The value that Student's t stays below with this probability (above one half).

    Newton's steps from the normal quantile, which never overshoot. With t = tan(angle) sqrt(freedom) the density is
    a power of a cosine, which 40 points integrate to more digits than are shown.
    """
    if freedom < 1 or not 0.5 < probability < 1:
        raise ValueError(f"no t quantile of {probability} with {freedom} degrees of freedom")
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    points, weights = np.polynomial.legendre.leggauss(40)
    t = NormalDist().inv_cdf(probability)
    for _ in range(60):
        angle = math.atan(t / math.sqrt(freedom))
        inner = float(weights @ np.cos(angle * (points + 1) / 2) ** (freedom - 1))
        below = 0.5 + scale * inner * angle / 2
        step = (probability - below) * math.sqrt(freedom) / (scale * math.cos(angle) ** (freedom + 1))
        t += step
        if abs(step) < 1e-12 * t:
            break
    return t


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


def weighted_median(
    values: Num[np.ndarray, " rows"], weights: Int[np.ndarray, "draws rows"]
) -> Float[np.ndarray, " draws"]:
    """Median of the values, each as often as its weight says; between the two middle ones where the count is even."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[:, order], 1)
    twice, whole = 2 * below, below[:, -1:]
    ordered = np.asarray(values, np.float64)[order]
    return (ordered[(twice >= whole).argmax(1)] + ordered[(twice > whole).argmax(1)]) / 2


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

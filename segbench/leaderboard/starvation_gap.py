"""Which patches lack context under causal attention? Patch accuracy minus the baseline's (Fig. 7, Table 3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from segbench import stats
from segbench.errors import CellError
from segbench.stats import Estimate, Sampled
from segbench.store import Result
from segbench.types import Interval

FIRST = 3  # patches of the paper's Table 3
EARLY = 50  # patches of the paper's Fig. 7


@dataclass(frozen=True)
class StarvationGap:
    """Differences of pixel accuracy in points; positions in raster order, nan and None where no pixel is labelled.

    The intervals of single positions are pointwise: one in twenty leaves the truth out where nothing else does.
    """

    first: Estimate | None  # the first three patches pooled
    early: Estimate | None  # the first fifty pooled
    positions: Float[np.ndarray, " t"]
    intervals: tuple[Interval | None, ...]
    grid: tuple[int, int]
    images: int
    sites: tuple[str, str]  # where the model and its baseline were read


def starvation_gap(result: Result, baseline: Result) -> StarvationGap:
    """The gap of one pair; CellError if the two were not measured on the same images and the same grid."""
    for fact in ("images", "grid"):
        if result.about[fact] != baseline.about[fact]:
            raise CellError(f"{result.task}: {result.model} and {baseline.model} differ in their {fact}")
    weights = stats.resamples(len(result.about["images"]))
    positions = _accuracy(result, None, weights)
    less = _accuracy(baseline, None, weights)
    gaps = [ours - theirs for ours, theirs in zip(positions, less, strict=True)]
    first, early = (
        (_accuracy(result, most, weights)[0] - _accuracy(baseline, most, weights)[0]).estimate()
        for most in (FIRST, EARLY)
    )
    h, w = result.about["grid"]
    return StarvationGap(
        first,
        early,
        np.array([gap.value for gap in gaps]),
        tuple(stats.interval(gap.drawn) for gap in gaps),
        (h, w),
        len(result.about["images"]),
        (result.about["site"], baseline.about["site"]),
    )


def _accuracy(result: Result, most: int | None, weights: np.ndarray) -> list[Sampled]:
    """Pixel accuracy in % at every position, or of the first `most` positions pooled."""
    arrays = result.arrays("positions")
    hit, count = (arrays[name][:, :most] for name in ("hit", "count"))
    if most is not None:
        hit, count = (part.sum(1, keepdims=True) for part in (hit, count))
    values, drawn = 100 * stats.ratio(hit, count), 100 * stats.ratio_draws(hit, count, weights)
    return [Sampled(float(value), column) for value, column in zip(values, drawn.T, strict=True)]

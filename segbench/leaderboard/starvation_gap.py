"""Which patches lack context under causal attention? Patch accuracy minus the baseline's (Fig. 7, Table 3)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from segbench import stats
from segbench.errors import CellError
from segbench.stats import Estimate, Sampled, Units
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
    for fact in ("images", "grid", "clusters"):
        if result.about.get(fact) != baseline.about.get(fact):
            raise CellError(f"{result.task}: {result.model} and {baseline.model} differ in their {fact}")
    positions, less = _accuracy(result), _accuracy(baseline)
    gaps = [ours - theirs for ours, theirs in zip(positions, less, strict=True)]
    first, early = ((_accuracy(result, most)[0] - _accuracy(baseline, most)[0]).estimate() for most in (FIRST, EARLY))
    estimates = [gap.estimate() for gap in gaps]
    h, w = result.about["grid"]
    return StarvationGap(
        first,
        early,
        np.array([gap.value for gap in gaps]),
        tuple(estimate.interval if estimate else None for estimate in estimates),
        (h, w),
        len(result.about["images"]),
        (result.about["site"], baseline.about["site"]),
    )


def _accuracy(result: Result, most: int | None = None) -> list[Sampled]:
    """Pixel accuracy in % at every position, or of the first `most` positions pooled."""
    arrays = result.arrays("positions")
    hit, count = (arrays[name][:, :most] for name in ("hit", "count"))
    if most is not None:
        hit, count = (part.sum(1, keepdims=True) for part in (hit, count))
    return stats.sampled_ratio(hit, count, Units.among(len(hit), result.about.get("clusters")))

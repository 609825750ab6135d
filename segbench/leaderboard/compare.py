"""Is one model better than another, or is it the images and the training of the probes?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from segbench.errors import NotComparable
from segbench.leaderboard import select
from segbench.leaderboard.drop_recovery import sampled
from segbench.stats import CONFIDENCE, Sampled, student
from segbench.store import Result
from segbench.types import Interval

MARGIN = 0.5  # points of mIoU that nobody would act upon

Verdict = Literal["better", "same", "worse", "undecided", "missing"]

_SAME = {  # of a cell's inputs: what two models must share, and how it is called
    "protocol": "version of the protocol",
    "task": "task, as it was read",
    "data": "data",
    "limit": "limit",
}


@dataclass(frozen=True)
class Difference:
    """Model minus baseline, in points, with where its uncertainty comes from."""

    value: float
    images: float | None  # standard error that the choice of images causes; None where one image cannot tell
    seeds: float | None  # standard error that the training of the probes causes; None where each model has one seed
    interval: Interval | None  # 95 %, of both; of the images alone where `seeds` is None

    def verdict(self, margin: float) -> Verdict:
        """Better or worse beyond the interval and the margin, same where the interval is within the margin.

        With one probe seed each nobody knows how far another training of the probes would have gone. Better and worse
        then suppose that the standard deviation over seeds is no more than the margin, and same holds for these probes.
        How often this errs, and what it finds: `benchmarks/null_comparison.py`.
        """
        if self.interval is None:
            return "undecided"
        low, high = self.interval.low, self.interval.high
        beyond = low > 0 or high < 0
        if self.seeds is None:
            beyond = 0 < margin <= (self.withstands() or 0)
        if beyond and abs(self.value) > margin:
            return "better" if self.value > 0 else "worse"
        return "same" if -margin <= low and high <= margin else "undecided"

    def withstands(self) -> float | None:
        """One seed each: the standard deviation over seeds up to which the difference is beyond its 95 % interval.

        The interval then is as many times sqrt(V_images + 2 s^2) as it is of sqrt(V_images) now. None with more seeds,
        and where the difference is not even beyond the images' part.
        """
        if self.seeds is not None or self.images is None or self.interval is None:
            return None
        times = (self.interval.high - self.value) / self.images if self.images else NormalDist().inv_cdf(0.975)
        room = (self.value / times) ** 2 - self.images**2
        return math.sqrt(room / 2) if room > 0 else None


@dataclass(frozen=True)
class Compared:
    """One quantity of both models: means over their seeds, in % (drop and recovery in points)."""

    quantity: str
    ours: float | None
    theirs: float | None
    difference: Difference | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """Two models on one task."""

    task: str
    model: str
    baseline: str
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    images: int
    clusters: int | None  # that the images were taken in, where the data set says so: what the intervals are over
    margin: float
    incomplete: str | None  # why it is no result: limited, or on a part of the data set
    rows: tuple[Compared, ...]


def compare(ours: Sequence[Result], theirs: Sequence[Result], margin: float = MARGIN) -> Comparison:
    """Probe cells of two models on one task, one per probe seed, each quantity with its interval and verdict.

    NotComparable where images, classes, data or protocol differ between any two of the cells, or weights between the
    seeds of one model. Intervals of single layers hold for each layer by itself.
    """
    _check(ours, theirs)
    samples = [[sampled(result) for result in side] for side in (ours, theirs)]
    first, second = ours[0], theirs[0]
    names = list(dict.fromkeys(name for side in samples for one in side for name in one))
    ahead = ("encoder", "adapter", "drop", "peak", "recovery")
    ordered = [*ahead, *(name for name in names if name not in ahead)]
    return Comparison(
        task=first.task,
        model=first.model,
        baseline=second.model,
        seeds=(tuple(one.seed for one in ours), tuple(one.seed for one in theirs)),
        images=len(first.about["images"]),
        clusters=len(set(first.about["clusters"])) if "clusters" in first.about else None,
        margin=margin,
        incomplete=select.incomplete(first),
        rows=tuple(_compared(name, samples[0], samples[1], margin) for name in ordered),
    )


def difference(ours: Sequence[Sampled], theirs: Sequence[Sampled]) -> Difference:
    """Mean over the seeds of one model minus that of the other, sampled on the same images.

    Two sources of variance add up. Images: that of the paired difference of the two means. Seeds: s^2 (1/n1 + 1/n2),
    with s^2 pooled over both models, n1 + n2 - 2 degrees of freedom. The interval is Student's t with the degrees of
    freedom of a sum of variances,

        df = (V_images + V_seeds)^2 / (V_images^2 / (units - 1) + V_seeds^2 / (n1 + n2 - 2))

    (F. E. Satterthwaite, An approximate distribution of estimates of variance components, Biometrics Bulletin 2, 1946).
    The seeds' deviations hold a part of the images' variance too, so the interval is rather too wide than too narrow.
    """
    paired = _mean(ours) - _mean(theirs)
    freedom = len(ours) + len(theirs) - 2
    of_seeds = None
    if freedom:
        deviations = [one.value - _mean(side).value for side in (ours, theirs) for one in side]
        of_seeds = sum(one**2 for one in deviations) / freedom * (1 / len(ours) + 1 / len(theirs))
    interval = None
    if paired.error is not None:
        half = _half_width([(paired.error**2, paired.units - 1), (of_seeds or 0.0, freedom)])
        interval = Interval(paired.value - half, paired.value + half)
    return Difference(paired.value, paired.error, None if of_seeds is None else math.sqrt(of_seeds), interval)


def _half_width(parts: Sequence[tuple[float, int]]) -> float:
    """Of the 95 % interval of a sum of independent variances, each with its degrees of freedom."""
    total = sum(variance for variance, _ in parts)
    if not total:
        return 0.0
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts if variance)
    return student(0.5 + CONFIDENCE / 2, freedom) * math.sqrt(total)


def _compared(
    name: str, ours: Sequence[Mapping[str, Sampled]], theirs: Sequence[Mapping[str, Sampled]], margin: float
) -> Compared:
    """One quantity; missing unless every seed of both models has it."""
    sides = [[one[name] for one in side if name in one and np.isfinite(one[name].value)] for side in (ours, theirs)]
    whole = [len(found) == len(side) for found, side in zip(sides, (ours, theirs), strict=True)]
    values = [_mean(found).value if one else None for found, one in zip(sides, whole, strict=True)]
    if not all(whole):
        return Compared(name, values[0], values[1], None, "missing")
    found = difference(sides[0], sides[1])
    return Compared(name, values[0], values[1], found, found.verdict(margin))


def _check(ours: Sequence[Result], theirs: Sequence[Result]) -> None:
    """Refuse cells that were not measured on the same images in the same way, and seeds of other weights."""
    first = ours[0]
    for one in (*ours, *theirs):
        differing = [
            name for key, name in _SAME.items() if (one.inputs or {}).get(key) != (first.inputs or {}).get(key)
        ]
        facts = ("images", "classes", "clusters", "partial")
        differing += [name for name in facts if one.about.get(name) != first.about.get(name)]
        if differing:
            raise NotComparable(
                f"{first.task}: {first.model} (seed {first.seed}) and {one.model} (seed {one.seed}) differ in their "
                f"{', '.join(differing)}; measure both with the same task on the same data"
            )
    for side in (ours, theirs):
        origins = [(one.revision, *((one.inputs or {}).get(key) for key in ("model", "weights"))) for one in side]
        if any(one != origins[0] for one in origins):
            raise NotComparable(
                f"{side[0].task}: the seeds of {side[0].model} were measured with different weights or settings of the "
                "model; measure all of them again"
            )


def _mean(samples: Sequence[Sampled]) -> Sampled:
    """Mean over seeds, of a number and of what it is without each unit."""
    value, again = np.mean([one.value for one in samples]), np.mean([one.again for one in samples], 0)
    return Sampled(float(value), again, samples[0].units, samples[0].method)

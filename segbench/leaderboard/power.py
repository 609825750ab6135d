"""How many images does it take to find a difference? From what a first, perhaps limited, run says about the spread."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from segbench.errors import CellError
from segbench.leaderboard import select
from segbench.leaderboard.drop_recovery import drop_recovery, gain
from segbench.leaderboard.knockout_summary import persistence
from segbench.leaderboard.starvation_gap import starvation_gap
from segbench.stats import CONFIDENCE, Estimate, student
from segbench.store import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What one measured difference says about the next one like it; in points, whatever its own size."""

    model: str
    task: str
    seed: int
    quantity: str  # as the columns of the leaderboard
    value: float
    error: float  # standard error
    half: float  # of the 95 % interval
    smallest: float  # difference that is found with the wished power by as many units as were measured
    unit: Literal["images", "clusters", "images with a confusion"]
    measured: int  # units
    needed: int  # units that find the wished difference
    pilot: str | None  # why these are not all images: a limited run, or a part of the data set


def plans(results: Sequence[Result], difference: float, power: float) -> list[Plan]:
    """Every paired difference of every probe cell and of what reads its probes, in points.

    A difference is found where its interval leaves zero out. What is needed supposes images like these: the standard
    error falls with the root of their number. It is over images alone; other probe seeds add their own spread.
    """
    found = []
    for probe in select.of_kind(results, "probe"):
        for result, quantity, estimate in _differences(results, probe):
            if estimate.error is None or estimate.interval is None or estimate.units is None:
                log.warning("%s on %s: one image tells no spread of %s", result.model, result.task, quantity)
                continue
            images = "images with a confusion" if result.kind == "knockout" else "images"
            plan = Plan(
                result.model,
                result.task,
                result.seed,
                quantity,
                estimate.value,
                estimate.error,
                (estimate.interval.high - estimate.interval.low) / 2,
                _errors(estimate.units, power) * estimate.error,
                "clusters" if "clusters" in result.about else images,
                estimate.units,
                needed(estimate.error, estimate.units, difference, power),
                select.incomplete(result, results),
            )
            found.append(plan)
    return found


def needed(error: float, units: int, difference: float, power: float) -> int:
    """The fewest units with which a true difference is found with this power, given the error of `units` of them."""
    one = error * math.sqrt(units)  # the error of a single unit
    count = max(2, math.ceil((one * _errors(1_000_000, power) / difference) ** 2))  # t is wider than the normal
    while _errors(count, power) * one / math.sqrt(count) > difference:
        count += 1
    return count


def _errors(units: int, power: float) -> float:
    """How many standard errors a difference must be, so that its interval leaves zero out with this power."""
    return student(0.5 + CONFIDENCE / 2, units - 1) + student(power, units - 1)


def _differences(results: Sequence[Result], probe: Result) -> Iterator[tuple[Result, str, Estimate]]:
    """The differences of the leaderboard that have paired intervals, with the cell that each was measured in."""
    anatomy = drop_recovery(probe)
    named = {"drop": anatomy.drop, "recovery": anatomy.recovery, "delta_enc": anatomy.delta_enc}
    yield from ((probe, name, one) for name, one in named.items() if one)
    try:
        if (twin := select.baseline(results, probe)) and (one := gain(probe, twin)):
            yield probe, "gain", one
        if pair := select.starved(results, probe):
            gap = starvation_gap(*pair)
            named = {"starvation_gap": gap.first, "starvation_early": gap.early}
            yield from ((pair[0], name, one) for name, one in named.items() if one)
    except CellError as error:
        log.warning("no difference from the baseline: %s", error)
    if knockout := select.reading(results, "knockout", probe):
        for name, one in persistence(knockout).effects.items():
            yield knockout, f"effect_{name}", one

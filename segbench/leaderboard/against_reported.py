"""What a paper prints beside what was measured here: of the same model and the same data set, whatever else differs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from segbench.leaderboard import select
from segbench.leaderboard.drop_recovery import drop_recovery
from segbench.leaderboard.knockout_summary import persistence
from segbench.leaderboard.reported import Reported
from segbench.leaderboard.starvation_gap import starvation_gap
from segbench.stats import Estimate
from segbench.store import Result

ORIGIN = ("weights", "hub", "revision")  # fields that may be replaced in a card, and it is still that model


@dataclass(frozen=True)
class Beside:
    """A reported number and one measurement of it, in the reported unit; or none."""

    reported: Reported
    model: str | None = None  # its full name, with whatever was replaced in the card
    task: str | None = None
    seed: int | None = None
    mark: str | None = None  # why the measurement does not count as one
    measured: Estimate | None = None

    @property
    def difference(self) -> float | None:
        """Measured minus reported."""
        return self.measured.value - self.reported.value if self.measured else None

    @property
    def inside(self) -> bool | None:
        """Whether the reported number, as far as its digits go, lies in the measured interval.

        None without an interval, and for a measurement that does not count.
        """
        if self.measured is None or self.measured.interval is None or self.mark:
            return None
        rounding = 0.5 * 10**-self.reported.digits
        low, high = self.measured.interval.low, self.measured.interval.high
        return low - rounding <= self.reported.value <= high + rounding


def beside(reported: Iterable[Reported], results: Sequence[Result]) -> list[Beside]:
    """One row per reported number and measurement of it; a reported number that was not measured keeps its row."""
    found = []
    summaries: dict[str, Mapping[tuple[str, str | None], Estimate]] = {}
    for row in reported:
        rows = []
        for one in sorted(results, key=select.order):
            if one.kind not in _SUMMARIES or not _is_of(one, row, results):
                continue
            if one.fingerprint not in summaries:
                summaries[one.fingerprint] = _SUMMARIES[one.kind](one, results)
            estimate = summaries[one.fingerprint].get((row.quantity, row.key))
            if estimate:
                told = _in_unit(estimate, 0.01 if row.unit == "ratio" else 1.0)
                rows.append(Beside(row, one.model, one.task, one.seed, _mark(one, results), told))
        found += rows or [Beside(row)]
    return found


def _is_of(result: Result, row: Reported, results: Sequence[Result]) -> bool:
    """Whether a cell is of the reported model and data set."""
    names = {select.data_name(one) for one in (result, *select.read_by(results, result))}
    return result.model.partition("~")[0] == row.model and row.data in names


def _mark(result: Result, results: Sequence[Result]) -> str | None:
    """What sets a measurement apart from one of the card as it is, on the whole data set."""
    replaced = [one for one in result.model.split("~")[1:] if one.partition("=")[0] not in ORIGIN]
    return ", ".join(filter(None, [select.incomplete(result, results), *replaced])) or None


def _probe(result: Result, results: Sequence[Result]) -> dict[tuple[str, str | None], Estimate]:
    anatomy = drop_recovery(result)
    found = {name: anatomy.curve.get(name) for name in ("encoder", "adapter")}
    found |= {name: getattr(anatomy, name) for name in ("drop", "peak", "recovery", "delta_enc")}
    if anatomy.peak_layer is not None:
        found["peak_layer"] = Estimate(anatomy.peak_layer, anatomy.peak_layers)
    return {(name, None): estimate for name, estimate in found.items() if estimate}


def _starvation(result: Result, results: Sequence[Result]) -> dict[tuple[str, str | None], Estimate]:
    """Accuracy of every patch, and where the causal twin was measured in the same way, how far it is above it."""
    found: dict[tuple[str, str | None], Estimate] = {
        ("patch_accuracy", one.key): Estimate(one.value, one.interval)
        for one in result.measures
        if one.metric == "patch_accuracy"
    }
    for probe in select.read_by(results, result):
        pair = select.starved(results, probe)
        if pair and pair[0] == result:
            gap = starvation_gap(*pair)
            for patch, interval in enumerate(gap.intervals):
                if interval:
                    found["patch_gap", str(patch)] = Estimate(float(gap.positions[patch]), interval)
    return found


def _knockout(result: Result, results: Sequence[Result]) -> dict[tuple[str, str | None], Estimate]:
    return {
        ("knockout_images", name): Estimate(persistence(result, name).images, None) for name in result.about["classes"]
    }


_SUMMARIES: Mapping[str, Callable[[Result, Sequence[Result]], Mapping[tuple[str, str | None], Estimate]]] = {
    "probe": _probe,
    "starvation": _starvation,
    "knockout": _knockout,
}


def _in_unit(estimate: Estimate, factor: float) -> Estimate:
    """Measured numbers are %, points and counts; papers print ratios, too."""
    if factor == 1:
        return estimate
    interval = estimate.interval
    scaled = type(interval)(interval.low * factor, interval.high * factor) if interval else None
    return Estimate(estimate.value * factor, scaled)

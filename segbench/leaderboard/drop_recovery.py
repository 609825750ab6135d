"""Where segmentation is lost and won back: adapter drop, recovery and peak layer of one probe cell (paper Table 2)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segbench import stats
from segbench.errors import CellError
from segbench.stats import Estimate, Sampled, Units
from segbench.store import Result
from segbench.types import Interval, Site


@dataclass(frozen=True)
class DropRecovery:
    """mIoU in % along the sites, and its differences in points; what was not probed is absent.

    All intervals are paired: the same images, or clusters of images, are left out of both numbers. They hold the truth
    in 93 to 98 % of simulated cases. But a peak is chosen on the images that it is measured on, so it and what is taken
    from it are too high where many layers are near-equal (the winner's curse): with twelve equal layers an interval of
    the recovery holds in 90 %, in 84 % if the layers err independently (`benchmarks/coverage.py`).
    """

    curve: Mapping[str, Estimate]  # every probed site, in the model's order
    drop: Estimate | None  # adapter - encoder
    peak: Estimate | None  # best of llm.1 .. llm.L; chosen anew without each unit, for it was chosen on these images
    peak_layer: int | None
    peak_layers: Interval | None  # of the layers that resamples choose; None with too few units to resample
    recovery: Estimate | None  # peak - adapter
    delta_enc: Estimate | None  # peak - encoder
    oracle: float | None  # the ceiling that the patch grid sets


def drop_recovery(result: Result) -> DropRecovery:
    """The anatomy of one probe cell, at the epoch that its task selects."""
    curve = _curve(result)
    encoder, adapter, peak = curve.get("encoder"), curve.get("adapter"), _peak(curve)
    layer = None
    if peak:
        layer = int(Site.parse(next(site for site in _layers(curve) if curve[site].value == peak.value)).layer)
    estimates = {site: sampled.estimate() for site, sampled in curve.items()}
    return DropRecovery(
        curve={site: estimate for site, estimate in estimates.items() if estimate},
        drop=_difference(adapter, encoder),
        peak=peak.estimate() if peak else None,
        peak_layer=layer,
        peak_layers=_peak_layers(result, _layers(curve)),
        recovery=_difference(peak, adapter),
        delta_enc=_difference(peak, encoder),
        oracle=next((one.value for one in result.measures if one.metric == "oracle_miou"), None),
    )


def gain(result: Result, baseline: Result) -> Estimate | None:
    """Peak of a model minus the peak of its causal twin, in points, each at its own best layer.

    CellError if the two were not measured on the same images: their intervals could not be paired.
    """
    if result.about["images"] != baseline.about["images"]:
        raise CellError(f"{result.task}: {result.model} and {baseline.model} were measured on different images")
    return _difference(_peak(_curve(result)), _peak(_curve(baseline)))


def sampled(result: Result) -> dict[str, Sampled]:
    """Every site of one probe cell, its drop, peak and recovery, each with what it is without each unit."""
    found = _curve(result)
    adapter, peak = found.get("adapter"), _peak(found)
    if adapter and "encoder" in found:
        found["drop"] = adapter - found["encoder"]
    if peak:
        found |= {"peak": peak} | ({"recovery": peak - adapter} if adapter else {})
    return found


def _curve(result: Result) -> dict[str, Sampled]:
    found = stats.sampled(stats.miou, result.arrays("counts")["best"], _units(result))
    return dict(zip(result.about["sites"], found, strict=True))


def _units(result: Result) -> Units:
    return Units.among(len(result.about["images"]), result.about.get("clusters"))


def _layers(sites: Iterable[str]) -> list[str]:
    """llm.1 .. llm.L: what enters each block and what leaves the last; the final norm is recorded, never the peak."""
    parsed = {site: Site.parse(site) for site in sites}
    return [name for name, site in parsed.items() if site.is_layer and site.layer]


def _peak(curve: Mapping[str, Sampled]) -> Sampled | None:
    columns = [curve[site] for site in _layers(curve) if np.isfinite(curve[site].value)]
    return stats.best(columns) if columns else None


def _difference(first: Sampled | None, second: Sampled | None) -> Estimate | None:
    return (first - second).estimate() if first and second else None


def _peak_layers(result: Result, layers: Sequence[str]) -> Interval | None:
    """From the lowest to the highest layer that is the best in 95 % of a bootstrap's resamples.

    Without one image the peak is where it is with all of them, so here images are drawn, not left out.
    """
    units = _units(result)
    if units.count < stats.FEW or not layers:
        return None
    rows = [result.about["sites"].index(site) for site in layers]
    drawn = stats.miou_draws(result.arrays("counts")["best"][rows], units.drawn())
    numbers = np.array([int(Site.parse(site).layer) for site in layers])
    chosen = numbers[np.argmax(np.nan_to_num(drawn, nan=-np.inf), 1)]
    low, high = np.percentile(chosen, (2.5, 97.5), method="inverted_cdf")
    return Interval(int(low), int(high))

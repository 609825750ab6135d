"""Where segmentation is lost and won back: adapter drop, recovery and peak layer of one probe cell (paper Table 2)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segbench import stats
from segbench.errors import CellError
from segbench.stats import Estimate, Sampled
from segbench.store import Result
from segbench.types import Interval, Site


@dataclass(frozen=True)
class DropRecovery:
    """mIoU in % along the sites, and its differences in points; what was not probed is absent.

    All intervals are paired: the numbers of one resample come from the same drawn images.
    """

    curve: Mapping[str, Estimate]  # every probed site, in the model's order
    drop: Estimate | None  # adapter - encoder
    peak: Estimate | None  # best of llm.1 .. llm.L; chosen anew in each resample, for it was chosen on these images
    peak_layer: int | None
    peak_layers: Interval | None  # of the layers that the resamples choose
    recovery: Estimate | None  # peak - adapter
    delta_enc: Estimate | None  # peak - encoder
    oracle: float | None  # the ceiling that the patch grid sets


def drop_recovery(result: Result) -> DropRecovery:
    """The anatomy of one probe cell, at the epoch that its task selects."""
    curve = _curve(result)
    encoder, adapter, peak = curve.get("encoder"), curve.get("adapter"), _peak(curve)
    layer = layers = None
    if peak:
        numbers = [Site.parse(site).layer for site in _layers(curve)]
        columns = [curve[site] for site in _layers(curve)]
        layer = int(numbers[int(np.nanargmax([column.value for column in columns]))])
        chosen = np.argmax(np.nan_to_num([column.drawn for column in columns], nan=-np.inf), 0)
        layers = _whole_interval(np.asarray(numbers, int)[chosen])
    estimates = {site: sampled.estimate() for site, sampled in curve.items()}
    return DropRecovery(
        curve={site: estimate for site, estimate in estimates.items() if estimate},
        drop=_difference(adapter, encoder),
        peak=peak.estimate() if peak else None,
        peak_layer=layer,
        peak_layers=layers,
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
    """Every site of one probe cell, its drop, peak and recovery, each with what it is in every resample."""
    found = _curve(result)
    adapter, peak = found.get("adapter"), _peak(found)
    if adapter and "encoder" in found:
        found["drop"] = adapter - found["encoder"]
    if peak:
        found |= {"peak": peak} | ({"recovery": peak - adapter} if adapter else {})
    return found


def _curve(result: Result) -> dict[str, Sampled]:
    counts = result.arrays("counts")["best"]
    values = stats.miou(counts.sum(1, dtype=np.int64))
    drawn = stats.miou_draws(counts, stats.resamples(counts.shape[1]))
    return {site: Sampled(float(values[row]), drawn[:, row]) for row, site in enumerate(result.about["sites"])}


def _layers(curve: Mapping[str, Sampled]) -> list[str]:
    """llm.1 .. llm.L: what enters each block and what leaves the last; the final norm is recorded, never the peak."""
    sites = {site: Site.parse(site) for site in curve}
    return [name for name, site in sites.items() if site.is_layer and site.layer]


def _peak(curve: Mapping[str, Sampled]) -> Sampled | None:
    columns = [curve[site] for site in _layers(curve) if np.isfinite(curve[site].value)]
    if not columns:
        return None
    return Sampled(max(column.value for column in columns), np.max([column.drawn for column in columns], 0))


def _difference(first: Sampled | None, second: Sampled | None) -> Estimate | None:
    return (first - second).estimate() if first and second else None


def _whole_interval(layers: np.ndarray) -> Interval | None:
    if not len(layers):
        return None
    low, high = np.percentile(layers, (2.5, 97.5), method="inverted_cdf")
    return Interval(int(low), int(high))

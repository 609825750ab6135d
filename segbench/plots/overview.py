"""The whole story in one picture: where segmentation is lost and won back, and what attention has to do with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segbench.leaderboard import select
from segbench.leaderboard.knockout_summary import persistence
from segbench.leaderboard.starvation_gap import StarvationGap
from segbench.plots import base, knockout, layers, starvation, strips
from segbench.store import Result

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture, of the probe task with the most models; parts that were not measured are left out."""
    groups = base.groups(results, "probe")
    if not groups:
        return []
    probes = max(groups, key=len)  # the first of the largest
    twins = _twins(probes)
    blocked = _first(select.reading(results, "knockout", probe) for probe in twins)
    gap = next(iter(starvation.gaps(results, probes)), None)
    block = strips.examples(twins[:2], 1)
    heights = [4.1] + [3.1] * bool(blocked or gap) + ([0.4 + strips.height(block)] if block else [])
    with base.canvas(sum(heights) + 0.5) as figure:
        parts = list(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
        parts[0].suptitle("(a) What a linear probe reads along the model", x=0.01, ha="left")
        layers.plot(parts[0], probes, base.looks(results))
        if blocked or gap:
            _why(parts[1], blocked, gap)
        if block:
            parts[-1].suptitle("(d) One image" if blocked or gap else "(b) One image", x=0.01, ha="left")
            strips.plot(parts[-1], block, probes[0].about["classes"])
        figure.suptitle(f"Where segmentation is lost and won back: {base.about(probes[0])}", fontweight="bold")
        return base.save(figure, folder, "overview")


def _why(figure: "SubFigure", blocked: Result | None, gap: tuple[Result, Result, StarvationGap] | None) -> None:
    """Knockout on the left, starvation gap on the right; whichever is there."""
    parts = list(
        figure.subfigures(
            1, bool(blocked) + bool(gap), width_ratios=[1.0] * bool(blocked) + [1.35] * bool(gap), squeeze=False
        )[0]
    )
    if blocked:
        curves = persistence(blocked)
        axes = parts[0].subplots()
        knockout.plot(axes, curves)
        axes.set_xlabel("LLM layer (0: the adapter's output)")
        axes.set_ylabel("still wrong (% of those\nwrong at the adapter)")
        knockout.name_ends(axes, curves)
        parts[0].suptitle(f"(b) Blocking attention to ... ({base.plain(blocked.model)})", x=0.02, ha="left")
    if gap:
        ours, theirs, values = gap
        left, right = parts[-1].subplots(1, 2, width_ratios=(1.2, 1))
        starvation.curve(left, values)
        starvation.heat(parts[-1], right, values)
        title = f"(c) Patch accuracy, {base.plain(ours.model)} minus {base.plain(theirs.model)}"
        parts[-1].suptitle(title, x=0.02, ha="left")


def _twins(probes: Sequence[Result]) -> list[Result]:
    """Models in the order of interest: a causal baseline, the model it is the baseline of, the others."""
    names = {probe.model: probe for probe in probes}
    for probe in probes:
        if (baseline := names.get(probe.model_card.get("baseline", ""))) is not None:
            return [baseline, probe, *(one for one in probes if one not in (baseline, probe))]
    return sorted(probes, key=lambda one: one.model_card.get("attention") != "causal")


def _first(found) -> Result | None:
    return next((one for one in found if one), None)

"""The starvation gap: how much better than its causal baseline a model reads each patch of the grid."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segbench.errors import CellError
from segbench.leaderboard import select
from segbench.leaderboard.starvation_gap import EARLY, FIRST, StarvationGap, starvation_gap
from segbench.plots import base
from segbench.stats import Estimate
from segbench.store import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLOUR, MARK = "#0072b2", "#e69f00"  # of the gap, of the first patches
log = logging.getLogger(__name__)


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture per task, seed and model whose baseline was measured too."""
    paths = []
    for result, baseline, gap in gaps(results, select.of_kind(results, "probe")):
        with base.canvas(3.7) as figure:
            left, right = figure.subplots(1, 2, width_ratios=(1.75, 1))
            curve(left, gap)
            heat(figure, right, gap)
            pair = f"{base.plain(result.model)} ({gap.sites[0]}) minus {base.plain(baseline.model)} ({gap.sites[1]})"
            figure.suptitle(f"Accuracy by patch: {pair}\n{base.about(result)}")
            paths += base.save(figure, folder, base.stem("starvation", result, result.model))
    return paths


def gaps(results: Sequence[Result], probes: Sequence[Result]) -> list[tuple[Result, Result, StarvationGap]]:
    """Models with their baselines and their gaps; pairs that cannot be compared are left out with a warning."""
    found = []
    for pair in (select.starved(results, probe) for probe in probes):
        if pair is None:
            continue
        try:
            found.append((*pair, starvation_gap(*pair)))
        except CellError as error:
            log.warning("no starvation gap: %s", error)
    return found


def curve(axes: "Axes", gap: StarvationGap) -> None:
    """The gap at the first patches, with its pointwise band and the pooled first three as a number."""
    shown = slice(0, min(EARLY, len(gap.positions)))
    places = np.arange(len(gap.positions))[shown]
    low, high = base.band(gap.intervals[shown])
    axes.axhline(0, color=base.GREY, lw=0.8)
    for row in range(gap.grid[1], len(places), gap.grid[1]):
        axes.axvline(row - 0.5, color=base.GREY, lw=0.6, ls=(0, (1, 2)))
    axes.axvspan(-0.5, FIRST - 0.5, color=MARK, alpha=0.25, lw=0)
    axes.fill_between(places, low, high, color=COLOUR, alpha=0.2, lw=0)
    axes.plot(places, gap.positions[shown], color=COLOUR, marker="o", ms=2.5, lw=1.3)
    axes.set_xlim(-0.8, len(places) - 0.2)
    axes.set_xlabel("patch in raster order (dotted: a new row)")
    axes.set_ylabel("accuracy gap (pp)")
    words = [f"patches 0-{most - 1}: {told(one)}" for most, one in ((FIRST, gap.first), (EARLY, gap.early)) if one]
    axes.set_title("\n".join(words), loc="right", fontsize=8.5)


def heat(figure: "Figure | SubFigure", axes: "Axes", gap: StarvationGap) -> None:
    """The gap over the whole grid, on a diverging scale centred at zero; blue is where the model is ahead.

    A frame marks the first patches.
    """
    from matplotlib.patches import Rectangle

    values = np.ma.masked_invalid(gap.positions.reshape(gap.grid))
    most = max(float(np.abs(values).max()), 1e-9) if values.count() else 1.0
    image = axes.imshow(values, cmap="RdBu", vmin=-most, vmax=most, interpolation="nearest")
    axes.add_patch(Rectangle((-0.5, -0.5), min(FIRST, gap.grid[1]), 1, fill=False, ec=MARK, lw=2, clip_on=False))
    axes.grid(False)
    axes.set_xlabel("patch column")
    axes.set_ylabel("patch row")
    figure.colorbar(image, ax=axes, label="accuracy gap (pp)", shrink=0.9)


def told(estimate: Estimate) -> str:
    """A difference with its interval, for a picture."""
    interval = estimate.interval
    return f"{estimate.value:+.1f} pp" + (f" [{interval.low:.1f}, {interval.high:.1f}]" if interval else "")

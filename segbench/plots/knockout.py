"""Knockout curves: how many wrong patches are still wrong at each layer, with attention to some tokens blocked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segbench.leaderboard.knockout_summary import Persistence, persistence
from segbench.plots import base
from segbench.store import Result
from segbench.types import Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
_TITLE = "Patches that stay wrong when attention to some image tokens is blocked"


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture per task and seed with a panel for each model, and one per model with a panel for each class."""
    paths = []
    for cells in base.groups(results, "knockout"):
        about = base.about(cells[0])
        panels = {base.described(cell): persistence(cell) for cell in cells}
        title = f"{_TITLE}\n{about}; a pair is an image with one of its confused classes"
        paths += _picture(panels, title, folder, base.stem("knockout", cells[0]))
        for cell in cells:
            rows = cell.arrays("patches")["class"]
            confused = [name for index, name in enumerate(cell.about["all_classes"]) if (rows == index).any()]
            panels = {base.plain(name): persistence(cell, name) for name in confused}
            title = f"{_TITLE}, by class: {base.described(cell)}\n{about}"
            paths += _picture(panels, title, folder, base.stem("knockout-classes", cell, cell.model))
    return paths


def plot(axes: "Axes", curves: Persistence) -> None:
    """The four conditions of one cell; the adapter is 100 % by definition."""
    axes.axhline(100, color=base.GREY, lw=0.8)
    for condition, curve in curves.curves.items():
        colour, marker, line, words = base.CONDITIONS[condition]
        parsed = {Site.parse(site): estimate for site, estimate in curve.items()}
        layers = {int(site.layer): one for site, one in parsed.items()}  # the adapter's output is layer 0
        low, high = base.band(one.interval for one in layers.values())
        axes.fill_between(list(layers), low, high, color=colour, alpha=0.13, lw=0)
        values = [one.value for one in layers.values()]
        axes.plot(list(layers), values, line, marker=marker, color=colour, label=words)
    sites = [site for curve in curves.curves.values() for site in curve]
    if any(Site.parse(site).stage == "llm" for site in sites):
        base.layer_axis(axes, (site for site in sites if Site.parse(site).stage == "llm"), zero=True)


def name_ends(axes: "Axes", curves: Persistence) -> None:
    """The name of each condition beside the end of its curve, in place of a legend."""
    ends = {name: estimate.value for name in curves.curves if (estimate := curves.at_last_layer(name))}
    low, high = axes.get_ylim()
    places = base.spread(list(ends.values()), 0.075 * (high - low))
    for name, place in zip(ends, places, strict=True):
        colour, *_, words = base.CONDITIONS[name]
        axes.annotate(words, (1, place), (4, 0), ("axes fraction", "data"), "offset points", va="center", color=colour)


def counted(curves: Persistence) -> str:
    """What stands behind the curves, and their order; a pair is one image with one of its confused classes."""
    pairs = f"{curves.pairs} pairs, " if curves.pairs != curves.images else ""
    verdict = curves.verdict()
    order = f"\norder: {verdict}" if verdict else ""
    return f"{curves.images} images, {pairs}{curves.patches:,} patches{order}"


def _picture(panels: dict[str, Persistence], title: str, folder: Path, name: str) -> list[Path]:
    panels = {label: curves for label, curves in panels.items() if curves.images}
    if not panels:
        return []
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    with base.canvas(1.3 + 2.8 * rows) as figure:
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (label, curves) in zip(grid.flat, panels.items(), strict=False):
            plot(axes, curves)
            axes.set_title(f"{label}\n{counted(curves)}", fontsize=8)
        for axes in grid[:, 0]:
            axes.set_ylabel("still wrong (% of those\nwrong at the adapter)")
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:  # the lowest panel of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("LLM layer (0: the adapter's output)")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        base.legend(figure, dict(zip(labels, handles, strict=True)), title="attention blocked to", columns=4)
        figure.suptitle(title)
        return base.save(figure, folder, name)

"""Qualitative strips: an image, its truth, and what probes read at encoder, adapter, peak layer and end of the LLM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from segbench.leaderboard.drop_recovery import drop_recovery
from segbench.plots import base
from segbench.store import Result
from segbench.types import IGNORE, Site

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

MOST = 3  # examples; more make the picture taller than a page
_NAMES, _BESIDE = 8, 2  # names of classes in a row: below the strips, beside a strip


@dataclass(frozen=True)
class Strip:
    """One image as one model's probes read it."""

    model: str  # as in a legend
    image: UInt8[np.ndarray, "H W 3"]
    truth: UInt8[np.ndarray, "H W"]
    read: Mapping[str, UInt8[np.ndarray, "H W"]]  # site -> predicted class ids


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """One picture per probe task and seed: for each of a few images, what every model makes of it."""
    paths = []
    for probes in base.groups(results, "probe"):
        blocks = examples(probes, MOST)
        if not blocks:
            continue
        classes = probes[0].about["classes"]
        with base.canvas(0.6 + height(blocks)) as figure:
            plot(figure, blocks, classes)
            figure.suptitle(f"What the probes read, and how many pixels they get right\n{base.about(probes[0])}")
            paths += base.save(figure, folder, base.stem("strips", probes[0]))
    return paths


def examples(probes: Sequence[Result], most: int) -> list[list[Strip]]:
    """The first images that the cells kept, each with a strip for every model that kept it."""
    kept = [(probe, probe.arrays("examples"), _sites(probe)) for probe in probes]
    blocks = [
        [
            Strip(
                base.described(probe),
                arrays[f"{e}.image"],
                arrays[f"{e}.truth"],
                {s: arrays[f"{e}.{s}"] for s in sites},
            )
            for probe, arrays, sites in kept
            if f"{e}.image" in arrays
        ]
        for e in range(most)
    ]
    return [block for block in blocks if block]


def height(blocks: Sequence[Sequence[Strip]]) -> float:
    """Inches that the strips and the names of their classes need at full width, without a title."""
    below = 0.0 if _fits_beside(blocks) else 0.1 + 0.2 * -(-len(_ids(blocks)) // _NAMES)
    return sum(map(len, blocks)) * _strip_height(blocks) + below


def plot(figure: "Figure | SubFigure", blocks: Sequence[Sequence[Strip]], classes: Sequence[str]) -> None:
    """Fill a figure: image and truth once, then one row of label maps per model.

    The classes stand under the first image and its truth, where several models leave room, or else below everything.
    """
    from matplotlib.patches import Patch

    colours = base.class_colours(len(classes))
    names = {base.plain(classes[k]): Patch(color=tuple(colours[k] / 255)) for k in _ids(blocks)}
    grid = figure.add_gridspec(sum(map(len, blocks)), _columns(blocks))
    row = 0
    for block in blocks:
        _show(figure.add_subplot(grid[row, 0]), block[0].image, "image")
        _show(figure.add_subplot(grid[row, 1]), base.painted(block[0].truth, colours), "truth")
        for strip in block:
            labelled = strip.truth != IGNORE
            for column, (site, read) in enumerate(strip.read.items(), 2):
                axes = figure.add_subplot(grid[row, column])
                right = f": {100 * (read == strip.truth)[labelled].mean():.0f} %" if labelled.any() else ""
                _show(axes, base.painted(read, colours), site + right)
                if column == 2:
                    axes.set_ylabel(strip.model.replace(" (", "\n("), fontsize=8)
            row += 1
    if _fits_beside(blocks):
        beside = figure.add_subplot(grid[1 : len(blocks[0]), :2])
        beside.set_axis_off()
        legend = beside.legend(names.values(), names.keys(), loc="upper center", ncols=_BESIDE, labelspacing=0.35)
        legend.set_in_layout(False)
    else:
        base.legend(figure, names, columns=min(_NAMES, len(names)))


def _show(axes: "Axes", picture: UInt8[np.ndarray, "H W 3"], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=8.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def _columns(blocks: Sequence[Sequence[Strip]]) -> int:
    return 2 + max(len(strip.read) for block in blocks for strip in block)


def _fits_beside(blocks: Sequence[Sequence[Strip]]) -> bool:
    """Whether the names of the classes fit under the first image and its truth."""
    rows = -(-len(_ids(blocks)) // _BESIDE)
    return 0.18 * rows <= _strip_height(blocks) * (len(blocks[0]) - 1)


def _strip_height(blocks: Sequence[Sequence[Strip]]) -> float:
    """Inches of a row with its titles, at full width."""
    tall = max(strip.image.shape[0] / strip.image.shape[1] for block in blocks for strip in block)
    return (base.WIDTH - 0.5) / _columns(blocks) * tall * 0.97 + 0.2


def _ids(blocks: Sequence[Sequence[Strip]]) -> list[int]:
    """The classes that some map shows."""
    maps = [one for block in blocks for strip in block for one in (strip.truth, *strip.read.values())]
    return sorted(set(np.unique(np.concatenate([one.ravel() for one in maps])).tolist()) - {IGNORE})


def _sites(probe: Result) -> list[str]:
    """Encoder, adapter, peak and last LLM layer: what of these was probed."""
    probed = probe.about["sites"]
    layers = [site for site in probed if Site.parse(site).is_layer]
    wanted = ["encoder", "adapter", f"llm.{drop_recovery(probe).peak_layer}", *layers[-1:]]
    return list(dict.fromkeys(site for site in wanted if site in probed))

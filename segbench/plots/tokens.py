"""The token grid of a model over a picture, exactly where the grid map puts it; `segbench model check` draws it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from segbench.geometry import patch_index
from segbench.plots.base import GREY, WIDTH, canvas, plain, save
from segbench.types import GridMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER = 225  # grey that unseen pixels fade into


class View(Protocol):
    """A picture, and where the patches are on it."""

    @property
    def title(self) -> str: ...
    @property
    def image(self) -> Image.Image: ...
    @property
    def grid_map(self) -> GridMap: ...


def write(views: Sequence[View], name: str, folder: Path) -> list[Path]:
    """FOLDER/tokens.png and .svg, the views side by side; ImportError where matplotlib is not installed."""
    sides = [_frame(view.grid_map) for view in views]
    widths = [(right - left) / (bottom - top) for top, left, bottom, right in sides]
    height = (WIDTH - 0.4) / sum(widths)
    with canvas(min(height, WIDTH) + 0.9) as figure:
        grid = figure.add_gridspec(1, len(views), width_ratios=widths)
        for column, view in enumerate(views):
            _draw(figure.add_subplot(grid[column]), view)
        h, w = views[0].grid_map.grid
        figure.suptitle(f"{plain(name)}: {h} x {w} patches (h x w), grey where none sees anything")
        return save(figure, folder, "tokens")


def _draw(axes: "Axes", view: View) -> None:
    """The picture, its unseen pixels grey, the grid's lines, and the raster index of the patches in its corners."""
    from matplotlib.collections import LineCollection
    from matplotlib.patheffects import withStroke

    grid_map = view.grid_map
    axes.imshow(_faded(view), interpolation="nearest" if max(grid_map.image) < 400 else "antialiased")
    down, across = _edges(grid_map, 0), _edges(grid_map, 1)
    lines = [[(across[0], y), (across[-1], y)] for y in down] + [[(x, down[0]), (x, down[-1])] for x in across]
    axes.add_collection(LineCollection(lines, colors="#000000", linewidths=1.1, alpha=0.5))
    axes.add_collection(LineCollection(lines, colors="#ffffff", linewidths=0.5))
    h, w = grid_map.grid
    outline = [withStroke(linewidth=1.6, foreground="#000000")]
    for row, column in sorted({(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)}):
        y, x = (down[row] + down[row + 1]) / 2, (across[column] + across[column + 1]) / 2
        style = {"color": "#ffffff", "ha": "center", "va": "center", "fontsize": 6.5, "path_effects": outline}
        axes.text(x, y, str(row * w + column), **style)
    top, left, bottom, right = _frame(grid_map)
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    height, width = grid_map.image
    axes.set_title(f"{plain(view.title)}\n{height} x {width} pixels", color=GREY)


def _faded(view: View) -> UInt8[np.ndarray, "H W 3"]:
    """The picture, grey and pale where no patch sees it."""
    pixels = np.asarray(view.image.convert("RGB")).copy()
    unseen = patch_index(view.grid_map) < 0
    grey = pixels[unseen].mean(-1, keepdims=True)
    pixels[unseen] = (0.35 * grey + 0.65 * PAPER).astype(np.uint8)
    return pixels


def _edges(grid_map: GridMap, axis: int) -> list[float]:
    """Where the patches' edges are, in pixels as matplotlib counts them: 0 is the centre of the first one."""
    return [(edge - grid_map.shift[axis]) / grid_map.scale[axis] - 0.5 for edge in range(grid_map.grid[axis] + 1)]


def _frame(grid_map: GridMap) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of what holds picture and grid, and the outermost lines."""
    low, high = [], []
    for axis in (0, 1):
        edges = _edges(grid_map, axis)
        room = 0.004 * max(grid_map.image)
        low.append(min(edges[0], -0.5) - room)
        high.append(max(edges[-1], grid_map.image[axis] - 0.5) + room)
    return low[0], low[1], high[0], high[1]

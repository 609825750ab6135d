"""A layout that was found by looking: where bands painted on a picture light up among image tokens and consumed rows.

It holds for one size of picture, so images are framed to that square. What cannot be found beyond doubt is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from segbench.adapters import light
from segbench.adapters.embedder import Embedder
from segbench.adapters.layout import Framing, Layout, Placement, Size
from segbench.adapters.light import Response
from segbench.errors import ModelError

FINE = 3  # bands per image token along a side, were all tokens one square grid
NEAR = 0.3  # patches by which a patch may seem to be away from its place in an even grid
WIDE = 1.0  # patches: deviation of what a token may see around its centre


@dataclass(frozen=True)
class Traced(Layout):
    """One placement, of pictures of `framing.side` pixels."""

    framing: Framing
    arguments: Mapping[str, Any]
    found: Placement

    @property
    def patch_pixels(self) -> float:
        return float((self.framing.side or 0) / self.found.grid[0])

    def place(self, picture: Size) -> Placement:
        if picture != (self.framing.side, self.framing.side):
            raise ModelError(f"a picture of {picture[0]} x {picture[1]} pixels; this layout is for {self.framing.side}")
        return self.found


class View(NamedTuple):
    """Image tokens that lie in raster order on a grid of their own."""

    grid: tuple[int, int]
    tokens: Int[np.ndarray, " t"]
    origin: tuple[float, float]  # pixels where the grid begins
    pitch: tuple[float, float]  # pixels per patch


def trace(embedder: Embedder, framing: Framing, arguments: Mapping[str, Any], tiles: bool) -> Traced:
    """The layout of a model that nobody described; ModelError, saying what was seen, if it is no grid.

    Of several views that each hold the whole picture the one with the fewest tokens is read, or with `tiles` the one
    with the most.
    """
    side = framing.side
    assert side is not None
    bands = light.even(side, min(side, FINE * _tokens_per_side(embedder, framing, arguments)))
    found = light.look(embedder, framing, arguments, (side, side), bands, bands)
    name = embedder.checkpoint.spec.name
    middle = np.array([(first + end) / 2 for first, end in bands])
    centres, spread = found.tokens.centres(middle), found.tokens.spread(middle)
    views = list(_views(centres, found.tokens.lit(), side))
    whole = [view for view in views if _covers(view, side)]
    if not whole:
        shapes = ", ".join(f"{h} x {w}" for (h, w), *_ in views) or "none"
        lit = found.tokens.lit()
        raise ModelError(
            f"{name}: its {len(lit)} image tokens, of which {int(lit.sum())} see anything, "
            f"are no grid over the picture (runs in raster order: {shapes}); a resampler mixes places, and such a "
            "model cannot be read patch by patch"
        )
    view = max(whole, key=lambda one: len(one.tokens)) if tiles else min(whole, key=lambda one: len(one.tokens))
    if (spread[:, view.tokens] > WIDE * np.array(view.pitch)[:, None]).any():
        raise ModelError(
            f"{name}: image tokens see more than their place in the grid of {view.grid[0]} x {view.grid[1]}"
        )
    consumed = tuple(
        _assigned(name, response, middle, shape, view)
        for response, shape in zip(found.consumed, found.shapes, strict=True)
    )
    scale = (1 / view.pitch[0], 1 / view.pitch[1])
    shift = (-view.origin[0] * scale[0], -view.origin[1] * scale[1])
    placement = Placement(view.grid, scale, shift, len(found.tokens.lit()), view.tokens, consumed)
    return Traced(framing, arguments, placement)


def _tokens_per_side(embedder: Embedder, framing: Framing, arguments: Mapping[str, Any]) -> int:
    """Of a square grid of as many tokens as a picture has."""
    from PIL import Image

    assert framing.side is not None
    blank = Image.new("RGB", (framing.side, framing.side), framing.colour)
    ids = embedder.inputs(blank, arguments)["input_ids"][0]
    return int(np.ceil(np.sqrt(int((ids == embedder.parts.image_token_id).sum()))))


def _views(centres: Float[np.ndarray, "2 n"], lit: np.ndarray, side: int) -> "list[View]":
    """Runs of tokens in raster order. A row ends where columns go back, a view where rows do, or begin to differ."""
    tokens = np.flatnonzero(lit)
    if len(tokens) < 4:
        return []
    y, x = centres[:, tokens]
    steps = np.diff(x)
    pitch = float(np.median(steps[steps > 0])) if (steps > 0).any() else float(side)
    back = steps < pitch / 2  # the next token begins another row
    views: list[list[list[int]]] = [[[0]]]
    for number in range(1, len(tokens)):
        if not back[number - 1]:
            views[-1][-1].append(number)
        elif y[number] > y[number - 1] + pitch / 4:
            views[-1].append([number])
        else:
            views.append([[number]])
    found = []
    for rows in views:
        w, h = len(rows[0]), len(rows)
        if any(len(row) != w for row in rows) or h < 2 or w < 2:
            continue
        index = np.array(rows)
        fitted = [_even(y[index].mean(1), side), _even(x[index].mean(0), side)]
        away = max(
            np.abs((values - (origin + step * (np.arange(count) + 0.5))[shape]) / step).max()
            for values, (origin, step), count, shape in (
                (y[index], fitted[0], h, np.s_[:, None]),
                (x[index], fitted[1], w, np.s_[None]),
            )
        )
        if away < NEAR:
            (top, down), (left, across) = fitted
            found.append(View((h, w), tokens[index.ravel()], (top, left), (down, across)))
    return found


def _even(centres: Float[np.ndarray, " g"], side: int) -> tuple[float, float]:
    """Origin and pitch of an even grid with these patch centres.

    Preferred are grids that fill the picture, or begin at its edge with patches of whole pixels and leave less than one
    at the end (SigLIP 384/14); of a view that is only a part of the picture, whatever fits best.
    """
    count = len(centres)
    slope, first = np.polyfit(np.arange(count) + 0.5, centres, 1)
    options = [(0.0, side / count), (0.0, float(side // count))]
    best = min(options, key=lambda one: np.abs(centres - one[0] - one[1] * (np.arange(count) + 0.5)).max())
    error = np.abs(centres - best[0] - best[1] * (np.arange(count) + 0.5)).max()
    return best if error < NEAR * best[1] else (float(first), float(slope))


def _covers(view: View, side: int) -> bool:
    """Whether less than one patch of the picture is left over at any edge."""
    ends = [origin + pitch * count for origin, pitch, count in zip(view.origin, view.pitch, view.grid, strict=True)]
    within = zip(view.origin, ends, view.pitch, strict=True)
    return all(abs(origin) < pitch / 2 and abs(end - side) < pitch for origin, end, pitch in within)


def _assigned(
    name: str, response: Response, middle: Float[np.ndarray, " p"], shape: tuple[int, ...], view: View
) -> Int[np.ndarray, "t m"]:
    """The consumed rows of each patch, in raster order of their own.

    They are those of one tile that holds the whole picture, or of all tiles together, less one such before or behind.
    """
    centres = response.centres(middle)
    lit = response.lit()
    per_tile = int(np.prod(shape[1:])) if len(shape) > 1 else len(lit)
    h, w = view.grid
    ranges = [(start, start + per_tile) for start in range(0, len(lit), per_tile)]
    ranges += [(0, len(lit)), (per_tile, len(lit)), (0, len(lit) - per_tile)]
    for start, end in ranges:
        rows = start + np.flatnonzero(lit[start:end])
        if not len(rows) or len(rows) % (h * w):
            continue
        m = len(rows) // (h * w)
        at = [(centres[axis, rows] - view.origin[axis]) / view.pitch[axis] for axis in (0, 1)]
        cell = [np.clip(np.floor(one), 0, count - 1).astype(int) for one, count in zip(at, (h, w), strict=True)]
        patch = cell[0] * w + cell[1]
        if (np.bincount(patch, minlength=h * w) != m).any():
            continue
        within = np.floor((at[0] - cell[0]) * np.ceil(np.sqrt(m)))  # rows of rows, within a patch
        order = np.lexsort((at[1], within, patch))
        return rows[order].reshape(h * w, m)
    raise ModelError(
        f"{name}: what the projector consumes ({len(lit)} rows of a picture, {int(lit.sum())} of which see anything) "
        f"cannot be told apart by the {h} x {w} patches"
    )

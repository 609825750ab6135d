"""Anyres: a picture is seen whole, in the base view, and once more in tiles of full resolution (LLaVA-NeXT, OneVision).

In the prompt the base view comes first, then all tiles as one grid: stitched, without the padding around the picture,
a newline token at the end of every row. The sequence always holds both, as the model is used; `view` says which of them
is read. A picture framed to the side of one tile, as it is without a `resolution`, has nothing more in its tiles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from segbench.adapters.base import Adapter, Declared
from segbench.adapters.checkpoint import Checkpoint
from segbench.adapters.embedder import Embedder, Parts
from segbench.adapters.layout import Framing, Layout, Placement, Size, rows
from segbench.errors import ModelError

SHRUNK = 1.1  # times that a grid of tiles may be as long as its limit before the model shrinks it


@dataclass(frozen=True)
class Anyres(Layout):
    """The model stitches the tiles that the processor cuts; each has `side // patch` patches along an edge.

    Where these do not reach the end of a tile (SigLIP 384/14: 378 of 384 pixels) the true map of the tiles is only
    piecewise affine, with a gap behind every tile. The affine map in its place keeps step with the tiles and has half
    the gap on either side of each: exact in the middle of a tile, and off by (side / patch - side // patch) / 2 of a
    patch at most, 0.21 at 384/14. Pixels of a gap between tiles count as seen by the patch beside it. Along an axis
    with a single tile, and in the base view, the map is exact.
    """

    framing: Framing
    view: Literal["base", "tiles"]
    side: int  # model pixels of a tile's edge; the base view is one tile
    patch: int  # model pixels per patch edge
    canvases: tuple[Size, ...]  # model pixels; a picture's tiles make up one of them, of equally good ones the first
    most: int | None = None  # tiles' worth of patches, beyond which the model shrinks their grid
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Checkpoint, most: int | None = None) -> "Anyres":
        """ModelError where the processor cuts other tiles than the model stitches, or its tower adds tokens to them."""
        name, processor = found.spec.name, found.processor.image_processor
        config, stated = found.model.config.to_dict(), processor.to_dict()
        side, patch = (config["vision_config"].get(key) for key in ("image_size", "patch_size"))
        if not isinstance(side, int) or not isinstance(patch, int):
            raise ModelError(
                f"{name}: the vision config has image_size {side} and patch_size {patch}, expected numbers"
            )
        edges = {value for key in ("size", "crop_size") for value in dict(stated.get(key) or {}).values() if value}
        if edges != {side}:
            raise ModelError(
                f"{name}: {type(processor).__name__} makes tiles of {sorted(edges)} pixels, the model takes {side}; "
                "correct size and crop_size in preprocessor_config.json"
            )
        cut, stitched = (_canvases(one.get("image_grid_pinpoints")) for one in (stated, config))
        if cut != stitched:
            raise ModelError(
                f"{name}: image_grid_pinpoints are {list(cut)} in preprocessor_config.json and {list(stitched)} in "
                "config.json, so that other tiles are stitched than were cut; make them the same"
            )
        if not cut or any(edge % side or not edge for canvas in cut for edge in canvas):
            raise ModelError(f"{name}: image_grid_pinpoints are {list(cut)}, expected multiples of {side} pixels")
        _check_tower(found, side, (side // patch) ** 2)
        framing = Framing.of(found.spec.preprocess, processor, found.spec.resolution or side)
        return cls(framing, found.spec.view, side, patch, cut, most)

    @property
    def patch_pixels(self) -> float:
        return float(self.patch)

    def place(self, picture: Size) -> Placement:
        edge = self.side // self.patch
        base = edge * edge
        canvas = self._canvas(picture)
        consumed = self._stitched(picture, canvas)
        h, w = self._shrunk(consumed.shape)
        tokens = base + h * (w + 1)  # a newline ends every row
        if self.view == "base":
            down, across = (self.side / length / self.patch for length in picture)
            return Placement((edge, edge), (down, across), (0.0, 0.0), tokens, np.arange(base), (rows(base),))
        if (h, w) != consumed.shape or not consumed.size:
            does = "shrinks their grid, so that a patch is no longer one row of the encoder" if h * w else "keeps none"
            raise ModelError(
                f"of a picture of {picture[0]} x {picture[1]} pixels the tiles cannot be read: the model {does}; "
                "use `view: base`, or squash, pad or crop with a smaller `resolution`"
            )
        scale, shift = zip(*(axis.affine() for axis in self._axes(picture, canvas, (h, w))), strict=True)
        patches = base + np.arange(h * (w + 1)).reshape(h, w + 1)[:, :w].ravel()
        return Placement((h, w), scale, shift, tokens, patches, (consumed.reshape(-1, 1),))

    def cells(self, image: Size) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
        if self.view == "base":
            return super().cells(image)
        grid_map, picture = self.grid_map(image), self.framing.size(image)
        axes = self._axes(picture, self._canvas(picture), grid_map.grid)
        down, across = (axis.cells(grid_map.coordinates(n) + 0.5) for n, axis in enumerate(axes))  # type: ignore[arg-type]
        return down, across

    def _canvas(self, picture: Size) -> Size:
        """Model pixels of all tiles of a picture together."""
        height, width = select_best_resolution(picture, list(self.canvases))
        return height, width

    def _stitched(self, picture: Size, canvas: Size) -> Int[np.ndarray, "h w"]:
        """The consumed row of every patch on the picture's tiles, after those of the base view."""
        edge, (down, across) = self.side // self.patch, (length // self.side for length in canvas)
        numbers = np.arange(edge * edge, edge * edge * (1 + down * across))
        tiles = numbers.reshape(down, across, edge, edge).transpose(0, 2, 1, 3)
        return unpad_image(tiles.reshape(1, down * edge, across * edge), picture)[0]

    def _shrunk(self, grid: Size) -> Size:
        """The size that the model leaves a grid of tiles."""
        h, w = grid
        ratio = math.sqrt(h * w / (self.most * (self.side // self.patch) ** 2)) if self.most else 0
        return (int(h // ratio), int(w // ratio)) if ratio > SHRUNK else (h, w)

    def _axes(self, picture: Size, canvas: Size, kept: Size) -> "list[_Axis]":
        """Rows and columns of the tiles, of which the model kept so many patches."""
        fit, found = min(canvas[0] / picture[0], canvas[1] / picture[1]), []
        for length, whole, count in zip(picture, canvas, kept, strict=True):
            resized = min(math.ceil(length * fit), whole)
            tiles = whole // self.side
            cut = (tiles * (self.side // self.patch) - count) // 2
            found.append(_Axis(self.side, self.patch, tiles, resized / length, (whole - resized) // 2, cut))
        return found


def adapter(found: Checkpoint, most: int | None = None) -> Adapter:
    """The adapter of a model with these parts; ModelError as `Anyres.of` raises it."""
    outer = found.model.model
    text = outer.language_model
    parts = Parts(outer, text, text.norm, outer.multi_modal_projector, found.image_token_id)
    return Adapter(Embedder(found, parts), Anyres.of(found, most), Declared(newlines=True))


@dataclass(frozen=True)
class _Axis:
    """Rows (or columns) of one picture's tiles."""

    side: int  # model pixels
    patch: int  # model pixels
    tiles: int
    zoom: float  # model pixels per pixel of the picture
    before: int  # model pixels of padding in front of the picture
    cut: int  # patches that the model drops at either end

    @property
    def gap(self) -> int:
        """Model pixels behind every tile but a single one that the affine map has to get over."""
        return self.side % self.patch if self.tiles > 1 else 0

    @property
    def pitch(self) -> float:
        """Model pixels per patch, on the average."""
        return self.patch + self.gap / (self.side // self.patch)

    def affine(self) -> tuple[float, float]:
        """Scale and shift of the grid of tiles."""
        return self.zoom / self.pitch, (self.before + self.gap / 2) / self.pitch - self.cut

    def cells(self, at: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The patches that see what the affine map puts so many patches behind the grid's edge; -1 in a gap."""
        if not self.gap:
            return np.floor(at).astype(np.int64)
        tile, within = np.divmod((at + self.cut) * self.pitch - self.gap / 2, self.side)  # model pixels
        edge = self.side // self.patch
        cell = tile * edge + within // self.patch - self.cut
        return np.where(within < edge * self.patch, cell, -1).astype(np.int64)


def _canvases(pinpoints: Any) -> tuple[Size, ...]:
    return tuple((int(height), int(width)) for height, width in pinpoints or ())


@torch.no_grad()
def _check_tower(found: Checkpoint, side: int, patches: int) -> None:
    """ModelError if a tile does not leave the vision tower as its patches alone."""
    tile = torch.zeros(1, 3, side, side, dtype=found.model.dtype, device=found.device)
    states = found.model.model.vision_tower(tile).last_hidden_state.shape[1]
    strategy = found.model.config.vision_feature_select_strategy
    kept = states - (strategy == "default")  # which drops the first one, a CLS
    if kept != patches:
        raise ModelError(
            f"{found.spec.name}: vision_feature_select_strategy {strategy!r} keeps {kept} of a tile's {states} states, "
            f"expected its {patches} patches; 'default' is for vision towers with a CLS, 'full' for those without"
        )

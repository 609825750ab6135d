"""A layout with one fixed canvas: every picture is laid on the same square of model pixels, as in LLaVA-1.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import BaseImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from segbench.adapters.layout import Framing, Layout, Placement, Preprocess, Size, rows
from segbench.errors import ModelError


@dataclass(frozen=True)
class Canvas(Layout):
    """The processor's own arithmetic: pad to a square, resize, cut the middle `canvas` out.

    A picture is resized to `size`, or to a shortest edge of `size[0]` pixels if `keeps_aspect`; the result is cut, or
    filled with zeros, to the canvas. `before` image tokens without a place (registers) come before the patches.
    """

    framing: Framing
    arguments: Mapping[str, Any]
    canvas: Size  # model pixels
    size: Size
    keeps_aspect: bool
    pads: bool
    patch: int  # model pixels per patch edge
    before: int = 0

    @classmethod
    def of(cls, processor: BaseImageProcessor, preprocess: Preprocess, patch: int, before: int = 0) -> "Canvas":
        """`squash`: the whole image onto the model's square, whatever its aspect; `pad` and `crop`: a square of it.

        `native` is what the checkpoint states; ModelError where that is a canvas that depends on the image.
        """
        stated = processor.to_dict()
        size, crops = stated["size"] or {}, bool(stated.get("do_center_crop"))
        pads = bool(stated.get("do_pad"))
        edges = {key: int(value) for key, value in dict(size).items() if value}
        if not stated.get("do_resize") or set(edges) not in ({"shortest_edge"}, {"height", "width"}):
            raise ModelError(f"{type(processor).__name__} resizes to {edges or 'nothing'}; expected one fixed size")
        keeps = "shortest_edge" in edges
        target = (edges["shortest_edge" if keeps else "height"], edges["shortest_edge" if keeps else "width"])
        canvas = (int(stated["crop_size"]["height"]), int(stated["crop_size"]["width"])) if crops else target
        framing = Framing.of(preprocess, processor)
        if preprocess != "native":
            arguments = {"size": {"height": canvas[0], "width": canvas[1]}}
            arguments |= {name: False for name in ("do_center_crop", "do_pad") if name in stated}
            return cls(framing, arguments, canvas, canvas, False, False, patch, before)
        if pads and LlavaImageProcessorPil.__name__.removesuffix("Pil") != type(processor).__name__.removesuffix("Pil"):
            raise ModelError(
                f"{type(processor).__name__} pads after resizing; only padding to a square first is placed"
            )
        if keeps and not (crops or pads):
            raise ModelError(f"{type(processor).__name__} neither crops nor pads: every aspect has its own grid")
        return cls(framing, {}, canvas, target, keeps, pads, patch, before)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) whole patches; what is left of the canvas at the bottom and right is seen by none (SigLIP 384/14)."""
        return self.canvas[0] // self.patch, self.canvas[1] // self.patch

    @property
    def patch_pixels(self) -> float:
        return float(self.patch)

    def place(self, picture: Size) -> Placement:
        square = (max(picture), max(picture)) if self.pads else picture
        resized = self.size
        if self.keeps_aspect:  # the long edge is truncated, not rounded
            short = min(square)
            resized = (int(self.size[0] * square[0] / short), int(self.size[0] * square[1] / short))
        scale, shift = [], []
        for axis in (0, 1):
            pixels = resized[axis] / square[axis]
            before = (square[axis] - picture[axis]) // 2 * pixels - (resized[axis] - self.canvas[axis]) // 2
            scale.append(pixels / self.patch)
            shift.append(before / self.patch)
        count = self.grid[0] * self.grid[1]
        patches = np.arange(self.before, self.before + count)
        consumed = (rows(count, self.before),)
        return Placement(self.grid, (scale[0], scale[1]), (shift[0], shift[1]), self.before + count, patches, consumed)

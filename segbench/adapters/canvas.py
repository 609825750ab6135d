"""From original pixels to the square that a vision tower sees, in the arithmetic of the checkpoint's own processor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from segbench.errors import ModelError
from segbench.types import GridMap


@dataclass(frozen=True)
class Canvas:
    """One fixed size of model input and how an image of any size is laid on it.

    An image may first be padded to a square, is then resized to `size`, or to a shortest edge of `size[0]` pixels if
    `keeps_aspect`, and the middle `canvas` is cut out of the result (zeros where the result is smaller).
    """

    processor: BaseImageProcessor
    arguments: Mapping[str, Any]  # what the processor is told to do otherwise than its checkpoint states
    canvas: tuple[int, int]  # model pixels
    size: tuple[int, int]
    keeps_aspect: bool
    pads: bool
    patch: int  # model pixels per patch edge

    @classmethod
    def of(cls, processor: BaseImageProcessor, preprocess: Literal["squash", "native"], patch: int) -> "Canvas":
        """`squash`: the whole image onto the model's square, whatever its aspect; `native`: what the checkpoint states.

        ModelError for a processor whose canvas depends on the image: its patches cannot be placed here.
        """
        stated = processor.to_dict()
        size, crops = stated["size"] or {}, bool(stated.get("do_center_crop"))
        pads = bool(stated.get("do_pad"))
        edges = {key: int(value) for key, value in size.items() if value}
        if not stated.get("do_resize") or set(edges) not in ({"shortest_edge"}, {"height", "width"}):
            raise ModelError(f"{type(processor).__name__} resizes to {edges or 'nothing'}; expected one fixed size")
        keeps = "shortest_edge" in edges
        target = (edges["shortest_edge" if keeps else "height"], edges["shortest_edge" if keeps else "width"])
        canvas = (int(stated["crop_size"]["height"]), int(stated["crop_size"]["width"])) if crops else target
        if preprocess == "squash":
            arguments = {"size": {"height": canvas[0], "width": canvas[1]}, "do_center_crop": False, "do_pad": False}
            return cls(processor, arguments, canvas, canvas, False, False, patch)
        if pads and not isinstance(processor, LlavaImageProcessorPil):
            raise ModelError(
                f"{type(processor).__name__} pads after resizing; only padding to a square first is placed"
            )
        if keeps and not (crops or pads):
            raise ModelError(f"{type(processor).__name__} neither crops nor pads: every aspect has its own grid")
        return cls(processor, {}, canvas, target, keeps, pads, patch)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) whole patches; what is left of the canvas at the bottom and right is seen by none (SigLIP 384/14)."""
        return self.canvas[0] // self.patch, self.canvas[1] // self.patch

    def pixels(self, images: Sequence[Image.Image]) -> Float[Tensor, "b 3 H W"]:
        """The processor's own output; ModelError if it is not of the expected size."""
        made = self.processor(images=list(images), return_tensors="pt", **self.arguments)["pixel_values"]
        if not isinstance(made, torch.Tensor) or tuple(made.shape[-2:]) != self.canvas:
            got, expected = list(made.shape), list(self.canvas)
            raise ModelError(f"{type(self.processor).__name__} made {got}, expected {expected} pixels")
        return made

    def grid_map(self, image: tuple[int, int]) -> GridMap:
        """Where the patches lie on an image of H x W pixels; a pixel is seen if its centre lies in a patch."""
        square = (max(image), max(image)) if self.pads else image
        resized = self.size
        if self.keeps_aspect:  # the long edge is truncated, not rounded
            short = min(square)
            resized = (int(self.size[0] * square[0] / short), int(self.size[0] * square[1] / short))
        scale, shift, seen = [], [], []
        for axis in (0, 1):
            pixels = resized[axis] / square[axis]
            before = (square[axis] - image[axis]) // 2 * pixels - (resized[axis] - self.canvas[axis]) // 2
            scale.append(pixels / self.patch)
            shift.append(before / self.patch)
            at = (np.arange(image[axis]) + 0.5) * scale[axis] + shift[axis]
            seen.append(np.flatnonzero((at >= 0) & (at < self.grid[axis])))
        if not all(map(len, seen)):
            raise ModelError(f"an image of {image[0]} x {image[1]} pixels leaves nothing that the model can see")
        box = (int(seen[0][0]), int(seen[1][0]), int(seen[0][-1]) + 1, int(seen[1][-1]) + 1)
        return GridMap(self.grid, image, (scale[0], scale[1]), (shift[0], shift[1]), box)

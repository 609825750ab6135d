"""Where the patches of a picture are: among its pixels, among its image tokens, and in what the projector consumes.

An image is framed to a picture (the whole image, padded or cropped to a square, or as it is), the picture goes through
the checkpoint's own processor, and a family's `Layout` says where every patch of it ends up. The layout test at load
paints pictures and looks where they light up, so that nothing of this has to be believed.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from PIL import Image
from transformers import BaseImageProcessor

from segbench.errors import ModelError
from segbench.types import GridMap

Preprocess = Literal["squash", "pad", "crop", "native"]
Size = tuple[int, int]  # (H, W) pixels


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the h*w patches of a picture of one size are; raster order throughout."""

    grid: tuple[int, int]  # (h, w)
    scale: tuple[float, float]  # patches per pixel of the picture
    shift: tuple[float, float]  # patches; the centre of pixel row y is at (y + 0.5) * scale + shift - 0.5
    tokens: int  # image tokens that the picture has in the prompt, newlines and registers among them
    patches: Int[np.ndarray, " t"]  # which of these tokens are the patches
    consumed: tuple[Int[np.ndarray, "t m"], ...]  # of each tensor the projector consumes: this picture's rows per patch


@dataclass(frozen=True)
class Framing:
    """How an image of any aspect becomes the picture that the processor is given.

    `pad` puts it into the middle of a square (odd remainders to the bottom right, LLaVA's expand2square), `crop` takes
    the middle square out of it; `squash` and `native` leave it whole. With a `side`, the result is resized to that
    square: for processors that would otherwise choose a size of their own.
    """

    mode: Preprocess
    colour: tuple[int, int, int]  # of the padding
    side: int | None = None

    @classmethod
    def of(cls, mode: Preprocess, processor: BaseImageProcessor, side: int | None = None) -> "Framing":
        """Padding has the processor's mean colour."""
        mean = processor.to_dict().get("image_mean") or (0.5, 0.5, 0.5)
        return cls(mode, tuple(int(255 * float(channel)) for channel in mean)[:3], side)  # type: ignore[arg-type]

    def picture(self, image: Image.Image) -> Image.Image:
        """The picture of an RGB image."""
        size = (image.height, image.width)
        (height, width), (top, left) = self._square(size)
        if self.mode == "pad":
            padded = Image.new("RGB", (width, height), self.colour)
            padded.paste(image, (left, top))
            image = padded
        elif self.mode == "crop":
            image = image.crop((-left, -top, width - left, height - top))
        if self.side is not None and self.mode != "native":
            image = image.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return image

    def size(self, image: Size) -> Size:
        """Of the picture of an image of this size."""
        if self.side is not None and self.mode != "native":
            return self.side, self.side
        return self._square(image)[0]

    def grid_map(self, placement: Placement, image: Size) -> GridMap:
        """Where the patches lie on the image itself; a pixel is seen if its centre lies in a patch.

        ModelError for an image of which the model would see nothing.
        """
        square, offset = self._square(image)
        picture = self.size(image)
        scale, shift, seen = [], [], []
        for axis in (0, 1):
            per_pixel = placement.scale[axis] * picture[axis] / square[axis]
            scale.append(per_pixel)
            shift.append(placement.shift[axis] + offset[axis] * per_pixel)
            at = (np.arange(image[axis]) + 0.5) * scale[axis] + shift[axis]
            seen.append(np.flatnonzero((at >= 0) & (at < placement.grid[axis])))
        if not all(map(len, seen)):
            raise ModelError(f"an image of {image[0]} x {image[1]} pixels leaves nothing that the model can see")
        box = (int(seen[0][0]), int(seen[1][0]), int(seen[0][-1]) + 1, int(seen[1][-1]) + 1)
        return GridMap(placement.grid, image, (scale[0], scale[1]), (shift[0], shift[1]), box)

    def _square(self, image: Size) -> tuple[Size, Size]:
        """Size of the framed image before any resizing, and where the image's first pixel is in it."""
        if self.mode not in ("pad", "crop"):
            return image, (0, 0)
        side = max(image) if self.mode == "pad" else min(image)
        top, left = ((side - length) // 2 if self.mode == "pad" else -((length - side) // 2) for length in image)
        return (side, side), (top, left)


class Layout(ABC):
    """How one family lays a picture out. `arguments` are told to its image processor beside the checkpoint's own."""

    framing: Framing
    arguments: Mapping[str, Any]

    @property
    @abstractmethod
    def patch_pixels(self) -> float:
        """Model pixels along a patch's edge."""

    @abstractmethod
    def place(self, picture: Size) -> Placement:
        """The patches of a picture of this size; ModelError if the family's arithmetic cannot place it."""

    def grid_map(self, image: Size) -> GridMap:
        """Where the patches lie on an image of H x W pixels."""
        return self.framing.grid_map(self.place(self.framing.size(image)), image)

    def cells(self, image: Size) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " n"]]:
        """The row of patches that sees each row of an image's pixels, and columns alike; numbers off the grid are none.

        A layout whose grid map is not exact says here what it approximates.
        """
        grid_map = self.grid_map(image)
        down, across = (np.floor(grid_map.coordinates(axis) + 0.5).astype(np.int64) for axis in (0, 1))
        return down, across


def rows(count: int, first: int = 0) -> Int[np.ndarray, "t 1"]:
    """One consumed row per patch, in order, behind `first` rows that are none."""
    return np.arange(first, first + count)[:, None]

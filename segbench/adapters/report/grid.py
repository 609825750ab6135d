"""Where the patches of an example image are: the token grid in numbers, and pictures to draw it on."""

import numpy as np
from PIL import Image

from segbench.adapters.base import Adapter, Batch
from segbench.adapters.layout import Framing
from segbench.adapters.report.findings import Tokens, View
from segbench.data import scenes
from segbench.geometry import patch_index
from segbench.types import Sample

SCENE = (240, 360)  # H x W pixels of the example: no square, so that squash, pad and crop differ


def example() -> Sample:
    """An image for those who bring none."""
    scene = scenes.draw(1, scenes.HELD_OUT, SCENE)
    return Sample("a drawn scene", Image.fromarray(scene.image), scene.mask)


def tokens(adapter: Adapter, batch: Batch, name: str, size: tuple[int, int]) -> Tokens:
    """The token grid of an image of `size` (H, W), which is the first of the batch."""
    placement, grid_map, declared = adapter.placement(size), batch.grids[0], adapter.declared
    h, w = placement.grid
    top, left, bottom, right = grid_map.seen
    edges = {"top": top, "left": left, "bottom": size[0] - bottom, "right": size[1] - right}
    kinds = [f"{declared.registers} registers"] if declared.registers else []
    kinds += ["newlines, and the view that is not read"] if declared.newlines else []
    held = np.unique(patch_index(grid_map))
    return Tokens(
        image=name,
        size=size,
        picture=adapter.layout.framing.size(size),
        preprocess=adapter.spec.preprocess,
        grid=(h, w),
        tokens=placement.tokens,
        placeless=placement.tokens - h * w,
        kinds=", ".join(kinds),
        empty=h * w - int((held >= 0).sum()),
        unseen=1 - (bottom - top) * (right - left) / (size[0] * size[1]),
        edges={edge: count for edge, count in edges.items() if count},
        sequence=batch.inputs["input_ids"].shape[1],
    )


def views(adapter: Adapter, sample: Sample) -> tuple[View, ...]:
    """The image, and the picture that the processor is given."""
    image = sample.image.convert("RGB")
    picture = adapter.layout.framing.picture(image)
    placement = adapter.placement((image.height, image.width))
    whole = Framing("native", (0, 0, 0)).grid_map(placement, (picture.height, picture.width))
    return (
        View("the image", image, adapter.grid_map((image.height, image.width))),
        View(f"what the processor is given ({adapter.spec.preprocess})", picture, whole),
    )

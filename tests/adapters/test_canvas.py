"""Where patches lie is what the checkpoint's own processor does to an image that holds its own coordinates."""

from typing import NamedTuple

import numpy as np
import pytest
import tiny_models
from PIL import Image
from transformers import BaseImageProcessor
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from segbench import geometry
from segbench.adapters.canvas import Canvas
from segbench.adapters.layout import Preprocess
from segbench.errors import ModelError
from segbench.types import GridMap

SIZES = [(120, 120), (90, 160), (160, 90), (75, 200), (233, 61), (40, 56), (200, 200)]  # H x W

PROCESSORS: dict[str, tuple[BaseImageProcessor, int]] = {
    **{tower: (tiny_models.processor(tower).image_processor, 8) for tower in tiny_models.TOWERS},
    "clip-336": (CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), 14),
    "clip-336-pad": (
        LlavaImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, do_pad=True),
        14,
    ),
    "siglip-so400m-384": (SiglipImageProcessorPil(size={"height": 384, "width": 384}), 14),
    "dinov2-224-of-256": (
        BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
        14,
    ),
    "crop-beyond-the-image": (
        CLIPImageProcessorPil(size={"shortest_edge": 80}, crop_size={"height": 96, "width": 96}),
        8,
    ),
    "not-square": (SiglipImageProcessorPil(size={"height": 96, "width": 160}), 16),
}


class Distance(NamedTuple):
    """Between what the processor put somewhere and what the map says is there, in original pixels."""

    largest: float  # rounding to bytes alone makes up to 0.8
    mean: float  # signed, of the axis where it is larger: rounding has none


def misplaced(processor: BaseImageProcessor, canvas: Canvas, image: tuple[int, int], grid_map: GridMap) -> Distance:
    y, x = np.mgrid[: image[0], : image[1]]
    ramp = np.stack([y * 255 / (image[0] - 1), x * 255 / (image[1] - 1), np.zeros(image)], -1).round().astype(np.uint8)
    picture = canvas.framing.picture(Image.fromarray(ramp))
    made = processor(images=[picture], return_tensors="pt", **canvas.arguments)["pixel_values"][0].double().numpy()
    made = made[:, : canvas.grid[0] * canvas.patch, : canvas.grid[1] * canvas.patch]  # what lies in a patch
    stated = processor.to_dict()
    mean, deviation = (np.array(stated[name])[:, None, None] for name in ("image_mean", "image_std"))
    colours = (made * deviation + mean) / stated["rescale_factor"]
    largest, mean = 0.0, 0.0
    for axis in (0, 1):
        model_pixel = np.arange(canvas.grid[axis] * canvas.patch) + 0.5
        told = (model_pixel / canvas.patch - grid_map.shift[axis]) / grid_map.scale[axis] - 0.5
        found = colours[axis] * (image[axis] - 1) / 255
        # A resized ramp is bent near its ends, and beyond them there is padding.
        per_pixel = 1 / (grid_map.scale[axis] * canvas.patch)
        margin = 1 + 2 * max(per_pixel, 1)
        inside = (told > margin) & (told < image[axis] - 1 - margin)
        other = 1 - axis
        beside = (np.arange(canvas.grid[other] * canvas.patch) + 0.5) / canvas.patch
        beside = (beside - grid_map.shift[other]) / grid_map.scale[other] - 0.5
        across = (beside > margin) & (beside < image[other] - 1 - margin)
        there = (found if axis == 0 else found.T)[inside][:, across]
        assert there.size, "nothing of the image is left to compare"
        away = there - told[inside, None]
        largest, mean = max(largest, float(np.abs(away).max())), max(mean, abs(float(away.mean())))
    return Distance(largest, mean)


@pytest.mark.parametrize("preprocess", ["squash", "pad", "crop", "native"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_grid_map_is_where_the_processor_puts_every_pixel(name, preprocess: Preprocess):
    canvas = Canvas.of(PROCESSORS[name][0], preprocess, PROCESSORS[name][1])
    for image in SIZES:
        distance = misplaced(PROCESSORS[name][0], canvas, image, canvas.grid_map(image))
        assert distance.largest < 1, image
        assert distance.mean < 0.15, image


@pytest.mark.parametrize("name", ["clip", "clip-pad", "dinov2-224-of-256", "crop-beyond-the-image"])
def test_grid_stretched_over_the_image_is_pixels_away(name):
    canvas = Canvas.of(PROCESSORS[name][0], "native", PROCESSORS[name][1])
    for image in ((90, 160), (160, 90)):
        assert misplaced(PROCESSORS[name][0], canvas, image, GridMap.squash(canvas.grid, image)).largest > 5


def test_canvas_that_is_no_multiple_of_the_patch_leaves_its_border_unseen():
    """SigLIP-so400m/14@384 sees 378 of 384 pixels; 27 patches stretched over them all are half a patch off."""
    canvas = Canvas.of(*PROCESSORS["siglip-so400m-384"][:1], "squash", 14)
    grid_map = canvas.grid_map((384, 768))
    assert canvas.grid == (27, 27)
    assert grid_map.seen == (0, 0, 378, 756)
    right = grid_map.coordinates(0)[377] + 0.5
    assert right == pytest.approx(377.5 / 14)
    assert geometry.patch_index(grid_map)[377, 755] == 27 * 27 - 1
    assert (geometry.patch_index(grid_map)[378:] == -1).all()


@pytest.mark.parametrize("image", SIZES)
def test_maps_are_those_of_the_geometry(image):
    squash = Canvas.of(PROCESSORS["clip"][0], "squash", 8).grid_map(image)
    assert squash == GridMap.squash((6, 6), image)
    for name, expected in (
        ("clip", geometry.crop((6, 6), image, 48)),
        ("clip-pad", geometry.pad((6, 6), image)),
    ):
        found = Canvas.of(PROCESSORS[name][0], "native", 8).grid_map(image)
        assert found.seen == expected.seen
        np.testing.assert_allclose(found.scale + found.shift, expected.scale + expected.shift, atol=1e-12)


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (CLIPImageProcessorPil(do_resize=False), "expected one fixed size"),
        (CLIPImageProcessorPil(size={"longest_edge": 48}), "expected one fixed size"),
        (CLIPImageProcessorPil(size={"shortest_edge": 48}, do_center_crop=False), "every aspect has its own grid"),
        (
            CLIPImageProcessorPil(size={"height": 48, "width": 48}, do_center_crop=False, do_pad=True),
            "only padding to a square first is placed",
        ),
    ],
)
def test_processor_whose_patches_cannot_be_placed_is_refused(processor, said):
    with pytest.raises(ModelError, match=f"CLIPImageProcessorPil .*{said}"):
        Canvas.of(processor, "native", 8)


def test_image_that_the_crop_leaves_nothing_of_is_refused():
    canvas = Canvas.of(PROCESSORS["dinov2-224-of-256"][0], "native", 14)
    with pytest.raises(ModelError, match="an image of 1 x 2 pixels leaves nothing that the model can see"):
        canvas.grid_map((1, 2))

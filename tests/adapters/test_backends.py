"""Both of transformers' image-processor backends lay a picture out alike; which one it was is recorded."""

import importlib.util

import numpy as np
import pytest
import tiny_families
import tiny_models
import torch
from PIL import Image

from segbench.adapters import base
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Sample

INSTALLED = importlib.util.find_spec("torchvision") is not None
FAMILIES = ["llava", "llava_next", "llava_onevision", "deepseek_vl", "deepseek_vl_hybrid", "qwen2_5_vl"]
RATIOS = [(120, 120), (96, 128), (128, 96), (70, 210), (200, 80)]  # H x W


def load(folder, family, **fields):
    adapter = {"deepseek_vl_hybrid": "deepseek_vl"}.get(family, family)
    return base.load(ModelSpec(name="tiny", adapter=adapter, weights=folder, prompt=None, **fields), "cpu")


def samples():
    draw = np.random.default_rng(0)
    small = [draw.integers(0, 256, (h // 10, w // 10, 3), np.uint8) for h, w in RATIOS]
    images = [Image.fromarray(one).resize((w, h)) for one, (h, w) in zip(small, RATIOS, strict=True)]
    return [Sample("drawn", image, np.zeros((image.height, image.width), np.uint8)) for image in images]


@pytest.mark.skipif(not INSTALLED, reason="torchvision is not installed; core must do without")
@pytest.mark.parametrize("preprocess", ["squash", "native"])
@pytest.mark.parametrize("family", FAMILIES)
def test_both_backends_give_the_same_map_and_nearly_the_same_pixels(family, preprocess, tmp_path):
    folder = tiny_families.write(family, tmp_path / family)
    pil, fast = (load(folder, family, preprocess=preprocess, backend=one) for one in ("pil", "torchvision"))
    names = [type(one.processor.image_processor).__name__ for one in (pil, fast)]
    assert names[0] == f"{names[1]}Pil"
    assert fast.selftests["layout"] < 0.35  # patches, painted and found through this backend
    assert pil.selftests["placeless"] == fast.selftests["placeless"]
    for sample in samples():
        one, other = pil.prepare([sample]), fast.prepare([sample])
        assert one.grids == other.grids
        assert torch.equal(one.inputs["input_ids"], other.inputs["input_ids"])
        assert torch.equal(one.image_at, other.image_at)
        for name, pixels in one.inputs.items():
            if pixels.is_floating_point():
                assert pixels.shape == other.inputs[name].shape
                assert (pixels - other.inputs[name]).abs().mean() < 0.05  # of a standard deviation


@pytest.mark.skipif(INSTALLED, reason="torchvision is installed")
def test_backend_that_is_not_there_is_told(tmp_path):
    folder = tiny_models.write(tmp_path)
    with pytest.raises(ModelError, match=r"not one of the backend 'torchvision': torchvision is not installed"):
        base.load(tiny_models.spec(folder, backend="torchvision"), "cpu")

"""LLaVA-OneVision: tiles with gaps, grids that it shrinks, checkpoints that are refused. The rest is in test_anyres."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
from drawn import rewrite, samples
from PIL import Image
from transformers import LlavaOnevisionImageProcessorPil

from segbench import geometry
from segbench.adapters import base
from segbench.adapters.anyres import Anyres
from segbench.adapters.base import ADAPTER, ENCODER, FINAL, Adapter
from segbench.adapters.layout import Framing
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_families.write("llava_onevision", tmp_path_factory.mktemp("llava_onevision"))


@pytest.fixture(scope="module")
def shrinking(tmp_path_factory) -> Path:
    """A model that shrinks what is more than one tile's worth of patches."""
    limit: dict[str, Any] = {"vision_aspect_ratio": "anyres_max_1"}
    written = tiny_families.write("llava_onevision", tmp_path_factory.mktemp("shrinking"), **limit)
    rewrite(written, "processor_config.json", **limit)
    return written


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def load(folder: Path, **fields: Any) -> Adapter:
    said: dict[str, Any] = {"adapter": "llava_onevision", "prompt": "<image> what is this", **fields}
    return base.load(ModelSpec(name="tiny", weights=folder, **said), "cpu")


def refused(folder: Path, said: str, **fields: Any) -> None:
    with pytest.raises(ModelError, match=said):
        load(folder, **fields)


def test_base_view_does_not_see_the_end_of_its_canvas(folder):
    """As 378 of 384 pixels: here 6 patches of 8 on 52."""
    adapter = load(folder)
    grid_map = adapter.grid_map((104, 208))
    assert grid_map.seen == (0, 0, 96, 192)
    assert geometry.patch_index(grid_map)[95, 191] == 35
    (image,) = samples([(52, 52)])
    pixels = np.array(image.image)
    pixels[48:] = pixels[:, 48:] = 0
    other = Sample("", Image.fromarray(pixels), image.mask)
    one, two = adapter.read(adapter.prepare([image, other]), [ENCODER])[ENCODER]
    assert torch.equal(one, two)


def test_tiles_have_gaps_that_no_patch_sees(folder):
    adapter = load(folder, view="tiles", resolution=104)
    assert [np.flatnonzero(cells == -1).tolist() for cells in adapter.layout.cells((104, 104))] == [
        [48, 49, 50, 51, 100, 101, 102, 103]
    ] * 2
    (image,) = samples([(104, 104)])
    pixels = np.array(image.image)
    pixels[48:52] = pixels[:, 100:] = 0
    other = Sample("", Image.fromarray(pixels), image.mask)
    one, two = adapter.read(adapter.prepare([image, other]), [ENCODER])[ENCODER]
    assert torch.equal(one, two)
    pixels[52, 30] = 255 - pixels[52, 30]
    one, three = adapter.read(adapter.prepare([image, Sample("", Image.fromarray(pixels), image.mask)]), [ENCODER])[
        ENCODER
    ]
    assert (one != three).any(1).unflatten(0, (12, 12))[6:].any()


@torch.no_grad()
def test_several_vision_layers_are_one_encoder_site(tmp_path):
    written = tiny_families.write("llava_onevision", tmp_path, vision_feature_layer=[-3, -1])
    adapter = load(written, preprocess="native")
    batch = adapter.prepare(samples([(60, 90)]))
    tower: Any = adapter.parts.outer.vision_tower
    vision = tower(batch.inputs["pixel_values"][0], output_hidden_states=True).hidden_states
    features = adapter.read(batch, [ENCODER, ADAPTER])
    assert torch.equal(features[ENCODER][0], torch.cat([vision[-3], vision[-1]], -1)[0])
    torch.testing.assert_close(features[ADAPTER], adapter.parts.projector(features[ENCODER]), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- grids it shrinks


@torch.no_grad()
def test_base_view_is_read_before_tiles_that_the_model_shrinks(shrinking):
    adapter = load(shrinking, preprocess="native")
    batch = adapter.prepare(samples([(104, 104)]))
    assert adapter.placement((104, 104)).tokens == 36 + 6 * 7  # 12 x 12 patches shrunk to 6 x 6
    plain: Any = adapter.model.model
    states = plain(**batch.inputs).last_hidden_state
    assert torch.equal(adapter.read(batch, [FINAL])[FINAL][0], states[0, batch.image_at[0]])
    assert (batch.image_at[0].diff() == 1).all()


def test_tiles_that_the_model_shrinks_are_refused_with_what_else_can_be_read(shrinking):
    adapter = load(shrinking, view="tiles")  # of which there is one
    assert adapter.placement((104, 104)).grid == (6, 6)
    said = "a picture of 104 x 104 pixels the tiles cannot be read: the model shrinks their grid.*use `view: base`, or"
    refused(shrinking, said, view="tiles", resolution=104)


def test_grid_of_nine_tiles_is_not_shrunk_and_one_of_twelve_is(folder):
    canvases = tuple((height, width) for height, width in LlavaOnevisionImageProcessorPil().image_grid_pinpoints)
    layout = Anyres(Framing("native", (0, 0, 0)), "tiles", 384, 14, canvases, 9)
    assert layout.place((1152, 1152)).grid == (81, 81)
    with pytest.raises(ModelError, match="shrinks their grid"):
        layout.place((1152, 1536))


# ------------------------------------------------------------------------------------------------------------- refusals


def test_model_of_another_family_is_refused(folder):
    refused(folder, "holds a 'llava_onevision' model, the adapter llava_next reads 'llava_next'", adapter="llava_next")


def test_patch_that_the_strategy_drops_is_refused(copy):
    for name in ("config.json", "processor_config.json"):
        rewrite(copy, name, vision_feature_select_strategy="default")
    refused(
        copy, "strategy 'default' keeps 35 of a tile's 36 states, expected its 36 patches; .*'full' for those without"
    )


@pytest.mark.parametrize("keys", [{"num_image_tokens": 49}, {"vision_feature_select_strategy": "default"}])
def test_processor_that_miscounts_the_tokens_is_refused(copy, keys):
    rewrite(copy, "processor_config.json", **keys)
    refused(copy, r"LlavaOnevisionProcessor makes \d+ image tokens .*, expected 78 with 6 x 6 patches among them")


def test_limit_of_tiles_that_is_none_is_refused(copy):
    rewrite(copy, "config.json", vision_aspect_ratio="square")
    refused(copy, "vision_aspect_ratio is 'square', expected anyres_max_9 or another number")


def test_processor_that_counts_by_another_limit_is_refused(copy):
    rewrite(copy, "processor_config.json", vision_aspect_ratio="anyres_max_4")
    refused(copy, "'anyres_max_4' in processor_config.json and 'anyres_max_9' in config.json; make them the same")

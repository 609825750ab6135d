"""LLaVA-NeXT: which vision layers are read, and which checkpoints are refused. What it shares is in test_anyres."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from drawn import rewrite, samples
from PIL import Image

from segbench.adapters import base
from segbench.adapters.base import ENCODER, FINAL, Adapter
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Sample, Site


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_families.write("llava_next", tmp_path_factory.mktemp("llava_next"))


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def load(folder: Path, **fields: Any) -> Adapter:
    said: dict[str, Any] = {"adapter": "llava_next", "prompt": "USER: <image> what is this", **fields}
    return base.load(ModelSpec(name="tiny", weights=folder, **said), "cpu")


def refused(folder: Path, said: str, **fields: Any) -> None:
    with pytest.raises(ModelError, match=said):
        load(folder, **fields)


@torch.no_grad()
@pytest.mark.parametrize("view", ["base", "tiles"])
def test_several_vision_layers_are_one_encoder_site(tmp_path, view):
    adapter = load(tiny_families.write("llava_next", tmp_path, vision_feature_layer=[-3, -2]), view=view, resolution=96)
    batch = adapter.prepare(samples([(96, 96)]))
    tiles = batch.inputs["pixel_values"][0]
    tower: Any = adapter.parts.outer.vision_tower
    vision = tower(tiles, output_hidden_states=True).hidden_states
    consumed = torch.cat([vision[-3], vision[-2]], -1)[:, 1:]
    read = adapter.read(batch, [ENCODER])[ENCODER][0]
    if view == "base":
        assert torch.equal(read, consumed[0])
    else:  # 2 x 2 tiles without padding
        stitched = consumed[1:].unflatten(1, (6, 6)).unflatten(0, (2, 2)).permute(0, 2, 1, 3, 4)
        assert torch.equal(read.unflatten(0, (2, 6, 2, 6)), stitched)
    assert adapter.widths[ENCODER] == 64


@torch.no_grad()
def test_projector_turns_the_encoder_into_the_adapter_patch_by_patch(folder):
    for view in ("base", "tiles"):
        adapter = load(folder, view=view, preprocess="native")
        features = adapter.read(adapter.prepare(samples([(90, 140)])), [ENCODER, base.ADAPTER])
        projected = adapter.parts.projector(features[ENCODER])
        torch.testing.assert_close(features[base.ADAPTER], projected, rtol=0, atol=1e-5)


def test_base_view_of_a_causal_model_knows_nothing_of_the_tiles(folder):
    """So that of two resolutions, of which one has more tiles, the base view reads the same."""
    small, large = (load(folder, resolution=side) for side in (48, 96))
    square = samples([(48, 48)])[0]
    fine = samples([(96, 96)])[0]
    coarse = Sample("", fine.image.resize((48, 48), Image.Resampling.BICUBIC), square.mask)
    sites = [ENCODER, Site("llm", 2), FINAL]
    one, other = small.prepare([coarse]), large.prepare([fine])
    assert one.inputs["input_ids"].shape[1] < other.inputs["input_ids"].shape[1]
    assert torch.equal(one.inputs["pixel_values"][0, 0], other.inputs["pixel_values"][0, 0])
    few, many = small.read(one, sites), large.read(other, sites)
    for site in sites:
        torch.testing.assert_close(few[site], many[site], rtol=0, atol=2e-5)


def test_tiles_of_a_picture_no_larger_than_the_base_view_have_a_grid_no_finer(folder):
    assert load(folder, view="tiles").placement((200, 300)).grid == (6, 6)
    assert load(folder, view="tiles", resolution=96).placement((200, 300)).grid == (12, 12)
    assert load(folder, view="tiles", preprocess="native").placement((200, 300)).grid == (8, 12)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_model_of_another_family_is_refused(folder, tmp_path):
    refused(folder, "holds a 'llava_next' model, the adapter llava reads 'llava'", adapter="llava")
    other = tiny_families.write("llava", tmp_path)
    refused(other, "holds a 'llava' model, the adapter llava_next reads 'llava_next'")


def test_processor_that_cuts_other_tiles_than_the_model_stitches_is_refused(copy):
    rewrite(copy, "preprocessor_config.json", image_grid_pinpoints=[[96, 96], [48, 96]])
    refused(copy, r"are \[\(96, 96\), \(48, 96\)\] in preprocessor_config.json and \[\(48, 96\), .* make them the same")


@pytest.mark.parametrize("pinpoints", [[[96, 100]], []])
def test_pinpoints_that_are_no_whole_tiles_are_refused(copy, pinpoints):
    for name in ("preprocessor_config.json", "config.json"):
        rewrite(copy, name, image_grid_pinpoints=pinpoints)
    refused(copy, r"image_grid_pinpoints are .*, expected multiples of 48 pixels")


@pytest.mark.parametrize("keys", [{"crop_size": {"height": 40, "width": 40}}, {"size": {"shortest_edge": 56}}])
def test_processor_with_tiles_of_another_size_is_refused(copy, keys):
    rewrite(copy, "preprocessor_config.json", **keys)
    refused(copy, r"makes tiles of \[4[08], (48|56)\] pixels, the model takes 48; correct size and crop_size")


def test_cls_that_the_strategy_keeps_is_refused(copy):
    rewrite(copy, "config.json", vision_feature_select_strategy="full")
    refused(copy, r"strategy 'full' keeps 37 of a tile's 37 states, expected its 36 patches; 'default' is for .* a CLS")


@pytest.mark.parametrize(
    "keys", [{"patch_size": 16}, {"num_additional_image_tokens": 0}, {"vision_feature_select_strategy": "full"}]
)
def test_processor_that_miscounts_the_tokens_is_refused(copy, keys):
    rewrite(copy, "processor_config.json", **keys)
    refused(copy, r"LlavaNextProcessor makes \d+ image tokens .*, expected 78 with 6 x 6 patches among them; check its")


def test_image_so_thin_that_the_model_keeps_none_of_its_tiles_is_refused(folder):
    thin = samples([(1500, 4)])
    tiles, whole = (load(folder, view=view, preprocess="native") for view in ("tiles", "base"))
    with pytest.raises(
        ModelError, match="of a picture of 1500 x 4 pixels the tiles cannot be read: the model keeps none"
    ):
        tiles.prepare(thin)
    assert whole.prepare(thin).grids[0].grid == (6, 6)

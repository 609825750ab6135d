"""Qwen2.5-VL and Qwen2-VL: every grid of every picture, out of window order, is what the stock model computes."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import torch
from drawn import at_patches, distances, samples
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_window_index

from segbench.adapters import _selftest, base, qwen2_5_vl
from segbench.adapters.base import ADAPTER, ENCODER, FINAL, Adapter
from segbench.adapters.embedder import Embedder
from segbench.adapters.layout import Framing, Placement, Preprocess
from segbench.adapters.qwen2_5_vl import Dynamic
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Site

FAMILIES = ("qwen2_5_vl", "qwen2_vl")
FRAMES: tuple[Preprocess, ...] = ("squash", "pad", "crop", "native")
RATIOS = [(96, 96), (90, 120), (120, 90), (70, 210), (200, 80)]  # H x W
TOKEN = 16  # pixels of a token's edge in the tiny checkpoints
RESOLUTION = 7 * TOKEN  # no whole number of windows, which have two tokens

every_family = pytest.mark.parametrize("family", FAMILIES)
every_reading = pytest.mark.parametrize(("family", "preprocess"), list(itertools.product(FAMILIES, FRAMES)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny_families.write(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def reader(folders) -> Callable[..., Adapter]:
    return cache(lambda family, preprocess="native": load(folders[family], preprocess=preprocess))


def load(folder: Path, **fields: Any) -> Adapter:
    said: dict[str, Any] = {"resolution": RESOLUTION, "prompt": "what is <image> this", **fields}
    return base.load(ModelSpec(name="tiny", adapter="qwen2_5_vl", weights=folder, **said), "cpu")


def real(preprocess: Preprocess = "native", side: int = 672) -> tuple[Dynamic, Any]:
    """Layout and processor of checkpoints of the usual size."""
    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    processor = Qwen2VLImageProcessorPil(size=dict(limits))  # as it is by default, which in 5.17 another one may change
    arguments = {} if preprocess == "native" else {"size": dict.fromkeys(limits, side**2)}
    fewest, most = arguments.get("size", limits).values()
    return Dynamic(Framing.of(preprocess, processor, side), arguments, 28, 2, 4, (fewest, most)), processor


def windows(grid: Tensor, window: int, merge: int, patch: int) -> Tensor:
    """transformers' order of the tokens of pictures of so many patches, in windows of that many pixels."""
    return get_vision_window_index(grid, spatial_merge_size=merge, window_size=window, patch_size=patch)[0]


# ---------------------------------------------------------------------------------------------- against transformers


@every_reading
@pytest.mark.parametrize("image", RATIOS)
@torch.no_grad()
def test_every_site_is_what_transformers_computes(reader, family, preprocess, image):
    adapter = reader(family, preprocess)
    batch = adapter.prepare(samples([image] * 2))
    llm = [Site("llm", layer) for layer in range(adapter.depth + 1)]
    features = adapter.read(batch, [ENCODER, ADAPTER, *llm, FINAL])
    plain = adapter.parts.outer(**batch.inputs, output_hidden_states=True, use_cache=False)
    for layer in range(adapter.depth):
        assert torch.equal(features[llm[layer]], at_patches(plain.hidden_states[layer], batch))
    assert torch.equal(features[FINAL], at_patches(plain.hidden_states[-1], batch))
    assert torch.equal(adapter.parts.norm(features[llm[-1]]), features[FINAL])
    assert torch.equal(features[ADAPTER], features[llm[0]])
    grid = batch.inputs["image_grid_thw"]
    visual: Any = adapter.parts.outer.visual
    vision = visual(batch.inputs["pixel_values"], grid_thw=grid)
    tokens = vision.last_hidden_state.unflatten(0, (-1, 4))  # what the merger consumes, four patches a token
    if family == "qwen2_5_vl":
        order = windows(grid, 32, 2, 8)
        assert not torch.equal(order, order.sort().values)
        tokens = tokens[order.argsort()]
    assert torch.equal(features[ENCODER], tokens.flatten(1).unflatten(0, (2, -1)))
    assert torch.equal(features[ADAPTER], vision.pooler_output.unflatten(0, (2, -1)))
    assert {site: feature.shape[-1] for site, feature in features.items()}.items() <= adapter.widths.items()


@every_family
@torch.no_grad()
def test_keys_and_values_are_those_of_a_cache_and_rotating_keeps_their_length(reader, family):
    adapter = reader(family)
    batch = adapter.prepare(samples(RATIOS[1:2] * 2))
    sites = [site for site in adapter.known_sites() if site.stream != "hidden"]
    features = adapter.read(batch, sites)
    cache = DynamicCache(config=adapter.parts.text.config)
    adapter.parts.outer(**batch.inputs, past_key_values=cache, use_cache=True)
    layers: list[Any] = list(cache.layers)
    assert len(sites) == 3 * adapter.depth == 3 * len(layers)
    for n, layer in enumerate(layers):
        key, value = (at_patches(one.transpose(1, 2).flatten(2), batch) for one in (layer.keys, layer.values))
        assert torch.equal(features[Site("llm", n, "key")], key)
        assert torch.equal(features[Site("llm", n, "value")], value)
        heads = layer.keys.shape[1]
        before = features[Site("llm", n, "key_pre")]
        lengths = [one.unflatten(-1, (heads, -1)).norm(dim=-1) for one in (before, key)]
        torch.testing.assert_close(*lengths)
        assert not torch.allclose(before, key)


@every_family
def test_positions_of_image_tokens_are_on_three_axes(reader, family):
    adapter = reader(family)
    batch = adapter.prepare(samples([(70, 210)]))
    h, w = batch.grids[0].grid
    first = int(batch.image_at[0, 0])
    assert (h, w, first) == (4, 13, 3)  # what, is, <|vision_start|>
    row, column = np.indices((h, w)).reshape(2, -1) + first
    before = np.arange(first)
    expected = [[*before, *([first] * h * w)], [*before, *row], [*before, *column]]
    positions = adapter.encode(batch).call["position_ids"]
    assert positions[-3:, 0].tolist() == [list(map(int, axis)) for axis in expected]


@every_family
def test_processor_that_does_not_mark_image_tokens_is_refused(folders, monkeypatch, family):
    inputs = Embedder.inputs

    def unmarked(self, picture, arguments):
        made = inputs(self, picture, arguments)
        assert made.pop("mm_token_type_ids").sum() > 0
        return made

    monkeypatch.setattr(Embedder, "inputs", unmarked)
    with pytest.raises(
        ModelError, match="gives no mm_token_type_ids, so image tokens would have the positions of text"
    ):
        load(folders[family])


def test_checkpoint_as_the_hub_has_it_is_read_alike(folders, tmp_path):
    """Its config has the text model's keys at the top and the old name of its positions, its processor two limits."""
    nested = load(folders["qwen2_5_vl"], preprocess="native")
    folder = tiny_families.write("qwen2_5_vl", tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text())
    text, vision = config.pop("text_config"), config["vision_config"]
    rope = text.pop("rope_parameters")
    flat = {name: text[name] for name in text if name not in ("layer_types", "model_type")}
    flat |= {"rope_theta": rope["rope_theta"]}
    flat |= {"rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    config["vision_config"] = {name: vision[name] for name in vision if name not in ("model_type", "rope_parameters")}
    (folder / "config.json").write_text(json.dumps(config | flat))
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    size = stated.pop("size")
    stated |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(stated | {"processor_class": "Qwen2_5_VLProcessor"}))
    (folder / "processor_config.json").unlink()
    hub = load(folder, preprocess="native")
    ones, sites = samples([(70, 210)]), nested.sites()
    assert hub.grid_map((70, 210)) == nested.grid_map((70, 210))
    features = [adapter.read(adapter.prepare(ones), sites) for adapter in (nested, hub)]
    assert all(torch.equal(features[0][site], features[1][site]) for site in sites)
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "has no text_config, so its text model is unknown")


# ------------------------------------------------------------------------------------------------------------- geometry


def test_window_order_is_undone_at_the_size_of_real_checkpoints():
    layout, _ = real()
    for h, w in [(24, 24), (4, 4), (3, 2), (17, 23), (1, 30), (9, 1), (8, 12), (5, 31)]:
        placed = layout.place((h * 28, w * 28))
        assert placed.grid == (h, w)
        order = windows(torch.tensor([[1, 2 * h, 2 * w]]), 112, 2, 14)
        patches = torch.arange(4 * h * w).reshape(-1, 4)[order.argsort()]
        assert placed.consumed[0].tolist() == patches.tolist()
        assert placed.tokens == h * w


def test_grid_is_the_processors_own_for_pictures_of_any_size():
    layout, processor = real()
    drawn = np.random.default_rng(0).integers(10, 700, (12, 2)).tolist()
    for size in [(28, 28), (14, 42), (10, 1500), (3000, 20), *drawn]:
        made = processor(images=[Image.new("RGB", (size[1], size[0]))], return_tensors="pt")
        assert made["image_grid_thw"].tolist() == [[1, *(2 * patches for patches in layout.place(tuple(size)).grid)]]


def misplaced(layout: Dynamic, processor: Any, image: tuple[int, int]) -> tuple[float, float]:
    """Largest and mean distance, in original pixels, of what tokens are shown from where the map says they look.

    The image holds its own coordinates. What is near its edges, where a resized ramp is bent, is left out.
    """
    y, x = np.mgrid[: image[0], : image[1]]
    ramp = np.stack([y * 255 / (image[0] - 1), x * 255 / (image[1] - 1), np.zeros(image)], -1).round().astype(np.uint8)
    picture = layout.framing.picture(Image.fromarray(ramp))
    grid_map, stated = layout.grid_map(image), processor.to_dict()
    made = processor(images=[picture], return_tensors="pt", **layout.arguments)
    h, w = (int(patches) // 2 for patches in made["image_grid_thw"][0, 1:])
    assert (h, w) == grid_map.grid
    patch = layout.token // 2
    pixels = made["pixel_values"].double().numpy().reshape(h, w, 2, 2, 3, 2, patch, patch)  # the fifth twice, in time
    pixels = pixels[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, h * layout.token, w * layout.token)
    mean, deviation = (np.array(stated[name])[:, None, None] for name in ("image_mean", "image_std"))
    colours = (pixels * deviation + mean) / stated["rescale_factor"]
    middle = slice(patch - 1, patch + 1)  # of every token, as far from what bends as can be
    tokens = colours[:2].reshape(2, h, layout.token, w, layout.token)[:, :, middle, :, middle].mean((2, 4))
    found = tokens.reshape(2, -1).T * (np.array(image) - 1) / 255
    return distances(found, grid_map, layout.token)


@every_reading
def test_grid_map_is_where_the_processor_puts_every_pixel(reader, family, preprocess):
    adapter = reader(family, preprocess)
    for image in RATIOS:
        largest, mean = misplaced(adapter.layout, adapter.processor.image_processor, image)
        assert largest < 1, image
        assert mean < 0.35, image


@pytest.mark.parametrize("preprocess", FRAMES)
def test_grid_map_is_where_the_processor_puts_every_pixel_at_the_size_of_real_checkpoints(preprocess):
    layout, processor = real(preprocess)
    for image in ((240, 250), (300, 170), (150, 400)):
        largest, mean = misplaced(layout, processor, image)
        assert largest < 1, image
        assert mean < 0.35, image


@every_reading
def test_every_pixel_is_seen_but_those_that_were_cropped(reader, family, preprocess):
    for image in RATIOS:
        top, left, bottom, right = reader(family, preprocess).grid_map(image).seen
        short = min(image)
        assert (bottom - top, right - left) == ((short, short) if preprocess == "crop" else image)


@every_reading
def test_bands_painted_on_images_of_every_aspect_light_up_their_tokens(reader, family, preprocess):
    adapter = reader(family, preprocess)
    for image in RATIOS:
        found = _selftest.layout(adapter, image)
        assert max(found["layout"], found["encoder"]) < 0.45, image
        assert found["placeless"] == 0
    assert adapter.selftests["leak"] == 0 < adapter.selftests["effect"]


def test_square_is_as_many_tokens_as_llava_has_where_no_resolution_is_said(folders):
    for resolution, tokens in ((None, 24), (RESOLUTION, 7)):
        spec = ModelSpec(name="tiny", adapter="qwen2_5_vl", weights=folders["qwen2_5_vl"], resolution=resolution)
        assert qwen2_5_vl.load(spec, "cpu").placement((100, 300)).grid == (tokens, tokens)


# --------------------------------------------------------------------------------------------- batches and conditions


@every_reading
def test_batch_of_one_is_batch_of_three(reader, family, preprocess):
    adapter = reader(family, preprocess)
    sites = [ENCODER, ADAPTER, Site("llm", 2), Site("llm", 3, "value"), FINAL]
    ones = samples([(90, 120)] * 3 if preprocess == "native" else RATIOS[:3])
    together = adapter.read(adapter.prepare(ones), sites)
    for row, sample in enumerate(ones):
        alone = adapter.read(adapter.prepare([sample]), sites)
        for site in sites:
            torch.testing.assert_close(alone[site][0], together[site][row], rtol=0, atol=2e-5)


@every_family
def test_native_images_of_other_grids_are_batches_in_their_order(reader, family):
    """The second and third have as many tokens, and so the same shapes of everything, but other grids."""
    adapter = reader(family)
    ones = samples([(96, 128), (96, 128), (128, 96), (70, 210), (96, 128)])
    batches = list(adapter.batches(ones))
    assert [[grid_map.grid for grid_map in batch.grids] for batch in batches] == [
        [(6, 8), (6, 8)],
        [(8, 6)],
        [(4, 13)],
        [(6, 8)],
    ]
    assert batches[0].inputs["pixel_values"].shape[0] == 2 * batches[1].inputs["pixel_values"].shape[0]
    images = [grid_map.image for batch in batches for grid_map in batch.grids]
    assert images == [(one.image.height, one.image.width) for one in ones]
    with pytest.raises(ModelError, match="these 5 images make 4 batches, as their grids differ"):
        adapter.prepare(ones)
    whole = [adapter.read(batch, [FINAL])[FINAL] for batch in batches]
    for sample, features in zip(ones, (row for states in whole for row in states), strict=True):
        alone = adapter.read(adapter.prepare([sample]), [FINAL])[FINAL][0]
        torch.testing.assert_close(alone, features, rtol=0, atol=2e-5)


@every_family
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_attention_passes_its_selftests_on_both_back_ends(folders, family, implementation, attention):
    found = load(folders[family], preprocess="native", attention=attention, implementation=implementation).selftests
    assert found["leak"] == 0 < found["effect"]
    assert (found["first_token"] > 0) is (attention == "bidirectional")


# -------------------------------------------------------------------------------------------------------------- mutants


Mutant = Callable[[Placement], Placement]


def windows_kept(found: Placement) -> Placement:
    return replace(found, consumed=(np.arange(4 * len(found.patches)).reshape(-1, 4),))


def window_order_twice(found: Placement) -> Placement:
    """As by indexing with the window order where its inverse belongs."""
    (index,) = found.consumed
    return replace(found, consumed=(np.argsort(index[:, 0])[:, None] * 4 + np.arange(4),))


def rows_apart(found: Placement) -> Placement:
    """The patches of a token as if they were a row of the picture."""
    (index,) = found.consumed
    return replace(found, consumed=(np.stack([index[:, 0] // 4 + n * len(index) for n in range(4)], -1),))


def columns_first(found: Placement) -> Placement:
    order = np.arange(len(found.patches)).reshape(found.grid[::-1]).T.ravel()
    return replace(found, patches=found.patches[order])


def grid_turned(found: Placement) -> Placement:
    return replace(found, grid=found.grid[::-1], scale=found.scale[::-1])


def one_token_on(found: Placement) -> Placement:
    return replace(found, patches=np.roll(found.patches, -1))


@pytest.mark.parametrize(
    ("mutant", "what"),
    [
        (windows_kept, "row that the projector consumes"),
        (window_order_twice, "row that the projector consumes"),
        (rows_apart, "row that the projector consumes"),
        (columns_first, "image token"),
        (grid_turned, "image token"),
        (one_token_on, "image token"),
    ],
)
def test_layout_that_is_wrong_is_caught_at_load(reader, monkeypatch, mutant: Mutant, what):
    adapter, place = reader("qwen2_5_vl"), Dynamic.place
    monkeypatch.setattr(Dynamic, "place", lambda self, picture: mutant(place(self, picture)))
    with pytest.raises(ModelError, match=f"layout self-test failed: an? {what} is"):
        _selftest.layout(adapter)


def test_padding_that_the_map_forgets_is_caught_at_load(reader, monkeypatch):
    adapter, grid_map = reader("qwen2_5_vl", "pad"), Framing.grid_map
    monkeypatch.setattr(Framing, "grid_map", lambda self, *given: grid_map(replace(self, mode="squash"), *given))
    with pytest.raises(ModelError, match="layout self-test failed: an image token is"):
        _selftest.layout(adapter)


# -------------------------------------------------------------------------------------------------------------- errors


def refused(folder: Path, said: str, **fields: Any) -> None:
    with pytest.raises(ModelError, match=said):
        load(folder, **fields)


@pytest.mark.parametrize("resolution", [100, 40])
def test_resolution_with_parts_of_tokens_is_refused(folders, resolution):
    near = {100: 96, 40: 32}[resolution]
    said = rf"resolution is {resolution}, expected a multiple of 16 pixels, such as {near}: a token has 2 patches of 8"
    refused(folders["qwen2_5_vl"], said, resolution=resolution)


def test_picture_that_the_processor_refuses_is_told_by_its_size(reader):
    with pytest.raises(
        ModelError, match=r"a picture of 3 x 900 pixels: absolute aspect ratio .*use `preprocess: squash`"
    ):
        reader("qwen2_5_vl").prepare(samples([(3, 900)]))
    assert reader("qwen2_5_vl", "squash").prepare(samples([(3, 900)])).grids[0].grid == (7, 7)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"patch_size": 4}, "patch_size is 4 in preprocessor_config.json, but patch_size is 8 in config.json"),
        ({"merge_size": 1}, "merge_size is 1 in preprocessor_config.json, but spatial_merge_size is 2 in config.json"),
        ({"do_resize": False}, "does not resize, and pictures have no whole number of tokens; set do_resize to true"),
    ],
)
def test_processor_that_cuts_other_patches_than_the_model_takes_is_refused(tmp_path, keys, said):
    folder = tiny_families.write("qwen2_5_vl", tmp_path)
    stated = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(stated | keys))
    refused(folder, said)


def test_model_of_another_family_is_refused(tmp_path):
    folder = tiny_families.write("qwen3_vl", tmp_path)
    refused(folder, "holds a 'qwen3_vl' model, the adapter qwen2_5_vl reads 'qwen2_5_vl' or 'qwen2_vl'")

"""DeepSeek-VL, hybrid or not, is read as the stock model computes it, where the stock processor puts its pixels."""

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
from drawn import at_patches, samples
from PIL import Image
from transformers import DeepseekVLHybridImageProcessorPil, DeepseekVLImageProcessorPil, DynamicCache

from segbench.adapters import _selftest, base, light
from segbench.adapters.base import ADAPTER, ENCODER, FINAL, Adapter
from segbench.adapters.deepseek_vl import Padded
from segbench.adapters.layout import Framing, Placement, Preprocess
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Site

HYBRID = "deepseek_vl_hybrid"
FAMILIES = ("deepseek_vl", HYBRID)
FRAMES: tuple[Preprocess, ...] = ("squash", "pad", "crop", "native")
RATIOS = [(96, 96), (90, 120), (120, 90), (70, 210), (200, 80)]  # H x W
PICTURES = ("pixel_values", "high_res_pixel_values")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_reading = pytest.mark.parametrize(("family", "preprocess"), list(itertools.product(FAMILIES, FRAMES)))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny_families.write(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def reader(folders) -> Callable[..., Adapter]:
    return cache(lambda family, preprocess="native": load(folders[family], preprocess=preprocess))


def load(folder: Path, **fields: Any) -> Adapter:
    said: dict[str, Any] = {"prompt": "User: <image> what is this", **fields}
    return base.load(ModelSpec(name="tiny", adapter="deepseek_vl", weights=folder, **said), "cpu")


def real(family: str, preprocess: Preprocess) -> tuple[Padded, Any]:
    """Layout and processor of checkpoints of the usual size."""
    processor = (DeepseekVLHybridImageProcessorPil if family == HYBRID else DeepseekVLImageProcessorPil)()
    side = 1024 if family == HYBRID else 384
    framing = Framing.of(preprocess, processor, side)
    return Padded(framing, side, 14, side / 24, 24, 1 + (family == HYBRID)), processor


# ---------------------------------------------------------------------------------------------- against transformers


@every_reading
@torch.no_grad()
def test_every_site_is_what_transformers_computes(reader, family, preprocess):
    adapter = reader(family, preprocess)
    batch = adapter.prepare(samples(RATIOS))
    llm = [Site("llm", layer) for layer in range(adapter.depth + 1)]
    features = adapter.read(batch, [ENCODER, ADAPTER, *llm, FINAL])
    plain = adapter.parts.outer(**batch.inputs, output_hidden_states=True, use_cache=False)
    for layer in range(adapter.depth):
        assert torch.equal(features[llm[layer]], at_patches(plain.hidden_states[layer], batch))
    assert torch.equal(features[FINAL], at_patches(plain.hidden_states[-1], batch))
    assert torch.equal(adapter.parts.norm(features[llm[-1]]), features[FINAL])
    assert torch.equal(features[ADAPTER], features[llm[0]])
    pictures = {name: pixels for name, pixels in batch.inputs.items() if name in PICTURES}
    vision = adapter.parts.outer.get_image_features(**pictures)  # type: ignore[operator]
    towers = [vision.last_hidden_state]
    towers += [vision.high_res_vision_last_hidden_state] if family == HYBRID else []
    assert torch.equal(features[ENCODER], torch.cat(towers, -1))
    assert torch.equal(features[ADAPTER], vision.pooler_output)
    assert {site: feature.shape[-1] for site, feature in features.items()}.items() <= adapter.widths.items()


@every_family
@torch.no_grad()
def test_keys_and_values_are_those_of_a_cache_and_rotating_keeps_their_length(reader, family):
    adapter = reader(family)
    batch = adapter.prepare(samples(RATIOS))
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


# ------------------------------------------------------------------------------------------------------------- geometry


def misplaced(layout: Padded, processor: Any, image: tuple[int, int]) -> tuple[float, float]:
    """Largest and mean distance, in original pixels, of what patches are shown from where the map says they look.

    The image holds its own coordinates. What is near its edges, where a resized ramp is bent, is left out.
    """
    y, x = np.mgrid[: image[0], : image[1]]
    ramp = np.stack([y * 255 / (image[0] - 1), x * 255 / (image[1] - 1), np.zeros(image)], -1).round().astype(np.uint8)
    picture = layout.framing.picture(Image.fromarray(ramp))
    grid_map, stated = layout.grid_map(image), processor.to_dict()
    made = processor(images=[picture], return_tensors="pt")
    largest, mean = 0.0, 0.0
    for name in PICTURES[: layout.tensors]:
        keys = [name.removesuffix("pixel_values") + f"image_{key}" for key in ("mean", "std")]
        average, deviation = (np.array(stated[key])[:, None, None] for key in keys)
        colours = (made[name][0].double().numpy() * deviation + average) / stated["rescale_factor"]
        patch = colours.shape[-1] / layout.edge
        middle = ((np.arange(layout.edge) + 0.5) * patch).astype(int)
        between = 1 if patch.is_integer() else 0  # two pixels meet in the middle, or one is nearest to it
        offset = 0 if between else middle + 0.5 - (np.arange(layout.edge) + 0.5) * patch  # model pixels
        shown = sum(colours[:2, middle - a][:, :, middle - b] for a in range(between + 1) for b in range(between + 1))
        found = shown / (between + 1) ** 2 * (np.array(image) - 1)[:, None, None] / 255
        for axis in (0, 1):
            centre = np.arange(layout.edge) + 0.5 + np.asarray(offset) / patch
            told = (centre - grid_map.shift[axis]) / grid_map.scale[axis] - 0.5
            told = np.broadcast_to(told[:, None] if axis == 0 else told, (layout.edge,) * 2)
            reach = 1 + 3 * max(1.0, 1 / (grid_map.scale[axis] * patch))
            inside = _inner(grid_map, axis, reach)[:, None] & _inner(grid_map, 1 - axis, reach)[None]
            inside = inside if axis == 0 else inside.T
            assert inside.sum() >= 2, "nothing of the image is left to compare"
            away = (found[axis] - told)[inside]
            largest, mean = max(largest, np.abs(away).max()), max(mean, abs(away.mean()))
    return float(largest), float(mean)


def _inner(grid_map: Any, axis: int, reach: float) -> np.ndarray:
    """Rows (or columns) of patches whose middle is that many pixels away from the image's edges."""
    told = (np.arange(grid_map.grid[axis]) + 0.5 - grid_map.shift[axis]) / grid_map.scale[axis] - 0.5
    return (told > reach) & (told < grid_map.image[axis] - 1 - reach)


@every_reading
def test_grid_map_is_where_the_processor_puts_every_pixel(reader, family, preprocess):
    adapter = reader(family, preprocess)
    for image in RATIOS:
        largest, mean = misplaced(adapter.layout, adapter.processor.image_processor, image)
        assert largest < 1, image
        assert mean < 0.35, image


@every_reading
def test_grid_map_is_where_the_processor_puts_every_pixel_at_the_size_of_real_checkpoints(family, preprocess):
    layout, processor = real(family, preprocess)
    for image in ((240, 250), (300, 170), (150, 400)):
        largest, mean = misplaced(layout, processor, image)
        assert largest < 1, image
        assert mean < 0.35, image


@every_family
def test_picture_that_is_all_but_a_line_is_given_the_processors_smallest_width(family):
    layout, processor = real(family, "native")
    grid_map = layout.grid_map((900, 6))
    assert grid_map.scale[1] == pytest.approx(14 / 6 * 24 / layout.side)  # not 6 / 900 of the square
    made = processor(images=[Image.new("RGB", (6, 900), (255, 0, 0))], return_tensors="pt")
    pixels = made[PICTURES[layout.tensors - 1]][0, 1]
    columns = np.flatnonzero((pixels == pixels[0, layout.side // 2]).all(0).numpy())  # red, where padding is grey
    assert len(columns) == 14
    edges = (np.array([0, 6]) * grid_map.scale[1] + grid_map.shift[1]) * layout.side / 24
    np.testing.assert_allclose(edges, [columns[0], columns[-1] + 1])


@every_reading
def test_bands_painted_on_images_of_every_aspect_light_up_their_patches(reader, family, preprocess):
    adapter = reader(family, preprocess)
    for image in RATIOS:
        found = _selftest.layout(adapter, image)
        assert max(found["layout"], found["encoder"]) < 0.45, image
        assert found["placeless"] == 0
    assert adapter.selftests["leak"] == 0 < adapter.selftests["effect"]


@every_family
def test_padding_is_of_the_colour_that_the_processor_pads_with(reader, family):
    """Where no pixel is resized both make the same of an image."""
    side = reader(family).layout.side
    (sample,) = samples([(side, side // 2)])
    padded, native = (reader(family, one).prepare([sample]) for one in ("pad", "native"))
    assert padded.grids == native.grids
    for name in PICTURES[: reader(family).layout.tensors]:
        torch.testing.assert_close(padded.inputs[name], native.inputs[name], rtol=0, atol=0)


def test_bands_are_smeared_where_convolutions_see_their_neighbours(reader, monkeypatch):
    monkeypatch.setattr(light, "_overlaps", lambda convolution: False)
    with pytest.raises(ModelError, match="layout self-test failed"):
        _selftest.layout(reader(HYBRID))


@torch.no_grad()
def test_model_that_was_looked_at_computes_as_before(reader):
    adapter = reader(HYBRID)
    batch = adapter.prepare(samples(RATIOS[:1]))
    before = adapter.read(batch, [ENCODER])[ENCODER]
    with light.tokenwise(adapter.embedder):
        assert not torch.allclose(adapter.read(batch, [ENCODER])[ENCODER], before)
    assert torch.equal(adapter.read(batch, [ENCODER])[ENCODER], before)


def test_sam_looks_at_a_patch_from_three_eighths_of_it_further_up_and_left(reader):
    """By the convolutions' strides, whatever their weights: these are all alike."""
    projection = reader(HYBRID).parts.outer.high_res_vision_proj
    kept = {name: weight.clone() for name, weight in projection.state_dict().items()}
    features = torch.zeros(1, 16, 16, 16, requires_grad=True)
    try:
        with torch.no_grad():
            for weight in projection.parameters():
                weight.fill_(1)
        for axis in (0, 1):
            for patch in (2, 3):
                seen = projection(features)[0, 0].select(axis, patch).sum()
                (light_up,) = torch.autograd.grad(seen, features)
                profile = light_up[0, 0].sum(1 - axis)
                centre = float((profile * (torch.arange(16) + 0.5)).sum() / profile.sum()) * 6 / 16
                assert centre == pytest.approx(patch + 0.5 - 3 / 8, abs=1e-5)
    finally:
        projection.load_state_dict(kept)


# --------------------------------------------------------------------------------------------- batches and conditions


@every_reading
def test_batch_of_one_is_batch_of_images_of_every_aspect(reader, family, preprocess):
    adapter = reader(family, preprocess)
    sites = [ENCODER, ADAPTER, Site("llm", 2), Site("llm", 3, "value"), FINAL]
    ones = samples(RATIOS)
    (batch,) = adapter.batches(ones)  # all have the same tokens
    assert [grid_map.image for grid_map in batch.grids] == RATIOS
    together = adapter.read(batch, sites)
    for row, sample in enumerate(ones):
        alone = adapter.read(adapter.prepare([sample]), sites)
        for site in sites:
            torch.testing.assert_close(alone[site][0], together[site][row], rtol=0, atol=2e-5)


@every_family
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_attention_passes_its_selftests_on_both_back_ends(folders, family, implementation, attention):
    found = load(folders[family], preprocess="native", attention=attention, implementation=implementation).selftests
    assert found["leak"] == 0 < found["effect"]
    assert (found["first_token"] > 0) is (attention == "bidirectional")


# -------------------------------------------------------------------------------------------------------------- mutants


Mutant = Callable[[Placement], Placement]


def transposed(index: np.ndarray) -> np.ndarray:
    return index.reshape(6, 6, *index.shape[1:]).swapaxes(0, 1).reshape(index.shape)


def columns_first(found: Placement) -> Placement:
    return replace(found, patches=transposed(found.patches))


def changed(number: int, change: Callable[[np.ndarray], np.ndarray]) -> Mutant:
    """One of the consumed tensors is read in other rows."""

    def mutant(found: Placement) -> Placement:
        consumed = [change(index) if n == number else index for n, index in enumerate(found.consumed)]
        return replace(found, consumed=tuple(consumed))

    return mutant


def one_on(index: np.ndarray) -> np.ndarray:
    return np.roll(index, -1, axis=0)


def one_row_on(index: np.ndarray) -> np.ndarray:
    return np.roll(index, -6, axis=0)


def without_padding(found: Placement) -> Placement:
    return replace(found, shift=(0.0, 0.0))


def stretched(found: Placement) -> Placement:
    return replace(found, shift=(0.0, 0.0), scale=(6 / 180, 6 / 252))


MUTANTS: list[tuple[str, Mutant, str]] = [
    *((family, mutant, "image token") for family in FAMILIES for mutant in (columns_first, without_padding, stretched)),
    *(
        (family, changed(number, change), "row that the projector consumes")
        for family, number in (("deepseek_vl", 0), (HYBRID, 0), (HYBRID, 1))
        for change in (transposed, one_on, one_row_on)
    ),
]


@pytest.mark.parametrize(("family", "mutant", "what"), MUTANTS)
def test_layout_that_is_wrong_is_caught_at_load(reader, monkeypatch, family, mutant: Mutant, what):
    adapter, place = reader(family), Padded.place
    monkeypatch.setattr(Padded, "place", lambda self, picture: mutant(place(self, picture)))
    with pytest.raises(ModelError, match=f"layout self-test failed: an? {what} is"):
        _selftest.layout(adapter)


# -------------------------------------------------------------------------------------------------------------- errors


def rewritten(folder: Path, name: str, **keys: Any) -> Path:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | keys))
    return folder


def refused(folder: Path, said: str, **fields: Any) -> None:
    with pytest.raises(ModelError, match=said):
        load(folder, **fields)


@pytest.mark.parametrize(
    ("family", "keys", "said"),
    [
        (
            "deepseek_vl",
            {"size": {"height": 64, "width": 64}},
            r"pictures of \[64\] pixels, the model takes 48; .* size",
        ),
        (
            HYBRID,
            {"high_res_size": {"height": 64, "width": 64}},
            r"\[64\] pixels, the model takes 128; .* high_res_size",
        ),
        ("deepseek_vl", {"do_pad": False}, "makes no squares; set do_resize and do_pad to true"),
    ],
)
def test_processor_that_makes_other_pictures_than_the_model_takes_is_refused(tmp_path, family, keys, said):
    refused(rewritten(tiny_families.write(family, tmp_path), "preprocessor_config.json", **keys), said)


def test_processor_of_the_other_family_is_refused(folders, tmp_path):
    folder = tiny_families.write(HYBRID, tmp_path)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).write_text((folders["deepseek_vl"] / name).read_text())
    refused(folder, r"makes pictures of no pixels, the model takes 128; correct high_res_size")


def test_image_tokens_that_are_not_as_many_as_patches_are_told(tmp_path):
    folder = rewritten(tiny_families.write("deepseek_vl", tmp_path), "processor_config.json", num_image_tokens=35)
    refused(folder, "makes 35 image tokens of a picture .*expected 36 with 6 x 6 patches")


def test_resolution_of_a_model_that_has_but_one_is_refused(folders):
    refused(folders[HYBRID], "resolution is 96, but the model sees squares of 128 pixels only", resolution=96)
    assert load(folders[HYBRID], resolution=128).layout.framing.side == 128


def test_model_of_another_family_is_refused(tmp_path):
    folder = tiny_families.write("llava", tmp_path)
    refused(folder, "holds a 'llava' model, the adapter deepseek_vl reads 'deepseek_vl' or 'deepseek_vl_hybrid'")

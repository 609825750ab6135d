"""The base view and the tiles are read where the stock model puts them, and see what the stock processor shows them."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import tiny_families
import torch
from drawn import at_patches, distances, rewrite, samples
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextModel,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionModel,
    PreTrainedConfig,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from segbench.adapters import _selftest, base
from segbench.adapters.anyres import Anyres
from segbench.adapters.base import ADAPTER, ENCODER, FINAL, Adapter
from segbench.adapters.layout import Framing, Placement, Preprocess
from segbench.errors import ModelError
from segbench.specs import ModelSpec
from segbench.types import Site

View = Literal["base", "tiles"]
FAMILIES = ("llava_next", "llava_onevision")
VIEWS: tuple[View, ...] = ("base", "tiles")
FRAMES: tuple[Preprocess, ...] = ("squash", "pad", "crop", "native")
RATIOS = [(96, 96), (90, 120), (120, 90), (70, 210), (200, 80)]  # H x W
RESOLUTION = 100  # the side of no tile and no canvas, so that squares are resized, too
REAL: dict[str, tuple[PreTrainedConfig, Any, int | None]] = {  # as transformers has them: CLIP 336/14, SigLIP 384/14
    "llava_next": (LlavaNextConfig(), LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=336), None),
    "llava_onevision": (LlavaOnevisionConfig(), LlavaOnevisionImageProcessorPil(), 9),
}

every_family = pytest.mark.parametrize("family", FAMILIES)
every_view = pytest.mark.parametrize(("family", "view"), list(itertools.product(FAMILIES, VIEWS)))
every_reading = pytest.mark.parametrize(
    ("family", "view", "preprocess"), list(itertools.product(FAMILIES, VIEWS, FRAMES))
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {family: tiny_families.write(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def reader(folders) -> Callable[..., Adapter]:
    @cache
    def read(family: str, view: View = "base", preprocess: Preprocess = "native") -> Adapter:
        return load(folders[family], family, view, preprocess)

    return read


def load(folder: Path, family: str, view: View, preprocess: Preprocess, **fields: Any) -> Adapter:
    said: dict[str, Any] = {"resolution": RESOLUTION, "prompt": "USER: <image> what is this", **fields}
    spec = ModelSpec(name="tiny", adapter=family, weights=folder, view=view, preprocess=preprocess, **said)
    return base.load(spec, "cpu")


def real(family: str, view: View, preprocess: Preprocess = "native", side: int | None = None) -> Anyres:
    """The layout of a checkpoint of the usual size."""
    config, processor, most = REAL[family]
    canvases = tuple((height, width) for height, width in config.image_grid_pinpoints)
    vision = config.vision_config
    framing = Framing.of(preprocess, processor, side)
    return Anyres(framing, view, vision.image_size, vision.patch_size, canvases, most)


def packed(config: PreTrainedConfig, tiles: Tensor, picture: tuple[int, int], newline: float) -> Tensor:
    """Vectors of the base view and all tiles in the order of the prompt, by the stock model's own code."""
    model, more = LlavaOnevisionModel, {"vision_aspect_ratio": "anyres_max_9"}
    if config.model_type == "llava_next":
        model, more = LlavaNextModel, {"vision_feature_select_strategy": "default"}
    ends = torch.full(tiles.shape[-1:], newline)
    sizes = torch.tensor([picture])
    return model.pack_image_features(SimpleNamespace(config=config), [tiles], sizes, image_newline=ends, **more)[0][0]  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- against transformers


@every_reading
@torch.no_grad()
def test_every_site_is_what_transformers_computes(reader, family, view, preprocess):
    adapter, image = reader(family, view, preprocess), (70, 150)
    batch = adapter.prepare(samples([image] * 2))
    llm = [Site("llm", layer) for layer in range(adapter.depth + 1)]
    features = adapter.read(batch, [ENCODER, ADAPTER, *llm, FINAL])
    plain = adapter.parts.outer(**batch.inputs, output_hidden_states=True, use_cache=False)
    for layer in range(adapter.depth):
        assert torch.equal(features[llm[layer]], at_patches(plain.hidden_states[layer], batch))
    assert torch.equal(features[FINAL], at_patches(plain.hidden_states[-1], batch))
    assert torch.equal(features[ADAPTER], features[llm[0]])
    assert all(feature.shape[-1] == adapter.widths[site] for site, feature in features.items())
    # The vision tower's states at the place in the prompt where the model itself would put them.
    tiles = batch.inputs["pixel_values"].flatten(0, 1)
    states = adapter.parts.outer.vision_tower(tiles, output_hidden_states=True).hidden_states
    layer, first = adapter.model.config.vision_feature_layer, int(family == "llava_next")  # CLIP has a CLS
    consumed = states[layer][:, first:].unflatten(0, (2, -1))
    image_tokens = batch.inputs["input_ids"][0] == adapter.parts.image_token_id
    patches = batch.image_at - int(image_tokens.nonzero()[0])
    for row, ones in enumerate(consumed):
        order = packed(adapter.model.config, ones, adapter.layout.framing.size(image), 0)
        assert torch.equal(features[ENCODER][row], order[patches[row]])
    if view == "base":
        assert torch.equal(features[ENCODER], consumed[:, 0])


@every_family
def test_patches_are_where_the_model_packs_them_at_the_size_of_real_checkpoints(family):
    config, _, _ = REAL[family]
    side, shrunk = config.vision_config.image_size, 0
    drawn = np.random.default_rng(0).integers(40, 2200, (25, 2))
    for picture in [(480, 640), (640, 480), (500, 500), (336, 1010), (90, 30), *((int(h), int(w)) for h, w in drawn)]:
        tiles = image_size_to_num_patches(picture, config.image_grid_pinpoints, side)  # the base view among them
        numbers = torch.arange(tiles * (side // 14) ** 2).reshape(tiles, -1, 1).double()
        order = packed(config, numbers, picture, -1)[:, 0].numpy()
        whole = real(family, "base").place(picture)
        assert whole.tokens == len(order)
        assert (order[whole.patches] == whole.consumed[0][:, 0]).all()
        if (order % 1).any():  # blends of several rows
            shrunk += 1
            with pytest.raises(ModelError, match="the model shrinks their grid"):
                real(family, "tiles").place(picture)
            continue
        placed = real(family, "tiles").place(picture)
        assert placed.tokens == len(order)
        assert (order[placed.patches] == placed.consumed[0][:, 0]).all()
        newlines = np.setdiff1d(np.arange(len(order)), [*whole.patches, *placed.patches])
        assert (order[newlines] == -1).all()
        assert len(newlines) == placed.grid[0]
    assert (shrunk > 5) is (family == "llava_onevision")


# ------------------------------------------------------------------------------------------------------------- geometry


def misplaced(layout: Anyres, processor: Any, image: tuple[int, int]) -> tuple[float, float]:
    """Largest and mean distance, in original pixels, of what consumed rows are shown from where the map says they look.

    The image holds its own coordinates. What is near its edges, where a resized ramp is bent, is left out.
    """
    y, x = np.mgrid[: image[0], : image[1]]
    ramp = np.stack([y * 255 / (image[0] - 1), x * 255 / (image[1] - 1), np.zeros(image)], -1).round().astype(np.uint8)
    picture = layout.framing.picture(Image.fromarray(ramp))
    placement, grid_map = layout.place(layout.framing.size(image)), layout.grid_map(image)
    made = processor(images=[picture], return_tensors="pt")["pixel_values"][0].double().numpy()
    stated = processor.to_dict()
    mean, deviation = (np.array(stated[name])[:, None, None] for name in ("image_mean", "image_std"))
    colours = (made * deviation + mean) / stated["rescale_factor"]  # tile, channel, row, column
    edge = layout.side // layout.patch
    tile, row, column = np.unravel_index(placement.consumed[0][:, 0], (len(made), edge, edge))
    middle = slice(layout.patch // 2 - 1, layout.patch // 2 + 1)  # of every patch, as far from what bends as can be
    blocks = colours[:, :2, : edge * layout.patch, : edge * layout.patch]
    blocks = blocks.reshape(len(made), 2, edge, layout.patch, edge, layout.patch)[:, :, :, middle, :, middle]
    shown = blocks.mean((3, 5))[tile, :, row, column]
    found = shown * (np.array(image) - 1) / 255
    return distances(found, grid_map, layout.patch)


@every_reading
def test_grid_map_is_where_the_processor_puts_every_pixel(reader, family, view, preprocess):
    adapter = reader(family, view, preprocess)
    layout = adapter.layout
    assert isinstance(layout, Anyres)
    for image in RATIOS:
        largest, mean = misplaced(layout, adapter.processor.image_processor, image)
        assert largest < 1 + gap(layout, image), image
        assert mean < 0.35 + gap(layout, image) / 4, image  # of patches that need not be as many on either side


@every_reading
def test_grid_map_is_where_the_processor_puts_every_pixel_at_the_size_of_real_checkpoints(family, view, preprocess):
    layout = real(family, view, preprocess, 2 * REAL[family][0].vision_config.image_size)
    for image in ((240, 250), (300, 170), (150, 400)):
        largest, mean = misplaced(layout, REAL[family][1], image)
        assert largest < 1 + gap(layout, image), image
        assert mean < 0.35, image


def gap(layout: Anyres, image: tuple[int, int]) -> float:
    """Original pixels by which an affine map of several tiles with gaps has to be off."""
    canvas = select_best_resolution(layout.framing.size(image), list(layout.canvases))
    several = (np.array(canvas) > layout.side) & (layout.view == "tiles")
    patches = (layout.side / layout.patch - layout.side // layout.patch) / 2
    return float((several * patches / layout.grid_map(image).scale).max())


@every_reading
def test_bands_painted_on_images_of_every_aspect_light_up_their_patches(reader, family, view, preprocess):
    adapter = reader(family, view, preprocess)
    for image in RATIOS:
        found = _selftest.layout(adapter, image)
        assert max(found["layout"], found["encoder"]) < 0.45, image
        assert found["placeless"] == adapter.placement(image).tokens - np.prod(adapter.placement(image).grid)
    assert adapter.selftests["leak"] == 0 < adapter.selftests["effect"]


def test_affine_map_of_tiles_with_gaps_is_off_by_a_fifth_of_a_patch_at_most():
    """SigLIP 384/14: behind the 27 patches of every tile are six pixels that none of them sees."""
    for tiles in (2, 3):
        side = 384 * tiles
        layout = real("llava_onevision", "tiles", "squash", side)
        tile, within = np.divmod(np.arange(side) + 0.5, 384)
        truth = np.where(within < 378, 27 * tile + within / 14, np.nan)
        away = layout.grid_map((side, side)).coordinates(0) + 0.5 - truth
        assert np.nanmax(away) == pytest.approx(3 / (384 / 27), abs=0.01)  # 0.21
        assert np.nanmin(away) == pytest.approx(-3 / (384 / 27), abs=0.01)
        exact = np.where(np.isnan(truth), -1, np.floor(np.nan_to_num(truth)))
        assert all((cells == exact).all() for cells in layout.cells((side, side)))


@pytest.mark.parametrize(
    ("family", "image", "axis"), [("llava_onevision", (384, 768), 0), ("llava_next", (672, 672), 1)]
)
def test_map_along_a_single_tile_or_without_gaps_is_exact(family, image, axis):
    layout = real(family, "tiles")
    truth = (np.arange(image[axis]) + 0.5) / 14
    np.testing.assert_allclose(layout.grid_map(image).coordinates(axis) + 0.5, truth, atol=1e-9)
    seen = layout.grid_map(image).seen[2 + axis]
    assert seen == (378 if family == "llava_onevision" else 672)


# --------------------------------------------------------------------------------------------- batches and conditions


@every_view
def test_batch_of_one_is_batch_of_three(reader, family, view):
    adapter = reader(family, view, "squash")
    sites = [ENCODER, ADAPTER, Site("llm", 2), FINAL]
    ones = samples([(90, 120), (60, 60), (130, 70)])
    together = adapter.read(adapter.prepare(ones), sites)
    for row, sample in enumerate(ones):
        alone = adapter.read(adapter.prepare([sample]), sites)
        for site in sites:
            torch.testing.assert_close(alone[site][0], together[site][row], rtol=0, atol=2e-5)


@every_view
def test_native_images_of_other_aspects_are_batches_in_their_order(reader, family, view):
    adapter = reader(family, view)
    ones = samples([(96, 96), (70, 210), (60, 180), (200, 80), (96, 96)])  # the second and the third are laid out alike
    batches = list(adapter.batches(ones))
    assert [len(batch.grids) for batch in batches] == [1, 2, 1, 1]
    images = [grid_map.image for batch in batches for grid_map in batch.grids]
    assert images == [(96, 96), (70, 210), (60, 180), (200, 80), (96, 96)]
    if view == "tiles":
        assert len({batch.grids[0].grid for batch in batches}) == 3
    with pytest.raises(ModelError, match="these 5 images make 4 batches, as their grids differ"):
        adapter.prepare(ones)


def test_images_cut_into_other_tiles_are_no_batch_though_all_their_shapes_are_alike(tmp_path):
    """1 x 2 tiles and 2 x 1 tiles: with their padding cut off, both are 6 x 6 patches."""
    tiles = [[48, 96], [96, 48]]
    folder = tiny_families.write("llava_next", tmp_path, image_grid_pinpoints=tiles)
    rewrite(folder, "preprocessor_config.json", image_grid_pinpoints=tiles)
    adapter = load(folder, "llava_next", "tiles", "native")
    ones = samples([(90, 99), (99, 90)])
    wide, tall = batches = list(adapter.batches(ones))
    assert wide.grids[0].grid == tall.grids[0].grid == (6, 6)
    assert {name: value.shape for name, value in wide.inputs.items()} == {
        name: value.shape for name, value in tall.inputs.items()
    }
    for batch, sample in zip(batches, ones, strict=True):
        alone = adapter.read(adapter.prepare([sample]), [ENCODER])
        assert torch.equal(adapter.read(batch, [ENCODER])[ENCODER], alone[ENCODER])
    assert not np.array_equal(wide.consumed[0], tall.consumed[0])


@every_view
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_bidirectional_images_pass_their_selftests(folders, family, view, implementation):
    attention: dict[str, Any] = {"attention": "bidirectional", "implementation": implementation}
    found = load(folders[family], family, view, "native", **attention).selftests
    assert found["leak"] == 0 < min(found["effect"], found["first_token"])


@every_view
def test_neither_newlines_nor_the_other_view_see_what_is_knocked_out(reader, family, view):
    adapter = reader(family, view)
    encoded = adapter.encode(adapter.prepare(samples([(96, 96)])))
    image = encoded.image.nonzero()[:, 1][None]
    assert image.shape[1] == adapter.placement((96, 96)).tokens > encoded.image_at.shape[1]
    blocked = torch.isin(image, encoded.image_at[:, 4:20])
    # Newlines and the other view are read as if they were patches.
    every = replace(encoded, image_at=image, encoder=torch.zeros(*image.shape, 1))
    other = encoded.call["inputs_embeds"].clone()
    other[0, image[blocked]] *= -2
    before, after = (adapter.decode(one, [FINAL], blocked)[FINAL] for one in (every, every.with_embeddings(other)))
    assert torch.equal(before[~blocked], after[~blocked])
    free = (adapter.decode(one, [FINAL])[FINAL] for one in (every, every.with_embeddings(other)))
    assert not torch.equal(*(states[~blocked] for states in free))


# -------------------------------------------------------------------------------------------------------------- mutants


Mutant = Callable[[Placement], Placement]


def newline_kept(found: Placement) -> Placement:
    return replace(found, patches=found.patches[0] + np.arange(len(found.patches)))


def swapped(found: Placement) -> Placement:
    """Tokens of the other view, of which there are as many or more."""
    start = 0 if found.patches[0] else 36
    return replace(found, patches=start + np.arange(len(found.patches)))


def rows_swapped(found: Placement) -> Placement:
    start = 0 if found.consumed[0][0, 0] else 36
    return replace(found, consumed=(start + np.arange(len(found.patches))[:, None],))


def cls_kept(found: Placement) -> Placement:
    return replace(found, consumed=(found.consumed[0] + 1,))


def stitched_by_columns(found: Placement) -> Placement:
    (index,) = found.consumed
    tile, within = np.divmod(index, 36)
    order = np.array([0, 1, 3, 2, 4])  # of 2 x 2 tiles behind the base view
    return replace(found, consumed=(order[tile] * 36 + within,))


def unpadded_unseen(found: Placement) -> Placement:
    return replace(found, shift=(found.shift[0] - 1, found.shift[1]))


@pytest.mark.parametrize(
    ("view", "mutant", "what"),
    [
        ("tiles", newline_kept, "image token"),
        ("base", swapped, "image token"),
        ("tiles", swapped, "image token"),
        ("base", rows_swapped, "row that the projector consumes"),
        ("tiles", rows_swapped, "row that the projector consumes"),
        ("base", cls_kept, "row that the projector consumes"),
        ("tiles", cls_kept, "row that the projector consumes"),
        ("tiles", stitched_by_columns, "row that the projector consumes"),
        ("tiles", unpadded_unseen, "image token"),
    ],
)
@every_family
def test_layout_that_is_wrong_is_caught_at_load(reader, monkeypatch, family, view: View, mutant: Mutant, what):
    adapter = reader(family, view)
    place = Anyres.place
    assert _selftest.layout(adapter)["layout"] < 0.45
    monkeypatch.setattr(Anyres, "place", lambda self, picture: mutant(place(self, picture)))
    with pytest.raises(ModelError, match=f"layout self-test failed: an? {what} is"):
        _selftest.layout(adapter)

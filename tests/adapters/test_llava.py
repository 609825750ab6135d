"""What is read of a real LLaVA checkpoint is what transformers computes, at every site and for every vision tower."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from drawn import at_patches
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from segbench.adapters import base
from segbench.adapters.base import ADAPTER, ENCODER, FINAL, Adapter
from segbench.errors import ModelError, SpecError
from segbench.types import GridMap, Sample, Site

LLM = [Site("llm", layer) for layer in range(5)]
SIZES = [(48, 48), (90, 60), (50, 100)]  # H x W


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {tower: tiny_models.write(tmp_path_factory.mktemp(tower), tower) for tower in tiny_models.TOWERS}


@pytest.fixture(scope="module")
def adapters(folders) -> dict[str, Adapter]:
    return {tower: base.load(tiny_models.spec(folder), "cpu") for tower, folder in folders.items()}


@pytest.fixture(scope="module")
def clip(adapters) -> Adapter:
    return adapters["clip"]


@pytest.fixture(scope="module")
def bidirectional(folders) -> Adapter:
    return base.load(tiny_models.spec(folders["clip"], attention="bidirectional"), "cpu")


def samples(sizes: list[tuple[int, int]] = SIZES) -> list[Sample]:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    return [Sample("drawn", Image.fromarray(image), np.zeros(image.shape[:2], np.uint8)) for image in images]


# --------------------------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize("tower", tiny_models.TOWERS)
@torch.no_grad()
def test_every_site_is_what_transformers_computes(adapters, tower):
    adapter = adapters[tower]
    batch = adapter.prepare(samples())
    features = adapter.read(batch, [*adapter.sites(), Site("llm", 0)])
    plain = adapter.model.model(**batch.inputs, output_hidden_states=True)  # type: ignore[attr-defined]
    for layer, site in enumerate(LLM[:4]):
        assert torch.equal(features[site], at_patches(plain.hidden_states[layer], batch))
    assert torch.equal(features[FINAL], at_patches(plain.hidden_states[-1], batch))
    assert torch.equal(adapter.parts.norm(features[LLM[4]]), features[FINAL])  # transformers shows it normed alone
    assert torch.equal(features[ADAPTER], features[Site("llm", 0)])
    assert features.keys() >= set(adapter.sites())
    assert {site: feature.shape[-1] for site, feature in features.items()}.items() <= adapter.widths.items()


@pytest.mark.parametrize("tower", tiny_models.TOWERS)
@torch.no_grad()
def test_encoder_is_what_the_projector_consumes_and_adapter_what_it_gives(adapters, tower):
    adapter = adapters[tower]
    batch = adapter.prepare(samples())
    features = adapter.read(batch, [ENCODER, ADAPTER])
    vision = adapter.parts.outer.vision_tower(batch.inputs["pixel_values"], output_hidden_states=True)
    special = {"siglip": 0, "dinov2-registers": 1 + tiny_models.REGISTERS}.get(tower, 1)  # CLS and registers
    assert torch.equal(features[ENCODER], vision.hidden_states[-2][:, special:])
    torch.testing.assert_close(features[ADAPTER], adapter.parts.projector(features[ENCODER]), rtol=0, atol=1e-5)
    assert features[ENCODER].shape[1] == 36


@torch.no_grad()
def test_several_vision_layers_are_one_encoder_site(tmp_path):
    adapter = base.load(tiny_models.spec(tiny_models.write(tmp_path, vision_feature_layer=[-3, -2])), "cpu")
    batch = adapter.prepare(samples())
    tower = adapter.parts.outer.get_submodule("vision_tower")
    vision = tower(batch.inputs["pixel_values"], output_hidden_states=True).hidden_states
    assert torch.equal(adapter.read(batch, [ENCODER])[ENCODER], torch.cat([vision[-3], vision[-2]], -1)[:, 1:])
    assert adapter.widths[ENCODER] == 64


@torch.no_grad()
def test_prompt_after_the_image_changes_nothing(folders):
    long = base.load(tiny_models.spec(folders["clip"], prompt="USER: <image> what is this a red cat"), "cpu")
    short = base.load(tiny_models.spec(folders["clip"], prompt="USER: <image>"), "cpu")
    one, other = (adapter.read(adapter.prepare(samples()), [FINAL])[FINAL] for adapter in (long, short))
    assert torch.equal(one, other)
    ids = long.processor.tokenizer("USER: " + "<image>" * 36 + " what is this a red cat")["input_ids"]  # type: ignore[attr-defined]
    batch = long.prepare(samples())
    assert batch.inputs["input_ids"][0].tolist() == ids[: 2 + 36]
    inputs = {**batch.inputs, "input_ids": torch.tensor([ids]).expand(3, -1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    whole = long.model.model(**inputs).last_hidden_state  # type: ignore[attr-defined]
    torch.testing.assert_close(at_patches(whole, batch), one, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- raster order


def lit_patches(adapter: Adapter, image: tuple[int, int], order: Callable[[torch.Tensor], torch.Tensor]) -> list[bool]:
    """Whether a block painted where the grid map says that patch t lies changes the encoder most at token t."""
    h, w = adapter.placement(image).grid
    grey = np.full((*image, 3), 90, np.uint8)
    (grid_map,) = adapter.prepare([Sample("", Image.fromarray(grey), np.zeros(image, np.uint8))]).grids
    rows, columns = (np.floor(grid_map.coordinates(axis) + 0.5) for axis in (0, 1))
    painted, patches = [], []
    for t in range(h * w):
        block = (rows == t // w)[:, None] & (columns == t % w)[None]
        if block.sum() > 0.6 / (grid_map.scale[0] * grid_map.scale[1]):  # not cut off by the image's edge
            patches.append(t)
            painted.append(np.where(block[..., None], np.array([250, 20, 130], np.uint8), grey))
    made = [Sample("", Image.fromarray(one), np.zeros(image, np.uint8)) for one in (grey, *painted)]
    features = order(adapter.read(adapter.prepare(made), [ENCODER])[ENCODER])
    most = (features[1:] - features[0]).norm(dim=-1).argmax(-1)
    return [int(token) == t for token, t in zip(most, patches, strict=True)]


@pytest.mark.parametrize("preprocess", ["squash", "native"])
@pytest.mark.parametrize("tower", tiny_models.TOWERS)
def test_painted_block_lights_up_the_patch_that_the_grid_map_names(folders, tower, preprocess):
    adapter = base.load(tiny_models.spec(folders[tower], preprocess=preprocess), "cpu")
    for image in ((96, 96), (60, 132)):
        lit = lit_patches(adapter, image, lambda features: features)
        assert len(lit) >= 12
        assert all(lit)


def test_tokens_read_by_columns_light_up_other_patches(clip):
    transposed = lit_patches(clip, (96, 96), lambda x: x.unflatten(1, (6, 6)).transpose(1, 2).flatten(1, 2))
    assert sum(transposed) == 6  # the diagonal


# --------------------------------------------------------------------------------------------- batches and conditions


@pytest.mark.parametrize("tower", tiny_models.TOWERS)
def test_batch_of_one_is_batch_of_three(adapters, tower):
    adapter = adapters[tower]
    sites = adapter.sites()
    together = adapter.read(adapter.prepare(samples()), sites)
    for row, sample in enumerate(samples()):
        alone = adapter.read(adapter.prepare([sample]), sites)
        for site in sites:
            torch.testing.assert_close(alone[site][0], together[site][row], rtol=0, atol=2e-5)


@pytest.mark.parametrize("attention", ["clip", "bidirectional"])
def test_conditions_in_one_batch_are_conditions_one_by_one(request, attention):
    adapter = request.getfixturevalue(attention)
    encoded = adapter.encode(adapter.prepare(samples()))
    blocked = torch.zeros(6, 36, dtype=torch.bool)
    blocked[3:, ::5] = True
    both = adapter.decode(encoded.repeat(2), [LLM[2], FINAL], blocked)
    for site in (LLM[2], FINAL):
        torch.testing.assert_close(both[site][:3], adapter.decode(encoded, [site])[site], rtol=0, atol=2e-5)
        cut = adapter.decode(encoded, [site], blocked[3:])[site]
        torch.testing.assert_close(both[site][3:], cut, rtol=0, atol=2e-5)
    swapped = adapter.decode(encoded.take([2, 0]), [FINAL])[FINAL]
    torch.testing.assert_close(swapped, adapter.decode(encoded, [FINAL])[FINAL][[2, 0]], rtol=0, atol=2e-5)


def test_llm_runs_no_deeper_than_the_sites_ask_for(clip):
    ran: list[int] = []
    layers = list(clip.parts.text.layers)
    hooks = [layer.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, layer in enumerate(layers)]
    batch = clip.prepare(samples())
    try:
        shallow = clip.read(batch, [LLM[2]])[LLM[2]]
        assert ran == [0, 1]
        clip.read(batch, [ENCODER])
        assert ran == [0, 1]
        deep = clip.read(batch, [LLM[2], FINAL])[LLM[2]]
        assert ran == [0, 1, 0, 1, 2, 3]
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(shallow, deep)
    assert list(clip.parts.text.layers) == layers


@pytest.mark.parametrize("site", ["llm.5", "llm.4.value"])
def test_site_that_the_model_does_not_have_is_told(clip, site):
    with pytest.raises(
        SpecError, match=rf"tiny has no site {site}; it has encoder, adapter, llm\.1 to llm\.4, llm\.norm"
    ):
        clip.read(clip.prepare(samples()), [Site.parse(site)])


# ------------------------------------------------------------------------------------------------------------ attention


def moved(encoded: base.Encoded, patches: torch.Tensor) -> base.Encoded:
    """Other vectors entering the LLM at these patches."""
    vectors = encoded.call["inputs_embeds"].clone()
    rows, columns = patches.nonzero(as_tuple=True)
    vectors[rows, encoded.image_at[rows, columns]] *= -2
    return encoded.with_embeddings(vectors)


def test_first_token_sees_the_last_one_only_when_bidirectional(clip, bidirectional):
    last = torch.zeros(3, 36, dtype=torch.bool)
    last[:, -1] = True
    for adapter, sees in ((clip, False), (bidirectional, True)):
        encoded = adapter.encode(adapter.prepare(samples()))
        before, after = (adapter.decode(one, LLM[1:]) for one in (encoded, moved(encoded, last)))
        for site in LLM[1:]:
            assert bool((before[site] - after[site])[:, 0].abs().max() > 0) is sees
    assert clip.selftests["first_token"] == 0 < bidirectional.selftests["first_token"]


@pytest.mark.parametrize("attention", ["clip", "bidirectional"])
def test_knocked_out_patches_reach_no_other_patch_at_any_layer(request, attention):
    adapter = request.getfixturevalue(attention)
    encoded = adapter.encode(adapter.prepare(samples()))
    blocked = torch.rand(3, 36, generator=torch.Generator().manual_seed(0)) < 0.3
    before, after = (adapter.decode(one, [*LLM, FINAL], blocked) for one in (encoded, moved(encoded, blocked)))
    free = adapter.decode(moved(encoded, blocked), [FINAL])[FINAL]
    for site in (*LLM, FINAL):
        assert (before[site] - after[site])[~blocked].abs().max() == 0
    assert (before[LLM[0]] - after[LLM[0]])[blocked].abs().max() > 0
    assert (free - after[FINAL])[~blocked].abs().max() > 0


def test_knockout_in_a_block_is_first_seen_behind_it(clip):
    encoded = clip.encode(clip.prepare(samples()))
    blocked = torch.zeros(3, 36, dtype=torch.bool)
    blocked[:, 4:20] = True
    plain, cut = clip.decode(encoded, LLM), clip.decode(encoded, LLM, blocked, range(1, 2))
    changed = [float((plain[site] - cut[site]).abs().max()) > 1e-4 for site in LLM]
    assert changed == [False, False, True, True, True]


def test_attention_of_the_spec_holds_for_the_transformers_model_itself(clip, bidirectional):
    for adapter in (clip, bidirectional):
        batch = adapter.prepare(samples())
        with torch.no_grad(), adapter.attention():
            own = adapter.model.model(**batch.inputs).last_hidden_state  # type: ignore[attr-defined]
        read = adapter.read(batch, [FINAL])[FINAL]
        torch.testing.assert_close(at_patches(own, batch), read, rtol=0, atol=2e-5)


def test_blocked_patches_of_another_shape_are_refused(clip):
    encoded = clip.encode(clip.prepare(samples()))
    with pytest.raises((ModelError, TypeError), match="blocked"):
        clip.decode(encoded, [FINAL], torch.zeros(3, 35, dtype=torch.bool))


# -------------------------------------------------------------------------------------------------------- loading


@pytest.fixture
def copy(folders, tmp_path) -> Callable[[str], Path]:
    return lambda tower: Path(shutil.copytree(folders[tower], tmp_path / tower))


def rewritten(folder: Path, name: str, **keys) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(content | keys))


def refused(folder: Path, said: str, **fields) -> None:
    with pytest.raises(ModelError, match=said):
        base.load(tiny_models.spec(folder, **fields), "cpu")


def test_tensors_that_do_not_fit_the_config_are_named(copy):
    folder = copy("clip")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(one for one in tensors if one.endswith("layers.2.mlp.up_proj.weight"))
    save_file({one: tensor for one, tensor in tensors.items() if one != name}, path, {"format": "pt"})
    refused(folder, r"do not fit its config: 1 missing \(.*layers\.2\.mlp\.up_proj\.weight\)")
    save_file({**tensors, "stranger": torch.zeros(1)}, path, {"format": "pt"})
    refused(folder, r"do not fit its config: 1 unexpected \(stranger\)")
    save_file({**tensors, name: torch.zeros(3, 3)}, path, {"format": "pt"})
    refused(folder, r"do not fit its config: 1 of another shape \(.*layers\.2\.mlp\.up_proj\.weight\)")


def test_model_of_another_family_is_refused(copy):
    folder = copy("clip")
    rewritten(folder, "config.json", model_type="llava_next")
    refused(folder, "holds a 'llava_next' model, the adapter llava reads 'llava'")


def test_causal_weights_labelled_bidirectional_are_refused(tmp_path):
    folder = tiny_models.write(tmp_path, image_attention="causal")
    refused(folder, "trained with causal image attention, the spec says bidirectional", attention="bidirectional")
    swapped = base.load(tiny_models.spec(folder, attention="bidirectional", mask_swap=True), "cpu")
    assert swapped.selftests["first_token"] > 0


@pytest.mark.parametrize("prompt", ["what is this", "<image> and <image>"])
def test_prompt_holds_the_image_once(folders, prompt):
    refused(folders["clip"], "must hold <image> exactly once", prompt=prompt)


def test_prompt_that_begins_with_the_image_leaves_no_row_empty(folders):
    """The tokenizer puts <s> in front, so that even a blocked first patch has a key."""
    adapter = base.load(tiny_models.spec(folders["clip"], prompt="<image>"), "cpu")
    encoded = adapter.encode(adapter.prepare(samples()))
    assert torch.isfinite(adapter.decode(encoded, [FINAL], torch.ones(3, 36, dtype=torch.bool))[FINAL]).all()


def test_processor_that_miscounts_the_tokens_is_refused(copy):
    folder = copy("siglip")
    rewritten(
        folder, "processor_config.json", vision_feature_select_strategy="default"
    )  # drops a patch as if it were CLS
    refused(folder, r"LlavaProcessor makes 35 image tokens .*, expected 36 with 6 x 6 patches among them")


def test_token_that_is_not_the_models_is_refused(copy):
    folder = copy("clip")
    content = json.loads((folder / "config.json").read_text())
    key = "image_token_index" if "image_token_index" in content else "image_token_id"
    rewritten(folder, "config.json", **{key: 12})
    refused(folder, "no token of the prompt has the model's image_token_id 12")


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_checkpoint_without_a_processor_is_refused(copy, name):
    folder = copy("clip")
    (folder / name).unlink()
    refused(folder, "the processor cannot be loaded")


@pytest.mark.parametrize("keys", [{"text_config": None}, {"text_config": {}}, {"vision_config": 3}])
def test_config_without_a_part_is_refused_before_defaults_fill_the_memory(copy, keys):
    folder = copy("clip")
    rewritten(folder, "config.json", **keys)
    refused(folder, f"has no {next(iter(keys))}")


def test_nonsense_in_the_config_is_told_with_its_folder(copy):
    folder = copy("clip")
    content = json.loads((folder / "config.json").read_text())
    rewritten(folder, "config.json", text_config={**content["text_config"], "hidden_size": "wide"})
    refused(folder, rf"{folder.name} cannot be loaded: (.|\n)*hidden_size")


def test_weights_that_are_not_finite_are_refused(copy):
    folder = copy("clip")
    tensors = load_file(folder / "model.safetensors")
    name = next(one for one in tensors if one.endswith("layers.1.mlp.up_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "states of the LLM are not finite")


def test_flash_attention_is_no_implementation(folders):
    with pytest.raises(ValidationError, match="'sdpa', 'eager' or 'flex_attention'"):
        tiny_models.spec(folders["clip"], implementation="flash_attention_2")


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_selftests_pass_in_every_precision(folders, implementation, dtype):
    for attention in ("causal", "bidirectional"):
        spec = tiny_models.spec(folders["clip"], implementation=implementation, dtype=dtype, attention=attention)
        found = base.load(spec, "cpu").selftests
        assert found["leak"] == 0 < found["effect"]


def test_grids_are_one_per_image_of_its_own_size(clip):
    batch = clip.prepare(samples())
    assert batch.grids == tuple(GridMap.squash((6, 6), size) for size in SIZES)
    assert [mask.shape for mask in batch.masks] == SIZES

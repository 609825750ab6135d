"""What `auto` finds, it finds by looking; what it cannot find it refuses with what it saw."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import tiny_models
import torch
import transformers
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3Model
from typer.testing import CliRunner

from segbench import attention
from segbench.adapters import base, light, traced
from segbench.adapters.base import ENCODER, FINAL, Adapter
from segbench.cli import app
from segbench.errors import ModelError, SpecError
from segbench.specs import ModelSpec
from segbench.types import Sample, Site


def spec(folder: Path, **fields) -> ModelSpec:
    return ModelSpec(
        name="tiny", weights=folder, **{"adapter": "auto", "attention": "native", "prompt": None, **fields}
    )


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return tiny_families.write("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    return tiny_families.write("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


@pytest.mark.parametrize("tower", tiny_models.TOWERS)
def test_what_is_found_is_what_the_adapter_of_the_family_knows(tower, tmp_path):
    """Also for SigLIP, whose last pixels belong to no patch, and for registers in front of the patches."""
    folder = tiny_models.write(tmp_path, tower)
    known = base.load(spec(folder, adapter="llava"), "cpu")
    found = base.load(spec(folder), "cpu")
    for image in ((48, 48), (70, 130)):
        one, other = known.grid_map(image), found.grid_map(image)
        assert one.grid == other.grid
        assert one.seen == other.seen
        np.testing.assert_allclose(other.scale + other.shift, one.scale + one.shift, atol=1e-9)
    one, other = known.placement((48, 48)), found.placement((48, 48))
    np.testing.assert_array_equal(one.patches, other.patches)
    np.testing.assert_array_equal(one.consumed[0], other.consumed[0])
    assert places(found) == places(known)


def places(adapter: Adapter) -> list[str]:
    """Where in the model its parts are."""
    names = {module: name for name, module in adapter.model.named_modules()}
    parts = adapter.parts
    return [names[part] for part in (parts.outer, parts.text, parts.norm, parts.projector)]


def test_window_order_is_found_too(qwen):
    known, found = (base.load(spec(qwen, adapter=name, resolution=96), "cpu") for name in ("qwen2_5_vl", "auto"))
    one, other = known.placement((50, 70)), found.placement((50, 70))
    np.testing.assert_array_equal(one.consumed[0], other.consumed[0])
    assert (np.diff(one.consumed[0][:, 0]) < 0).any()  # which is not the order of the rows


def test_tiles_are_read_where_they_are_asked_for(tmp_path):
    folder = tiny_families.write("llava_next", tmp_path)
    views = {view: base.load(spec(folder, view=view, resolution=96), "cpu") for view in ("base", "tiles")}
    grids = {view: adapter.placement((48, 48)).grid for view, adapter in views.items()}
    assert grids["base"] == (6, 6)
    assert grids["tiles"] == (12, 12)


@pytest.mark.skipif(
    transformers.__version__.startswith("5.17.") and importlib.util.find_spec("torchvision") is None,
    reason="transformers 5.17 hides SmolVLM's PIL image processor where torchvision is absent",
)
def test_text_between_tiles_hands_nothing_on(tmp_path, monkeypatch):
    """SmolVLM says in words between the tiles where each is: words hear of tiles, and later tiles hear of words."""
    folder = tiny_families.write("smolvlm", tmp_path)
    adapter = base.load(spec(folder, view="tiles", resolution=96), "cpu")
    encoded = adapter.encode(adapter.prepare(_samples()))
    at = encoded.image[0].nonzero()[:, 0]
    assert int((~encoded.image[0, int(at[0]) : int(at[-1])]).sum()) > 4
    blocked = torch.zeros_like(encoded.image)
    blocked[0, at[3:30]] = True  # of the first tile
    vectors = encoded.call["inputs_embeds"].clone()
    vectors[blocked] *= -2

    def leak() -> float:
        found = []
        for one in (encoded, encoded.with_embeddings(vectors)):
            with torch.no_grad(), attention.knockout(adapter.parts.text, encoded.image, blocked):
                found.append(adapter.parts.text(**one.call).last_hidden_state[encoded.image & ~blocked])
        return float((found[0] - found[1]).abs().max())

    assert leak() == 0
    monkeypatch.setattr(attention, "relaying", lambda image, allowed: image)  # the letter of Eq. (1)
    assert leak() > 1e-3


def _samples() -> list[Sample]:
    return [Sample("grey", Image.new("RGB", (60, 40), (90, 90, 90)), np.zeros((40, 60), np.uint8))]


def test_the_language_head_is_never_computed_and_blocks_only_as_far_as_needed(llava):
    adapter = base.load(spec(llava), "cpu")
    ran: list[str] = []
    watched = {"head": adapter.model.get_output_embeddings()} | {
        f"block {number}": block
        for number, block in enumerate(adapter.parts.text.layers)  # type: ignore[arg-type]
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    batch = adapter.prepare(_samples())
    adapter.read(batch, [ENCODER, Site("llm", 1), Site("llm", 1, "value")])
    assert ran == ["block 0", "block 1"]
    ran.clear()
    adapter.read(batch, [*adapter.sites()])
    assert ran == [f"block {number}" for number in range(adapter.depth)]


def test_keys_that_are_made_together_with_queries_are_told():
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    block = Phi3Model(Phi3Config(**size, num_hidden_layers=1, vocab_size=8, pad_token_id=0)).layers[0]
    with pytest.raises(SpecError, match=r"llm\.0\.key_pre: Phi3DecoderLayer has no key projection of its own"):
        base._keys(block, Site("llm", 0, "key_pre"), None)


def test_a_checkpoint_without_a_card_is_measured_from_the_command_line(llava, tmp_path):
    words = ["run", "--model", str(llava), "--tasks", "smooth", "--include", str(tmp_path / "lab")]
    (tmp_path / "lab").mkdir()
    task = (
        "kind: probe\ndata: {name: scenes, train: 4, val: 2, size: [48, 72]}\nprotocol: {epochs: 1}\nsites: [encoder]\n"
    )
    (tmp_path / "lab/smooth.yaml").write_text(task)
    found = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out"), "--no-figures", "--json"])
    assert found.exit_code == 0, found.output
    (row,) = json.loads(found.stdout)
    assert (row["model"], row["status"]) == (llava.name, "ran")
    (cell,) = (tmp_path / "out").glob("*/*/*/cell.json")
    header = json.loads(cell.read_text())["cell"]
    assert header["model_card"]["revision"] == "unknown"
    provenance = json.loads((cell.parent / "provenance.json").read_text())
    assert provenance["image_processor"] == "CLIPImageProcessorPil"


# ------------------------------------------------------------------------------------------------------------ prompts


def test_what_a_family_writes_around_an_image_comes_from_its_chat_template(qwen):
    adapter = base.load(spec(qwen, resolution=96, prompt="USER: <image> what is this"), "cpu")
    words = adapter.processor.tokenizer.convert_ids_to_tokens(
        adapter.prepare(_samples()).inputs["input_ids"][0].tolist()
    )
    assert words[:2] == ["USER:", "<|vision_start|>"]
    assert set(words[2:]) == {"<|image_pad|>"}


def test_chat_template_that_begins_with_the_start_token_gets_no_second_one(tmp_path):
    adapter = base.load(spec(tiny_families.write("gemma3", tmp_path)), "cpu")
    start = adapter.processor.tokenizer.bos_token_id
    assert adapter.prepare(_samples()).inputs["input_ids"][0].tolist().count(start) == 1


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(said: str, folder: Path, **fields) -> None:
    with pytest.raises(ModelError, match=said):
        base.load(spec(folder, **fields), "cpu")


def rewritten(folder: Path, copy: Path, **keys) -> Path:
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text()) | keys
    (copy / "config.json").write_text(json.dumps(content))
    return copy


def test_family_that_transformers_does_not_have_is_told(llava, tmp_path):
    refused("cannot be loaded: .*foo_vl", rewritten(llava, tmp_path / "x", model_type="foo_vl"))


def test_code_that_a_checkpoint_brings_along_is_never_run(llava, tmp_path):
    folder = rewritten(llava, tmp_path / "x", auto_map={"AutoModel": "evil.Evil"})
    (folder / "evil.py").write_text("raise SystemExit('run!')")
    refused("remote code is never run", folder)


def test_model_without_eyes_is_told(tmp_path):
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    refused("cannot be loaded: Unrecognized configuration class .*LlamaConfig", tmp_path)


def test_converted_checkpoint_with_registers_is_told_its_adapter(tmp_path):
    refused("use `--model-args adapter=llava`", tiny_models.write(tmp_path, image_registers="dropped"))


def test_native_preprocessing_is_refused(llava):
    refused("the adapter auto knows no processor's own arithmetic", llava, preprocess="native")


def test_back_end_that_a_family_does_not_have_is_told_with_another(tmp_path):
    refused("implementation: eager", tiny_families.write("got_ocr2", tmp_path))


def test_tokens_that_mix_places_are_no_grid(llava, monkeypatch):
    """A tower whose blocks cannot be passed by: every token hears of the whole picture."""
    monkeypatch.setattr(light, "tokenwise", lambda embedder: torch.no_grad())
    refused("no grid over the picture|see more than their places", llava)


# --------------------------------------------------------------------------------------- bugs that would be hidden


def test_shuffled_tokens_are_not_taken_for_a_grid(llava, monkeypatch):
    forward = light._response

    def shuffled(states, rows):
        found = forward(states, rows)
        order = np.random.default_rng(0).permutation(found.rows.shape[1])
        return light.Response(found.rows[:, order], found.columns[:, order])

    monkeypatch.setattr(light, "_response", shuffled)
    refused("no grid over the picture", llava)


def test_consumed_rows_of_other_patches_are_caught_by_the_layout_test(qwen, monkeypatch):
    assigned = traced._assigned
    monkeypatch.setattr(traced, "_assigned", lambda *given: assigned(*given)[::-1])
    refused("layout self-test failed: a row that the projector consumes is", qwen, resolution=96)


def test_model_is_as_it_was_after_it_was_looked_at(llava):
    adapter: Adapter = base.load(spec(llava), "cpu")
    hooks = [hook for module in adapter.model.modules() for hook in module._forward_hooks.values()]
    assert not [hook for hook in hooks if hook.__module__.startswith("segbench")]
    assert len(adapter.parts.text.layers) == adapter.depth == 4  # type: ignore[arg-type]
    assert adapter.widths[ENCODER] == 32
    assert adapter.widths[FINAL] == 48

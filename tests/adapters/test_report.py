"""What a report says of a model is what the model does, and what is wrong with it is named beside all that is right."""

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_families
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from segbench import registry
from segbench.adapters import _generation, llava, report
from segbench.adapters.base import Adapter
from segbench.adapters.canvas import Canvas
from segbench.adapters.report import Check, Report
from segbench.data import scenes
from segbench.geometry import seen_mask
from segbench.specs import ModelSpec

KNOCKOUT = {"leak", "effect", "nothing", "generate_knockout"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {tower: tiny_models.write(tmp_path_factory.mktemp(tower), tower) for tower in tiny_models.TOWERS}


def examine(folder: Path, **fields: Any) -> Report:
    return report.examine(tiny_models.spec(folder, **fields), "cpu", None, lambda line: None)


def named(found: Report) -> dict[str, Check]:
    return {one.name: one for one in found.checks}


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_sound_model_passes_every_check_with_its_numbers(folders, attention):
    found = examine(folders["clip"], attention=attention)
    assert [one.name for one in found.checks] == list(report.ABOUT)
    assert all(one.passed for one in found.checks), found.checks
    checks = named(found)
    assert checks["leak"].value == 0 < checks["effect"].value
    assert (checks["first_token"].value > 0) is (attention == "bidirectional")
    assert 0 < checks["generate"].value < 1e-5
    assert checks["example"].value == 36


def test_numbers_are_those_of_the_files_and_of_the_features(folders):
    found = examine(folders["siglip"])
    adapter: Adapter = registry.module("adapters", "llava").load(tiny_models.spec(folders["siglip"]), "cpu")
    assert found.model.parameters == adapter.model.num_parameters()
    assert found.model.dtype == "float32"
    assert found.checkpoint.shards == {"model.safetensors": (folders["siglip"] / "model.safetensors").stat().st_size}
    assert found.checkpoint.keys == {"missing": (), "unexpected": (), "of another shape": ()}
    features = adapter.read(adapter.prepare([report._scene()]), adapter.known_sites())
    nbytes = {str(site): feature.numel() * feature.element_size() for site, feature in features.items()}
    rows = {(row.first, row.last): row for row in found.sites}
    ends = [("encoder", "encoder"), ("adapter", "adapter"), ("llm.1", "llm.4"), ("llm.norm", "llm.norm")]
    assert list(rows) == [*ends, ("llm.0.key", "llm.3.key"), ("llm.0.value", "llm.3.value")]
    for (first, last), row in rows.items():
        assert row.bytes == nbytes[first] == nbytes[last]
    residual = sum(nbytes[str(site)] for site in adapter.sites())
    assert found.memory.held == 1000 * residual
    assert found.memory.batches["8"] == 8 * found.memory.batches["1"] > 8 * residual
    assert found.memory.weights == sum(one.numel() * 4 for one in load_file(*folders["siglip"].glob("*.s*")).values())


def test_parts_are_named_by_their_attributes_and_the_prompt_as_it_is_read(folders):
    parts = examine(folders["dinov2-registers"]).parts
    model = tiny_models.build("dinov2-registers")
    for part in (parts.text, parts.norm, parts.projector, *parts.before):
        assert type(model.get_submodule(part.path)).__name__ == part.kind
    assert [part.path for part in parts.before] == ["model.vision_tower", "model.multi_modal_projector"]
    assert (parts.layers, parts.layer) == (4, "LlamaDecoderLayer")
    assert (parts.image_token, parts.image_token_id) == ("<image>", tiny_models.IMAGE)
    assert parts.prompt == "USER: <image> what is this"
    assert parts.read_as == "<s> USER: <image> x 38"


def test_tokens_say_what_has_no_place_and_what_no_patch_sees(folders):
    registers = examine(folders["dinov2-registers"]).tokens
    assert (registers.tokens, registers.placeless, registers.kinds) == (38, 2, "2 registers")
    border = examine(folders["siglip"]).tokens
    view = examine(folders["siglip"]).views[0]
    assert border.unseen == pytest.approx(1 - seen_mask(view.grid_map).mean())
    assert set(border.edges) == {"bottom", "right"}
    padded = examine(folders["clip"], preprocess="pad").tokens
    assert (padded.picture, padded.empty, padded.unseen) == ((360, 360), 12, 0)
    cropped = examine(folders["clip"], preprocess="crop").tokens
    assert (cropped.picture, cropped.empty, cropped.edges) == ((240, 240), 0, {"left": 60, "right": 60})


def test_transposed_patches_fail_their_check_and_the_others_are_reported_all_the_same(folders, monkeypatch):
    place = Canvas.place

    def transposed(self, picture):
        found = place(self, picture)
        return replace(found, patches=found.patches.reshape(found.grid).T.ravel())

    monkeypatch.setattr(Canvas, "place", transposed)
    found = examine(folders["clip"])
    assert found.failed == ("layout",)
    assert "5.00 patches from where the grid puts it" in named(found)["layout"].note
    assert [one.name for one in found.checks] == list(report.ABOUT)
    assert found.views


def test_a_model_that_answers_otherwise_than_it_reads_fails_only_in_generation(folders, monkeypatch):
    load = llava.load

    def astray(spec, device):
        adapter = load(spec, device)

        def moved(_, args):
            return (2 * args[0] + 1, *args[1:]) if args[0].shape[1] == 1 else None  # a decoding step

        adapter.parts.text.layers[0].register_forward_pre_hook(moved)
        return adapter

    monkeypatch.setattr(llava, "load", astray)
    found = examine(folders["clip"])
    assert found.failed == ("generate",)
    assert "answers come from other states" in named(found)["generate"].note


def test_a_knockout_that_generate_drops_is_caught(folders, monkeypatch):
    monkeypatch.setattr(_generation, "knockout", lambda *_: nullcontext())
    assert examine(folders["clip"]).failed == ("generate_knockout",)


def test_an_attention_that_generate_drops_is_caught(folders, monkeypatch):
    monkeypatch.setattr(Adapter, "attention", lambda self: nullcontext())
    assert examine(folders["clip"], attention="bidirectional").failed == ("plain", "behind", "generate_knockout")


def test_where_attention_cannot_be_edited_the_report_says_why(tmp_path):
    tiny_families.write("qwen3_5", tmp_path)
    spec = ModelSpec(name="tiny", adapter="auto", weights=tmp_path, attention="native", prompt=None)
    found = report.examine(spec, "cpu", None, lambda line: None)
    assert found.failed == ()
    untested = {one.name: one.note for one in found.checks if one.passed is None}
    assert set(untested) == KNOCKOUT
    assert all("can be edited here" in note for note in untested.values())
    assert [one.name for one in found.checks] == list(report.ABOUT)


def test_tensors_that_do_not_fit_are_named(folders, tmp_path):
    folder = _copy(folders["clip"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    gone, wide = (
        next(name for name in tensors if name.endswith(end)) for end in ("model.norm.weight", "lm_head.weight")
    )
    tensors["extra.weight"] = tensors.pop(gone)
    tensors[wide] = torch.cat([tensors[wide]] * 2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = examine(folder)
    keys = found.checkpoint.keys
    assert found.failed == ("load",)
    assert [len(keys[what]) for what in ("missing", "unexpected", "of another shape")] == [1, 1, 1], keys
    assert keys["unexpected"] == ["extra.weight"]
    assert keys["missing"][0].endswith("norm.weight")
    assert "do not fit its config" in named(found)["load"].note


def test_numbers_that_are_none_fail_and_are_no_part_of_the_data(folders, tmp_path):
    folder = _copy(folders["clip"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (name,) = (name for name in tensors if name.endswith("layers.0.mlp.down_proj.weight"))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = examine(folder)
    assert {"plain", "leak", "effect", "nothing", "generate"} <= set(found.failed)
    assert named(found)["layout"].passed
    assert named(found)["plain"].note == "states of the LLM are not finite"
    data = {one["name"]: one for one in found.data()["checks"]}
    assert "value" not in data["plain"]
    assert data["layout"]["value"] == named(found)["layout"].value


def test_whatever_a_model_raises_is_a_check_that_failed(folders, monkeypatch):
    load = llava.load

    def broken(spec, device):
        adapter = load(spec, device)

        def fail(*_):
            raise RuntimeError("the matrix is of no use")

        adapter.parts.text.layers[1].register_forward_pre_hook(fail)
        return adapter

    monkeypatch.setattr(llava, "load", broken)
    found = examine(folders["clip"])
    assert named(found)["layout"].passed
    assert named(found)["plain"].note == "RuntimeError: the matrix is of no use"
    assert {"plain", "alone", "leak", "sites", "generate"} <= set(found.failed)


def test_the_example_is_the_users_image_where_there_is_one(folders):
    scene = scenes.draw(1, 7, (120, 60))
    sample = report.Sample("mine.png", report.Image.fromarray(scene.image), np.zeros((120, 60), np.uint8))
    found = report.examine(tiny_models.spec(folders["clip"]), "cpu", sample, lambda line: None)
    assert (found.tokens.image, found.tokens.size) == ("mine.png", (120, 60))
    assert found.views[0].grid_map.image == (120, 60)


def _copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "checkpoint"))

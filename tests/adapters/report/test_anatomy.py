"""Parts, files and prompt are named as they are in the model."""

import tiny_models
import torch
from examined import copy, examine, named
from safetensors.torch import load_file, save_file

from segbench import registry
from segbench.adapters.base import Adapter


def test_numbers_are_those_of_the_files(folders):
    found = examine(folders["siglip"])
    adapter: Adapter = registry.module("adapters", "llava").load(tiny_models.spec(folders["siglip"]), "cpu")
    assert found.model.parameters == adapter.model.num_parameters()
    assert found.model.dtype == "float32"
    assert found.checkpoint.shards == {"model.safetensors": (folders["siglip"] / "model.safetensors").stat().st_size}
    assert found.checkpoint.keys == {"missing": (), "unexpected": (), "of another shape": ()}


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


def test_tensors_that_do_not_fit_are_named(folders, tmp_path):
    folder = copy(folders["clip"], tmp_path)
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

"""A report as data has what was found, and no number that is none."""

import torch
from examined import copy, examine, named
from safetensors.torch import load_file, save_file


def test_numbers_that_are_none_fail_and_are_no_part_of_the_data(folders, tmp_path):
    folder = copy(folders["clip"], tmp_path)
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

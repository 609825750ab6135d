"""`segbench model check`: what a reader and a CI job get of it, for good checkpoints and for all that can be wrong."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import tiny_models
from command import segbench
from PIL import Image

CARD = "adapter: llava\nweights: ./clip\nprompt: 'USER: <image> what is this'\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    """Cards beside a checkpoint, for --include."""
    folder = tmp_path_factory.mktemp("lab")
    tiny_models.write(folder / "clip", image_attention="bidirectional")
    (folder / "both.yaml").write_text(CARD + "attention: bidirectional\n")
    (folder / "swapped.yaml").write_text(CARD)
    (folder / "on-purpose.yaml").write_text(CARD + "mask_swap: true\n")
    (folder / "absent.yaml").write_text(CARD.replace("weights: ./clip", "hub: org/no-such-model"))
    return folder


def check(lab: Path, *words: object, out: Path | None = None):
    return segbench("model", "check", *words, "--include", lab, *(("--output", out) if out else ("--no-figures",)))


def test_a_good_model_exits_0_with_every_section_and_a_picture(lab, tmp_path):
    said = check(lab, "both", out=tmp_path)
    assert said.code == 0, said.err
    sections = [line for line in said.out.splitlines() if line and not line.startswith(" ")]
    assert sections == ["model", "checkpoint", "parts", "sites", "tokens", "checks", "memory"]
    for line in (
        f"  card        {lab / 'both.yaml'}",
        "  shards            1 of 1, ",
        "  read as         <s> USER: <image> x 36 ",
        "  llm.1 ... llm.4",
        "  grid             6 x 6 patches",
    ):
        assert line in said.out
    rows = [line for line in said.out.splitlines() if line.endswith("  pass")]
    assert len(rows) == 14
    assert "FAIL" not in said.out
    assert Image.open(tmp_path / "tokens.png").width > 1000
    assert f"picture:  {tmp_path / 'tokens.png'}" in said.err


def test_json_is_the_same_report_as_data(lab):
    said = check(lab, "both", "--json")
    data = json.loads(said.out)
    assert data["passed"] is True
    assert data["model"]["card"] == str(lab / "both.yaml")
    assert data["tokens"]["grid"] == [6, 6]
    text = check(lab, "both").out
    for one in data["checks"]:
        value = f"{one['value']:.3g}" if "value" in one else one["about"]
        assert any(one["name"] in line and value in line for line in text.splitlines()), one
    assert "null" not in said.out


def test_the_shipped_models_pass(tmp_path):
    assert segbench("model", "check", "tiny-clip-bidir", "--no-figures").code == 0


def test_another_attention_than_in_training_fails_unless_it_is_meant(lab):
    said = check(lab, "swapped")
    assert said.code == 1
    assert "were trained with bidirectional image attention, the spec says causal" in said.out
    assert "1 of 1 checks failed: load" in said.err
    meant = check(lab, "on-purpose")
    assert meant.code == 0
    assert "causal, not what the weights were trained with (sdpa)" in meant.out


def test_a_missing_shard_is_named(lab, tmp_path):
    tiny_models.build().save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    tiny_models.processor().save_pretrained(tmp_path / "parts")
    shards = sorted((tmp_path / "parts").glob("*.safetensors"))
    shards[1].unlink()
    said = check(lab, "both", "--weights", tmp_path / "parts")
    assert said.code == 1
    assert f"  shards     {len(shards) - 1} of {len(shards)}, " in said.out
    assert f"  not there  {shards[1].name}" in said.out
    assert f"{shards[1].name} is missing; the checkpoint is incomplete, fetch it again" in said.out


def test_tensors_that_are_missing_or_unexpected_are_counted_and_a_few_are_named(lab, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(lab / "clip", tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    layer = [name for name in tensors if "language_model.model.layers.3." in name]
    renamed = {name.replace("layers.3.", "layers.9."): tensors.pop(name) for name in layer}
    save_file(tensors | renamed, folder / "model.safetensors", {"format": "pt"})
    said = check(lab, "both", "--weights", folder)
    assert said.code == 1
    lines = {line.split()[0]: line for line in said.out.splitlines() if line.startswith("  ")}
    for what, place in (("missing", "layers.3."), ("unexpected", "layers.9.")):
        assert f"{len(layer)} tensors (" in lines[what]
        assert lines[what].count(place) == 5
        assert lines[what].endswith(", ...)")
    keys = json.loads(check(lab, "both", "--weights", folder, "--json").out)["checkpoint"]["keys"]
    assert len(keys["missing"]) == len(keys["unexpected"]) == len(layer)


def _gemma(folder: Path) -> None:
    shutil.rmtree(folder)
    tiny_families.write("gemma3", folder)


def _remote(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


def _index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _processor(folder: Path) -> None:
    stated = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(stated | {"patch_size": 4}))


def _nonsense(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_gemma, "holds a 'gemma3' model, the adapter llava reads 'llava'"),
        (_remote, "remote code is never run"),
        (_cut, "the file is truncated or damaged"),
        (_index, "is no name of a safetensors file in the same folder"),
        (_processor, "makes 144 image tokens of a picture"),
        (_nonsense, "cannot be read as JSON"),
    ],
)
def test_a_spoilt_checkpoint_exits_1_and_is_told_without_a_traceback(lab, tmp_path, spoil, told):
    folder = shutil.copytree(lab / "clip", tmp_path / "clip")
    spoil(folder)
    said = check(lab, "both", "--weights", folder)
    assert said.code == 1
    assert told in said.out
    assert "Traceback" not in said.out + said.err
    data = json.loads(check(lab, "both", "--weights", folder, "--json").out)
    assert data["passed"] is False
    assert any(told in one.get("note", "") for one in data["checks"] if one["passed"] is False)


def test_weights_that_are_not_there_exit_4_with_a_remedy(lab, tmp_path):
    said = check(lab, "absent")
    assert (said.code, said.out) == (4, "")
    assert "first: hf download org/no-such-model" in said.err
    (tmp_path / "nowhere.yaml").write_text("adapter: llava\n")
    said = check(lab, "nowhere", "--include", tmp_path)
    assert (said.code, said.out) == (4, "")
    assert "or `hub: ORG/NAME` with a `revision`" in said.err
    said = check(lab, "both", "--weights", tmp_path)
    assert (said.code, said.out) == (4, "")
    assert "put a transformers checkpoint (safetensors) there" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bothh"], "no model 'bothh', did you mean 'both'?"),
        (["both,swapped"], "names 2 models; one is checked at a time"),
        (["../../etc"], "so it is no checkpoint of a model"),
        (["both", "--model-args", "dtipe=float16"], "did you mean 'dtype'?"),
        (["both", "--preprocess", "squish"], "'squish' is not one of"),
        (["both", "--device", "abacus"], "--device: 'abacus' cannot be used here"),
        (["both", "--image", "no-such.png"], "'no-such.png' does not exist"),
    ],
)
def test_a_wrong_command_exits_2(lab, words, told):
    said = check(lab, *words)
    assert (said.code, said.out) == (2, "")
    assert told in said.err


def test_what_a_name_holds_never_becomes_a_path(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outside = shutil.copytree(lab / "clip", tmp_path / "a" / "x$(touch y) ..")
    trained = ("--model-args", "attention=bidirectional")
    said = segbench("model", "check", f"{tmp_path}/a/../a/x$(touch y) ..", *trained)
    assert said.code == 0, said.out + said.err
    said = segbench("model", "check", "both", "--include", lab, "--model-args", "description=../../../b")
    assert said.code == 0, said.err
    made = list(tmp_path.rglob("tokens.png"))
    assert len(made) == 2
    assert all(path.parent.parent == tmp_path / "segbench-runs" / "check" for path in made)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "segbench-runs"}
    assert {path.name for path in outside.parent.iterdir()} == {outside.name}
    (tmp_path / "dots").mkdir()
    (tmp_path / "dots" / "...yaml").write_text(CARD)  # whose stem is ".."
    said = segbench("model", "check", "..", "--include", tmp_path / "dots")
    assert said.code == 2
    assert "Traceback" not in said.err


def test_what_is_said_of_a_model_cannot_command_a_terminal(lab, tmp_path):
    card = CARD.replace("./clip", str(lab / "clip")).replace("'USER: <image> what is this'", r'"<image> \e[31mred\a"')
    (tmp_path / "red.yaml").write_text(card + "attention: bidirectional\n")
    said = check(lab, "red", "--include", tmp_path)
    assert said.code == 0, said.err
    assert "\\x1b[31mred\\x07" in said.out
    assert not {"\x1b", "\x07"} & set(said.out)


def test_the_users_own_picture_is_looked_at(lab, tmp_path):
    Image.fromarray(np.zeros((50, 90, 3), np.uint8)).save(tmp_path / "mine.png")
    said = check(lab, "both", "--image", tmp_path / "mine.png", "--preprocess", "crop")
    assert said.code == 0, said.err
    assert f"{tmp_path / 'mine.png'}, 50 x 90 pixels (H x W)" in said.out
    assert "44.44 % of the pixels (20 at the left, 20 at the right)" in said.out


def test_without_matplotlib_the_report_is_whole(lab, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = check(lab, "both", out=tmp_path)
    assert said.code == 0
    assert "no picture: matplotlib is not installed" in said.err
    assert "memory" in said.out
    assert not list(tmp_path.iterdir())

"""A checkpoint folder is whole and safe, or its trouble is told before it is loaded; its hash is its content's."""

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from safetensors.torch import load_file, save_file

from segbench.adapters import weights
from segbench.errors import MissingInput, ModelError


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return tiny_models.write(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """The same kind of checkpoint in several files."""
    folder = tmp_path_factory.mktemp("shards")
    tiny_models.build().save_pretrained(folder, max_shard_size="200KB")
    tiny_models.processor().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture
def copy(tmp_path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(folder, tmp_path / "copy"))


def changed(path: Path, **keys) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# ------------------------------------------------------------------------------------------------------------ missing


def test_folder_that_is_not_there_says_what_to_put_where(tmp_path):
    spec = tiny_models.spec(tmp_path / "no")
    assert "no is not there; put a transformers checkpoint (safetensors) there" in str(weights.missing(spec))
    with pytest.raises(MissingInput, match=r"tiny: the checkpoint folder .*no is not there"):
        weights.folder(spec)
    assert "holds no config.json" in str(weights.missing(tiny_models.spec(tmp_path)))


def test_hub_model_that_is_not_cached_says_how_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    spec = tiny_models.spec(tmp_path).model_copy(
        update={"weights": None, "hub": "org/no-such-model", "revision": "0" * 40}
    )
    assert f"first: hf download org/no-such-model --revision {'0' * 40}" in str(weights.missing(spec))
    assert "give --weights FOLDER" in str(weights.missing(spec.model_copy(update={"hub": None})))


def test_hub_model_without_a_stated_commit_is_the_one_in_the_cache(written, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, place = "a1" * 20, tmp_path / "models--org--tiny"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    shutil.copytree(written, place / "snapshots" / commit)
    spec = tiny_models.spec(tmp_path).model_copy(update={"weights": None, "hub": "org/tiny"})
    assert weights.missing(spec) is None
    assert weights.folder(spec) == place / "snapshots" / commit
    assert weights.revision(spec) == commit
    assert weights.revision(spec.model_copy(update={"revision": "b2" * 20})) == "b2" * 20
    assert weights.revision(tiny_models.spec(written)) is None


@pytest.mark.parametrize("kind", ["written", "shards"])
def test_whole_checkpoint_is_trusted(request, kind):
    folder = request.getfixturevalue(kind)
    assert weights.inspect(folder)["model_type"] == "llava"
    assert weights.missing(tiny_models.spec(folder)) is None


def test_nothing_here_needs_torch():
    code = "import sys, segbench.adapters.weights; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# -------------------------------------------------------------------------------------------------------------- trust


def test_missing_shard_is_named(shards, copy):
    folder = copy(shards)
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(ModelError, match=rf"{gone.name} is missing; the checkpoint is incomplete"):
        weights.inspect(folder)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/x.safetensors", "model.bin", "x/y.safetensors", "..", 3, ""]
)
def test_shard_that_would_be_unpickled_or_lies_elsewhere_is_refused(shards, copy, name):
    folder = copy(shards)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][next(iter(content["weight_map"]))] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="is no name of a safetensors file in the same folder"):
        weights.inspect(folder)


@pytest.mark.parametrize("kept", [0, 5, 50, 0.5, -1])
def test_cut_off_file_is_named(written, copy, kept):
    path = copy(written) / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match=r"model\.safetensors: .*(cut off|truncated|cannot be read)"):
        weights.inspect(path.parent)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"a": 1}', b'{"a": {"data_offsets": [0, "x"]}}', b'{"a": {"data_offsets": []}}', b"[" * 9999],
)
def test_header_that_is_none_is_refused(written, copy, header):
    path = copy(written) / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match=r"model\.safetensors: its safetensors header cannot be read"):
        weights.inspect(path.parent)


def test_pickled_weights_are_refused(written, copy):
    folder = copy(written)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled \(pytorch_model\.bin\); convert them to safetensors first"):
        weights.inspect(folder)


def test_checkpoint_without_weights_is_incomplete(written, copy):
    folder = copy(written)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors is missing; the checkpoint is incomplete"):
        weights.inspect(folder)


def test_config_that_wants_its_own_code_to_run_is_refused(written, copy):
    folder = copy(written)
    changed(folder / "config.json", auto_map={"AutoModel": "modeling_mine.Mine"})
    with pytest.raises(ModelError, match=r"modeling_mine\.Mine.*remote code is never run"):
        weights.inspect(folder)


def test_low_rank_adapter_beside_the_weights_is_refused(written, copy):
    folder = copy(written)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapter_config\.json lies beside the weights; merge"):
        weights.inspect(folder)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 99999])
def test_config_that_is_no_json_object_is_named(written, copy, text):
    folder = copy(written)
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: (cannot be read as JSON|expected a JSON object)"):
        weights.inspect(folder)


# ------------------------------------------------------------------------------------------------------------ identity


def test_identity_is_the_content_and_not_the_place(written, copy):
    before, folder = weights.weights_hash(written), copy(written)
    (folder / "README.md").write_text("words")
    (folder / "training.json").write_text("{}")
    assert weights.weights_identity(tiny_models.spec(folder)) == before


@pytest.mark.parametrize("what", ["tensor", "config.json", "processor_config.json", "tokenizer.json", "shards"])
def test_whatever_can_change_a_number_changes_the_identity(written, shards, copy, what):
    before, folder = weights.weights_hash(written), copy(shards if what == "shards" else written)
    if what == "tensor":
        tensors = load_file(folder / "model.safetensors")
        name = sorted(tensors)[0]
        tensors[name].view(-1)[0] += 1e-3
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    elif what != "shards":
        changed(folder / what, segbench_test=1)
    assert weights.weights_hash(folder) != before

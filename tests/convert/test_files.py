import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from segbench.convert import files
from segbench.errors import ModelError, SpecError


class Mischief:
    """Pickled, it writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "was here")


def test_a_pickle_with_more_than_tensors_is_refused_and_not_run(tmp_path):
    torch.save({"a": Mischief(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: cannot be read as a file of tensors"):
        files.mapped(files.weight_files(tmp_path))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": {"b": torch.ones(1)}}, {"epoch": 3}])
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="expected tensors by their names and nothing else"):
        files.mapped(files.weight_files(tmp_path))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name):
    path = tmp_path / name
    tensors = {"a": torch.ones(1000)}
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    assert files.mapped([path])["a"].tolist() == [1] * 1000
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(ModelError, match=f"{name}: cannot be read as a file of tensors, fetch it again"):
        files.mapped([path])
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=f"{name}: cannot be read as a file of tensors"):
        files.mapped([path])


def test_a_tensor_in_two_files_is_refused(tmp_path):
    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ModelError, match="a is in another file of the folder, too"):
        files.mapped(files.weight_files(tmp_path))


def test_safetensors_are_read_rather_than_pickles(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert [path.name for path in files.weight_files(tmp_path)] == ["model.safetensors"]


def test_training_arguments_and_optimizers_are_never_opened(tmp_path):
    for name in ("training_args.bin", "optimizer.bin", "rng_state.pth"):
        torch.save({"a": Mischief(tmp_path / "trace")}, tmp_path / name)
    assert files.weight_files(tmp_path) == ()


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_json_that_is_none_is_told_by_its_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json: (cannot be read as JSON|expected a JSON object)"):
        files.read_json(tmp_path / "config.json")


def test_memory_does_not_grow_with_the_weights(tmp_path):
    """Tensors are mapped until they are written: 200 MB go through less than 100 MB of memory that is nobody's file."""
    for part in range(4):
        save_file({f"{part}.{n}": torch.ones(1250, 1000) for n in range(10)}, tmp_path / f"{part}.safetensors")
    before = anonymous()
    tensors = files.mapped(files.weight_files(tmp_path))
    (tmp_path / "out").mkdir()
    peak = 0

    def made(name: str) -> torch.Tensor:
        nonlocal peak
        peak = max(peak, anonymous())
        return tensors[name]

    files.write({name: one.to("meta") for name, one in tensors.items()}, made, tmp_path / "out")
    assert max(peak, anonymous()) - before < 100_000
    assert (tmp_path / "out/model.safetensors").stat().st_size > 200_000_000


def test_a_folder_without_room_is_refused_before_anything_is_written(tmp_path):
    with (
        pytest.raises(SpecError, match=r"needs 1000000\.0 GB, .* GB are free"),
        files.whole_folder(tmp_path / "x", 10**15),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_index_is_one_that_transformers_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_FILE", 3000)
    tensors = {name: torch.rand(500) for name in "abc"}
    written = files.write({name: one.to("meta") for name, one in tensors.items()}, tensors.__getitem__, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 6000}
    assert (
        sorted(set(index["weight_map"].values()))
        == written
        == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    )
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.safetensors")} == {0o644}


def anonymous() -> int:
    """kB of this process's memory that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

import json
import os

import numpy as np
import pytest

from segbench import store
from segbench.errors import CellError, StoreError
from segbench.records import digest, readable
from segbench.store import Store
from segbench.types import Interval, Measure

HEADER = {"revision": "abc", "kind": "probe", "seed": 0, "limit": None, "model_card": {}, "task_spec": {}}
MEASURES = [Measure("miou", 41.5, "%", 3, "llm.1", interval=Interval(40.0, 43.0)), Measure("coverage", 100.0, "%", 3)]
FINGERPRINT = digest("one")


def finish(root, model="m", task="t", fingerprint=FINGERPRINT):
    cell = Store(root).cell(model, task, fingerprint)
    with cell.lock() as mine:
        assert mine
        cell.save_arrays("counts", {"a": np.arange(6).reshape(2, 3), "b": np.ones(2, np.float32)})
        cell.save_checkpoint({"w": np.zeros(2)}, {"epochs": 1})
        cell.about({"sites": ["llm.1"]})
        cell.finish(HEADER, MEASURES)
    return cell


def test_a_finished_cell_comes_back_as_it_was_and_drops_its_checkpoint(tmp_path):
    cell = finish(tmp_path)
    result = cell.result()
    assert (result.model, result.task, result.kind, result.limit) == ("m", "t", "probe", None)
    assert list(result.measures) == MEASURES
    assert result.about == {"sites": ["llm.1"]}
    arrays = result.arrays("counts")
    assert arrays["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["b"].dtype == np.float32
    assert sorted(path.name for path in cell.path.iterdir()) == ["cell.json", "counts.safetensors"]
    assert [row.low for row in result.records()] == [40.0, None]


def test_equal_cells_have_equal_bytes(tmp_path):
    one, other = (finish(tmp_path / name) for name in "ab")
    for name in ("cell.json", "counts.safetensors"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()


@pytest.mark.parametrize("name", ["cell.json", "counts.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_refused_by_name_and_set_aside(tmp_path, name, damage):
    cell = finish(tmp_path)
    path = cell.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[: len(data) // 2], "flip": data, "empty": b""}[damage])
    with pytest.raises(StoreError, match=name):
        cell.result()
    assert path.with_name(name + ".damaged").exists()
    assert cell.state() == "absent"
    assert Store(tmp_path).results() == []


def test_a_number_changed_by_hand_is_refused(tmp_path):
    cell = finish(tmp_path)
    path = cell.path / "cell.json"
    path.write_text(path.read_text().replace("41.5", "91.5"))
    with pytest.raises(StoreError, match=r"cell\.json does not match its own sha256"):
        cell.result()


def test_a_missing_array_file_is_told_by_name(tmp_path):
    cell = finish(tmp_path)
    (cell.path / "counts.safetensors").unlink()
    with pytest.raises(StoreError, match=r"lists counts\.safetensors, which cannot be read"):
        cell.result()


def test_arrays_swapped_for_others_that_are_whole_are_refused(tmp_path):
    cell, other = finish(tmp_path / "a"), Store(tmp_path / "b").cell("m", "t", FINGERPRINT)
    other.save_arrays("counts", {"a": np.zeros((2, 3), int), "b": np.ones(2, np.float32)})
    (cell.path / "counts.safetensors").write_bytes((other.path / "counts.safetensors").read_bytes())
    with pytest.raises(StoreError, match="does not match its sha256 in the finished cell"):
        cell.result()


def test_a_cell_that_lies_where_another_belongs_is_refused(tmp_path):
    cell = finish(tmp_path)
    elsewhere = tmp_path / "m/u" / cell.path.name
    elsewhere.parent.mkdir()
    cell.path.rename(elsewhere)
    with pytest.raises(StoreError, match="belongs into m/t/"):
        store.read_result(elsewhere)


@pytest.mark.parametrize(
    "change", [{"files": {"../../../secret": "0"}}, {"files": 3}, {"model": None}, {"fingerprint": 1}]
)
def test_a_forged_cell_reads_nothing_outside_its_folder(tmp_path, change):
    cell = finish(tmp_path)
    forged = json.loads((cell.path / "cell.json").read_text())["cell"] | change
    (cell.path / "cell.json").write_text(readable({"cell": forged, "sha256": digest(forged)}))
    (tmp_path / "secret").write_text("x")
    with pytest.raises(StoreError):
        cell.result()
    assert (tmp_path / "secret").exists()


def test_a_damaged_checkpoint_is_as_none_and_kept_aside(tmp_path, caplog):
    cell = Store(tmp_path).cell("m", "t", FINGERPRINT)
    assert cell.load_checkpoint() is None
    cell.save_checkpoint({"w": np.arange(3.0)}, {"epochs": 2})
    arrays, facts = cell.load_checkpoint()
    assert (arrays["w"].tolist(), facts) == ([0, 1, 2], {"epochs": 2})
    path = cell.path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert cell.load_checkpoint() is None
    assert "starting from the beginning" in caplog.text
    assert path.with_name(path.name + ".damaged").exists()


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    store.write_whole(path, b"before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write_whole(path, b"after, and much longer")
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_half_written_goes_when_the_cell_is_taken_again(tmp_path):
    cell = finish(tmp_path)
    (cell.path / ".writing-1-counts.safetensors").write_bytes(b"half")
    with cell.lock():
        pass
    assert not list(cell.path.glob(".writing-*"))


def test_a_cell_is_held_by_one_at_a_time(tmp_path):
    one, same = (Store(tmp_path).cell("m", "t", FINGERPRINT) for _ in range(2))
    with one.lock() as first:
        with same.lock() as second:
            assert (first, second) == (True, False)
        with Store(tmp_path).cell("m", "u", FINGERPRINT).lock() as other:
            assert other
    with same.lock() as free:
        assert free


def test_a_number_that_is_none_cannot_be_kept(tmp_path):
    cell = Store(tmp_path).cell("m", "t", FINGERPRINT)
    with pytest.raises(CellError, match="miou"):
        cell.finish(HEADER, [Measure("miou", float("nan"), "%", 1)])
    with pytest.raises(CellError, match="cannot be kept"):
        cell.save_arrays("names", {"a": np.array(["text"])})
    with pytest.raises(CellError, match="cannot be written down"):
        cell.about({"x": float("inf")})
    assert not list(tmp_path.rglob("cell.json"))


@pytest.mark.parametrize("name", ["checkpoint", "../x", "A", "", "a/b", "a.b"])
def test_no_name_of_arrays_leaves_the_cell(tmp_path, name):
    with pytest.raises(CellError, match="cannot name a file of arrays"):
        Store(tmp_path).cell("m", "t", FINGERPRINT).save_arrays(name, {"a": np.zeros(1)})


def test_every_name_has_a_folder_of_its_own_that_stays_inside():
    names = ["tiny", "Tiny", "TINY", "../x", "..", ".", "", "a/b", "a\\b", "a b", "a+b", "é", "\udc80", "x" * 300, "-x"]
    folders = [store.folder_name(name) for name in names]
    assert len({folder.lower() for folder in folders}) == len(names)
    assert all("/" not in folder and folder[0] not in ".-" and len(folder) < 80 for folder in folders)
    assert store.folder_name("tiny~dtype=bfloat16") == "tiny~dtype=bfloat16"


def test_results_are_the_finished_cells_in_a_fixed_order(tmp_path):
    for model in ("b", "a"):
        finish(tmp_path, model=model)
    Store(tmp_path).cell("c", "t", FINGERPRINT).save_checkpoint({}, {})
    (tmp_path / "figures").mkdir()
    assert [one.model for one in Store(tmp_path).results()] == ["a", "b"]

import json
import subprocess
import sys

import native_trees
import pytest
import small_sets
from command import segbench
from file_server import served

from segbench.data import ade20k, there


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SEGBENCH_DATA", raising=False)


@pytest.fixture
def root(tmp_path, monkeypatch):
    return small_sets.publish(monkeypatch, tmp_path / "data/ade20k/ADEChallengeData2016")


@pytest.fixture
def server(tmp_path, monkeypatch):
    drawn = small_sets.publish(monkeypatch, tmp_path / "drawn")
    with served(small_sets.packed(drawn)) as server:
        small_sets.publish(monkeypatch, tmp_path / "drawn", [server.archive()])
        yield server


def test_get_tells_the_terms_downloads_and_says_where_it_is(server, tmp_path):
    done = segbench("data", "get", "ade20k", "--data", tmp_path / "data")
    assert done.code == 0, done.err
    path = tmp_path / "data/ade20k"
    assert done.out == f"{path}\n"
    assert done.err.index("non-commercial research") < done.err.index("downloaded")
    assert "segbench data verify ade20k" in done.err
    assert "\x1b" not in done.err  # no bar where nobody looks
    assert segbench("data", "verify", "ade20k", "--data", tmp_path / "data").code == 0


def test_get_downloads_nothing_where_all_is_there(server, tmp_path):
    options = ("ade20k", "--data", tmp_path / "data")
    segbench("data", "get", *options)
    asked = len(server.asked)
    done = segbench("data", "get", *options)
    assert (done.code, done.out) == (0, f"{tmp_path / 'data/ade20k/ADEChallengeData2016'}\n")
    assert "there already: not verified" in done.err
    segbench("data", "verify", *options)
    assert "there already: verified 20" in segbench("data", "get", *options).err
    assert len(server.asked) == asked


def test_get_keeps_archives_on_request(server, tmp_path):
    done = segbench("data", "get", "ade20k", "--data", tmp_path / "data", "--keep-archives")
    kept = tmp_path / "data/archives/ade20k/packed.zip"
    assert kept.read_bytes() == server.content
    assert f"archives kept in {kept.parent}" in done.err


def test_get_refuses_archives_that_are_not_the_set(tmp_path, monkeypatch):
    drawn = small_sets.publish(monkeypatch, tmp_path / "drawn")
    small_sets.masks(drawn)[0].unlink()
    small_sets.images(drawn)[0].unlink()
    with served(small_sets.packed(drawn)) as server:
        small_sets.publish(monkeypatch, tmp_path / "other", [server.archive()])
        done = segbench("data", "get", "ade20k", "--data", tmp_path / "data")
    assert done.code == 4
    assert "do not hold all of ADE20K scene parsing (partial: 6 of 6 train, 3 of 4 val)" in done.err
    assert not (tmp_path / "data/ade20k").exists()


@pytest.mark.parametrize("name", ["cityscapes", "camvid", "cocostuff"])
def test_get_tells_how_to_get_by_hand_what_may_not_be_downloaded(tmp_path, name):
    done = segbench("data", "get", name, "--data", tmp_path / "data")
    known = there.module(name).Params.known
    assert done.code == 4
    for said in (known.terms, known.page, *known.wanted, str(tmp_path / "data" / name)):
        assert said in done.err
    assert not (tmp_path / "data").exists()


def test_get_says_what_the_server_said(server, tmp_path):
    server.statuses = [404]
    done = segbench("data", "get", "ade20k", "--data", tmp_path / "data")
    assert done.code == 4
    assert f"error: {server.url}: the server refuses (404" in done.err


def test_where_tells_every_set_and_the_folder(root, tmp_path):
    done = segbench("data", "where", "--data", tmp_path / "data")
    assert done.code == 0
    assert f"data folder: {tmp_path / 'data'}" in done.err
    for word in ("--data", "SEGBENCH_DATA", "path:"):
        assert word in done.err
    lines = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert set(lines) == set(there.modules())
    assert "complete" in lines["ade20k"]
    assert str(root) in lines["ade20k"]
    assert "absent" in lines["voc2012"]


def test_where_tells_one_set_as_json(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGBENCH_DATA", str(tmp_path / "data"))
    small_sets.masks(root)[0].unlink()
    small_sets.images(root)[0].unlink()
    done = segbench("data", "where", "ade20k", "--json")
    (one,) = json.loads(done.out)["sets"]
    assert one == {
        "name": "ade20k",
        "title": "ADE20K scene parsing",
        "path": str(root),
        "state": "partial: 6 of 6 train, 3 of 4 val",
        "images": {"train": {"there": 6, "published": 6}, "val": {"there": 3, "published": 4}},
    }


def test_where_tells_when_it_was_verified_and_what_changed_since(root, tmp_path):
    segbench("data", "verify", "ade20k", "--data", tmp_path / "data")
    native_trees.picture(small_sets.images(root)[0], 8)
    done = segbench("data", "where", "ade20k", "--data", tmp_path / "data")
    assert "verified 20" in done.out
    assert "1 files changed since" in done.out


def test_verify_shows_the_hashes_that_enter_fingerprints_and_writes_the_manifest(root, tmp_path):
    wanted = tmp_path / "ade.json"
    done = segbench("data", "verify", "ade20k", "--path", root, "--manifest", wanted)
    assert done.code == 0, done.err
    for split in ("train", "val"):
        assert f"{split}: manifest {ade20k.load(ade20k.Params(path=root), split).manifest}" in done.out
    content = json.loads(wanted.read_bytes())
    assert f"digest: {content['digest']}" in done.out
    assert len(content["content"]["files"]) == 20


def test_verify_tells_all_problems_and_exits_1(root, tmp_path):
    broken = [*small_sets.images(root), *small_sets.images(root, "train")]
    for path in broken:
        path.write_bytes(b"<html>")
    done = segbench("data", "verify", "ade20k", "--path", root, "--manifest", tmp_path / "ade.json")
    assert done.code == 1
    assert all(f"problem: {path}: is HTML or XML" in done.err for path in broken)
    assert "not verified: 10 problems" in done.err
    assert "digest" not in done.out
    assert not (tmp_path / "ade.json").exists()
    found = json.loads(segbench("data", "verify", "ade20k", "--path", root, "--json").out)
    assert found["ok"] is False
    assert len(found["problems"]) == 10


def test_verify_shows_the_first_problems_and_counts_the_rest(root, monkeypatch):
    monkeypatch.setattr("segbench.cli.data.PROBLEMS", 3)
    for path in small_sets.images(root, "train"):
        path.write_bytes(b"")
    done = segbench("data", "verify", "ade20k", "--path", root)
    assert done.err.count("problem: ") == 3
    assert "and 3 more problems" in done.err


def test_a_path_counts_more_than_the_data_folder_of_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGBENCH_DATA", str(tmp_path / "empty"))
    assert segbench("data", "verify", "ade20k", "--path", root).code == 0


def test_verify_takes_a_part_only_on_request(root):
    small_sets.masks(root)[0].unlink()
    small_sets.images(root)[0].unlink()
    assert segbench("data", "verify", "ade20k", "--path", root).code == 1
    assert segbench("data", "verify", "ade20k", "--path", root, "--partial").code == 0


def test_names_of_files_cannot_command_a_terminal(root):
    for path in (small_sets.masks(root)[0], small_sets.images(root)[0]):
        path.rename(path.with_stem("\x1b[31mred"))
    next(path for path in small_sets.images(root) if "red" in path.name).write_bytes(b"")
    done = segbench("data", "verify", "ade20k", "--path", root)
    assert done.code == 1
    assert "\x1b" not in done.err + done.out
    assert "\\x1b[31mred" in done.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("verify", "ade20k"), 4, "first: segbench data get ade20k"),
        (("verify", "ade2k"), 2, "did you mean 'ade20k'"),
        (("get", "../etc"), 2, "no data set"),
        (("get", "folder"), 2, "no published data set"),
        (("where", "scenes"), 2, "no published data set"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_and_a_code(tmp_path, words, code, said):
    done = segbench("data", *words, "--data", tmp_path)
    assert (done.code, "Traceback" in done.err) == (code, False)
    assert said in done.err


def test_no_command_imports_torch(tmp_path):
    code = f"""
import sys
from segbench import cli
sys.argv = ["segbench", "data", "where", "--data", {str(tmp_path)!r}]
try:
    cli.main()
except SystemExit:
    pass
import segbench.data.verify, segbench.data.download
print([name for name in ("torch", "transformers", "datasets", "scipy", "pooch", "requests") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

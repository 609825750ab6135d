import hashlib
import json
import os
import subprocess
import sys
import threading

import pytest

from segbench import files
from segbench.data import checksums
from segbench.errors import DataError, MissingInput


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "FRESH", 0.0)
    return tmp_path / "cache/segbench/checksums"


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were read."""
    found = []
    monkeypatch.setattr(checksums, "sha256", lambda path: found.append(path.name) or files.sha256(path))
    return found


def tree(folder, count=5):
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(b"content %d" % number)
    return paths


def true(paths):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_second_call_reads_nothing(tmp_path, reads):
    paths = tree(tmp_path / "set")
    assert checksums.of(tmp_path / "set", paths) == true(paths)
    assert sorted(reads) == [path.name for path in paths]
    assert checksums.of(tmp_path / "set", paths) == true(paths)
    assert len(reads) == len(paths)
    assert checksums.unread(tmp_path / "set", paths) == []


def change_content(path):
    path.write_bytes(b"longer content than before")


def change_in_place(path):
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))


def change_and_restore_times(path):
    before = path.stat()
    change_in_place(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def exchange_for_another_of_the_same_time(path):
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize(
    "change", [change_content, change_in_place, change_and_restore_times, exchange_for_another_of_the_same_time]
)
def test_a_changed_file_is_read_again_and_no_other(tmp_path, reads, change):
    paths = tree(tmp_path / "set")
    before = checksums.of(tmp_path / "set", paths)
    reads.clear()
    change(paths[2])
    assert checksums.unread(tmp_path / "set", paths) == [paths[2]]
    after = checksums.of(tmp_path / "set", paths)
    assert after == true(paths)
    assert after[paths[2]] != before[paths[2]]
    assert reads == ["2.png"]


def test_a_file_that_changed_a_moment_ago_is_not_remembered(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(checksums, "FRESH", 60.0)
    paths = tree(tmp_path / "set")
    checksums.of(tmp_path / "set", paths)
    checksums.of(tmp_path / "set", paths)
    assert len(reads) == 2 * len(paths)


def test_other_files_of_the_folder_stay_known(tmp_path, reads):
    paths = tree(tmp_path / "set")
    checksums.of(tmp_path / "set", paths[:2])
    checksums.of(tmp_path / "set", paths[2:])
    assert checksums.unread(tmp_path / "set", paths) == []


DAMAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"root": 1}',
    b'{"root": "ROOT", "files": []}',
    b'{"root": "ROOT", "files": {"0.png": 7}}',
    b'{"root": "ROOT", "files": {"0.png": ["STAMP", "deadbeef"]}}',
    b'{"root": "ROOT", "files": {"0.png": "deadbeef"}}',
    b'{"root": "ROOT", "files": {"0.png": ""}}',
    b'{"root": "elsewhere", "files": {"0.png": "STAMP deadbeef"}}',
]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_cache_costs_a_reading_and_no_more(tmp_path, cache, reads, content):
    paths = tree(tmp_path / "set")
    checksums.of(tmp_path / "set", paths)
    (kept,) = cache.iterdir()
    of_first = str(checksums.stamp(paths[0])).encode()
    kept.write_bytes(content.replace(b"ROOT", str(tmp_path / "set").encode()).replace(b"STAMP", of_first))
    reads.clear()
    assert checksums.of(tmp_path / "set", paths) == true(paths)
    assert len(reads) == len(paths)
    assert checksums.unread(tmp_path / "set", paths) == []


def test_two_folders_do_not_share_what_is_known(tmp_path):
    one, two = tree(tmp_path / "one"), tree(tmp_path / "two", 3)
    two[0].write_bytes(b"another")
    checksums.of(tmp_path / "one", one)
    assert checksums.of(tmp_path / "two", two) == true(two)
    assert checksums.of(tmp_path / "one", one) == true(one)


def test_a_link_to_the_folder_shares_what_is_known(tmp_path, reads):
    paths = tree(tmp_path / "set")
    checksums.of(tmp_path / "set", paths)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    checksums.of(tmp_path / "link", [tmp_path / "link" / path.name for path in paths])
    assert len(reads) == len(paths)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, reads, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    paths = tree(tmp_path / "set")
    for _ in range(2):
        assert checksums.of(tmp_path / "set", paths) == true(paths)
    assert len(reads) == 2 * len(paths)


WRITER = """
import sys
from pathlib import Path
from segbench.data import checksums
checksums.FRESH = 0.0
root = Path(sys.argv[1])
paths = sorted(root.iterdir())[int(sys.argv[2])::4]
for _ in range(25):
    checksums.of(root, paths)
    checksums.remember(root, {path: checksums.Sum(checksums.stamp(path), "0" * 64) for path in paths[:1]})
"""


def test_writers_at_once_leave_a_whole_file(tmp_path, cache):
    paths = tree(tmp_path / "set", 200)
    command = [sys.executable, "-c", WRITER, tmp_path / "set"]
    writers = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    (root,) = {path.parent for path in paths}
    while any(writer.poll() is None for writer in writers):
        for kept in cache.glob("[!.]*"):
            assert json.loads(kept.read_bytes())["root"] == str(root)
    assert [writer.wait() for writer in writers] == [0] * 4
    assert [path.name for path in cache.iterdir()] == [f"{checksums.folder_id(root)}.json"]


@pytest.mark.parametrize("missing", [True, False])
def test_what_cannot_be_read_is_told(tmp_path, missing):
    paths = tree(tmp_path / "set")
    if missing:
        paths[3].unlink()
    else:
        paths[3].unlink()
        paths[3].mkdir()
    with pytest.raises(MissingInput if missing else DataError, match=r"3\.png"):
        checksums.of(tmp_path / "set", paths)


def test_a_file_outside_is_refused(tmp_path):
    paths = tree(tmp_path / "set")
    with pytest.raises(DataError, match="outside"):
        checksums.of(tmp_path / "other", paths)


def test_threads_give_results_in_order_and_hold_few(monkeypatch):
    monkeypatch.setattr(checksums, "WAITING", 8)
    begun, alive, lock = [], [], threading.Lock()

    def make(number):
        with lock:
            begun.append(number)
        return number * 2

    for count, made in enumerate(checksums.in_order(make, iter(range(1000)))):
        assert made == 2 * count
        alive.append(len(begun) - count)
    assert len(alive) == 1000
    assert max(alive) <= 8


def test_an_error_in_a_thread_is_raised_and_the_rest_not_begun():
    begun = []

    def make(number):
        begun.append(number)
        return 1 // (number - 3)

    with pytest.raises(ZeroDivisionError):
        list(checksums.in_order(make, range(10_000)))
    assert len(begun) <= checksums.WAITING + 3

import errno
import hashlib
import shutil

import pytest

from segbench import files
from segbench.errors import MissingInput


def test_a_failed_writing_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "kept.json"
    files.write_whole(path, b"before")
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        files.write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["kept.json"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_what_is_free_and_to_make_room(tmp_path, monkeypatch, number):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_234_567))
    with pytest.raises(MissingInput, match=r"1\.23 MB are free\); make room, or name another"), files.writing(tmp_path):
        raise OSError(number, "no room")


def test_a_folder_that_may_not_be_written_says_so(tmp_path):
    said = r"cannot be written \(Permission denied\); name another folder"
    with pytest.raises(MissingInput, match=said), files.writing(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


def test_free_bytes_of_a_folder_to_come_are_those_of_what_is_there(tmp_path):
    assert abs(files.free_bytes(tmp_path / "not/yet") - shutil.disk_usage(tmp_path).free) < 2**30


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (967_382_037, "967 MB"), (19_336_861_798, "19.3 GB")],
)
def test_sizes_are_put_in_decimal_units(count, said):
    assert files.said_bytes(count) == said


@pytest.mark.parametrize("content", [b"", b"x" * 3_000_000])
def test_sha256_is_that_of_the_whole_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_what_is_set_aside_never_takes_the_place_of_what_was(tmp_path):
    path = tmp_path / "kept.json"
    for number in range(3):
        path.write_bytes(bytes([number]))
        assert "is bad; it is set aside as kept.json.damaged" in files.set_aside(path, "is bad")
    found = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    assert found == {"kept.json.damaged": b"\0", "kept.json.damaged-2": b"\1", "kept.json.damaged-3": b"\2"}
    assert "is bad; it cannot be set aside: No such file" in files.set_aside(path, "is bad")

import io
import os
import stat
import struct
import tarfile
import zipfile
from typing import Literal

import pytest

from segbench.data import archive
from segbench.errors import DataError

FILES = {"Set/images/one.jpg": b"one" * 500, "Set/images/two.jpg": b"two" * 700, "Set/list.txt": b"one\ntwo\n"}


def packed_zip(path, files, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def packed_tar(path, files, mode: Literal["w", "w:gz", "w:bz2", "w:xz"] = "w"):
    with tarfile.open(path, mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def tar_of(path, kind, **fields):
    """A tar of one good file and one member that is none."""
    packed_tar(path, {"Set/good.txt": b"good"})
    with tarfile.open(path, "a") as file:
        info = tarfile.TarInfo("Set/odd")
        info.type = kind
        for key, value in fields.items():
            setattr(info, key, value)
        file.addfile(info)
    return path


def unpacked(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path, tmp_path, words):
    into = tmp_path / "into"
    with pytest.raises(DataError, match=words):
        archive.unpack(path, into)
    assert not into.exists()
    assert set(os.listdir(tmp_path)) <= {path.name, "into"}


@pytest.mark.parametrize("mode", ["zip", "stored", "w", "w:gz", "w:bz2", "w:xz"])
def test_every_form_unpacks_to_the_same_bytes(tmp_path, mode):
    path = tmp_path / "packed"
    if mode in ("zip", "stored"):
        packed_zip(path, FILES, zipfile.ZIP_DEFLATED if mode == "zip" else zipfile.ZIP_STORED)
    else:
        packed_tar(path, FILES, mode)
    told = []
    archive.unpack(path, tmp_path / "into", told.append)
    assert unpacked(tmp_path / "into") == FILES
    assert sum(told) == archive.size(path) == sum(map(len, FILES.values()))


def test_a_tar_that_ends_in_a_zip_is_a_tar(tmp_path):
    inner = packed_zip(tmp_path / "inner.zip", {"from-zip": b"x"}, zipfile.ZIP_STORED)
    path = packed_tar(tmp_path / "outer.tar", {"Set/inner.zip": inner.read_bytes()})
    assert zipfile.is_zipfile(path)
    archive.unpack(path, tmp_path / "into")
    assert set(unpacked(tmp_path / "into")) == {"Set/inner.zip"}


ESCAPES = ["/abs", "../out", "Set/../../out", "C:/out", "c:out", "Set\\..\\out", "Set/a\nb", "Set/\x1b[31m", "//host/x"]


@pytest.mark.parametrize("name", ESCAPES)
@pytest.mark.parametrize("form", [packed_zip, packed_tar])
def test_names_that_lead_out_are_refused_before_anything_is_written(tmp_path, form, name):
    path = form(tmp_path / "packed", {"Set/good.txt": b"good", name: b"bad"})
    refused(path, tmp_path, "leads out")


def test_a_name_that_a_zero_byte_cuts_short_is_refused(tmp_path):
    path = packed_zip(tmp_path / "packed", {"Set/good.txtX..": b"good"})
    path.write_bytes(path.read_bytes().replace(b"txtX..", b"txt\0.."))
    refused(path, tmp_path, "leads out")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc"}),
        (tarfile.SYMTYPE, {"linkname": "good.txt"}),
        (tarfile.LNKTYPE, {"linkname": "Set/good.txt"}),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.GNUTYPE_SPARSE, {}),
    ],
)
def test_links_devices_and_sparse_files_in_a_tar_are_refused(tmp_path, kind, fields):
    refused(tar_of(tmp_path / "packed", kind, **fields), tmp_path, "a link, a device|damaged")


def test_a_sparse_file_under_the_guise_of_a_plain_one_is_refused(tmp_path):
    path = tmp_path / "packed"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("Set/odd")
        told = {"major": "1", "minor": "0", "name": "Set/odd", "realsize": "1000000"}
        info.pax_headers = {f"GNU.sparse.{key}": value for key, value in told.items()}
        content = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    refused(path, tmp_path, "a sparse file")


@pytest.mark.parametrize("form", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_are_refused(tmp_path, form):
    path = tmp_path / "packed"
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo("Set/odd")
        info.external_attr = (form | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    refused(path, tmp_path, "a link or a device")


@pytest.mark.parametrize(
    "names", [("Set/a", "Set/a"), ("Set/a", "Set/./a"), ("Set/a", "Set/A"), ("Set/é", "Set/e\u0301")]
)
def test_two_members_in_one_place_are_refused(tmp_path, names):
    path = tmp_path / "packed"
    with tarfile.open(path, "w") as file:
        for name in names:
            file.addfile(tarfile.TarInfo(name))
    refused(path, tmp_path, "twice")


def test_a_file_that_is_a_folder_too_is_refused(tmp_path):
    refused(packed_zip(tmp_path / "packed", {"Set/a": b"x", "Set/a/b": b"y"}), tmp_path, "a file and a folder")


@pytest.mark.parametrize("mode", ["zip", "w:gz"])
def test_more_bytes_than_images_hold_are_refused(tmp_path, monkeypatch, mode):
    monkeypatch.setattr(archive, "HARMLESS", 2**16)
    files = {f"Set/{number}.png": bytes(2**20) for number in range(4)}
    path = packed_zip(tmp_path / "packed", files) if mode == "zip" else packed_tar(tmp_path / "packed", files, mode)
    refused(path, tmp_path, "more than")


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MEMBERS", 2)
    refused(packed_zip(tmp_path / "packed", FILES), tmp_path, "more than")


def test_an_encrypted_member_is_refused(tmp_path):
    path = packed_zip(tmp_path / "packed", {"Set/a": b"secret"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    refused(path, tmp_path, "encrypted")


def test_a_member_longer_than_it_claims_is_refused(tmp_path):
    path = packed_zip(tmp_path / "packed", {"Set/a": b"a" * 1000})
    data = bytearray(path.read_bytes())
    for at in (22, data.index(b"PK\x01\x02") + 24):
        data[at : at + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged|claims"):
        archive.unpack(path, tmp_path / "into")


@pytest.mark.parametrize("content", [b"", b"<html>404", bytes(10240)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "packed").write_bytes(content)
    refused(tmp_path / "packed", tmp_path, "neither|holds no file")


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz"])
def test_a_cut_archive_is_refused(tmp_path, mode):
    path = packed_zip(tmp_path / "packed", FILES) if mode == "zip" else packed_tar(tmp_path / "packed", FILES, mode)
    path.write_bytes(path.read_bytes()[: 1800 if mode == "w" else -60])
    with pytest.raises(DataError):
        archive.unpack(path, tmp_path / "into")


def test_a_changed_byte_of_a_zip_is_refused(tmp_path):
    path = packed_zip(tmp_path / "packed", FILES, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"oneone", b"oneonE", 1))
    with pytest.raises(DataError, match="damaged"):
        archive.unpack(path, tmp_path / "into")


def test_two_archives_with_one_file_are_refused(tmp_path):
    path = packed_zip(tmp_path / "packed", FILES)
    archive.unpack(path, tmp_path / "into")
    with pytest.raises(DataError, match="another archive"):
        archive.unpack(path, tmp_path / "into")

"""Zip and tar archives: every member is checked before the first is written, and none leaves the folder.

Refused: names that lead out of the folder or mean different things on different systems, links, devices, encryption,
two members in one place, and more bytes than archives of images hold.
"""

import contextlib
import lzma
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from segbench.errors import DataError
from segbench.files import said_bytes, writing

RATIO = 100  # unpacked over packed bytes; photographs pack to 1, masks to less than 30
HARMLESS = 64 * 2**20  # bytes: up to here no ratio is too large
MEMBERS = 2_000_000
BLOCK = 2**20  # bytes in memory at a time

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError)
_FOREIGN = (NotImplementedError, RuntimeError)  # what zipfile makes of unknown compression
_ENCRYPTED = 1  # bit of a zip member's flags
_KIND, _ABSENT, _FILE, _FOLDER = 0o170000, 0, 0o100000, 0o040000  # of the mode in a zip member's attributes


class Member(NamedTuple):
    """A file of an archive."""

    name: str  # below the folder it is unpacked into
    length: int  # bytes, as the archive declares them
    open: Callable[[], IO[bytes] | None]


def size(archive: Path) -> int:
    """The bytes that the files of a sound archive take when unpacked; DataError for any other."""
    with _members(archive) as members:
        return sum(member.length for member in members)


def unpack(archive: Path, into: Path, tell: Callable[[int], object] = lambda _: None) -> None:
    """Write all files of an archive below a folder, where none of them may be yet; tells the bytes of every step.

    DataError before anything is written for what the module's head lists, and later for damage; MissingInput where the
    disk is full. What was written by then stays: unpack into a folder that nobody takes for complete.
    """
    with _members(archive) as members, writing(into):
        for member in members:
            path = into / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                raise DataError(f"{archive}: {member.name} is there already, from another archive")
            with path.open("xb") as file:
                for block in _blocks(archive, member):
                    file.write(block)
                    tell(len(block))


def _blocks(archive: Path, member: Member) -> Iterator[bytes]:
    with _told(archive):
        source = member.open()
    assert source is not None, "only folders have no content, and they are no members"
    left, block = member.length, b"."
    with source:
        while block:
            with _told(archive):
                block = source.read(BLOCK)
            left -= len(block)
            if left < 0 or (left and not block):
                raise DataError(f"{archive}: {member.name} has not the {member.length:,} bytes that it claims")
            yield block


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[list[Member]]:
    """The files of an archive, all of them checked, while it is open."""
    with contextlib.ExitStack() as stack:
        with _told(archive):
            if tarfile.is_tarfile(archive):  # first: a tar may end in a zip, and then would pass as one
                found = _in_tar(archive, stack.enter_context(tarfile.open(archive)))
            elif zipfile.is_zipfile(archive):
                found = _in_zip(archive, stack.enter_context(zipfile.ZipFile(archive)))
            else:
                raise DataError(f"{archive}: is neither a zip nor a tar archive, or is damaged")
            members = _checked(archive, found)
        yield members


def _in_tar(archive: Path, tar: tarfile.TarFile) -> Iterator[Member]:
    for one in tar:
        name = _name(archive, one.name)
        if one.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or one.sparse is not None:
            raise DataError(f"{archive}: {name} is a link, a device or a sparse file, and nothing of it is unpacked")
        if not one.isdir():
            yield Member(name, one.size, lambda one=one: tar.extractfile(one))


def _in_zip(archive: Path, packed: zipfile.ZipFile) -> Iterator[Member]:
    for one in packed.infolist():
        name = _name(archive, one.orig_filename)  # `filename` is cut at a zero byte
        if one.flag_bits & _ENCRYPTED:
            raise DataError(f"{archive}: {name} is encrypted, and nothing of it is unpacked")
        if (one.external_attr >> 16) & _KIND not in (_ABSENT, _FILE, _FOLDER):
            raise DataError(f"{archive}: {name} is a link or a device, and nothing of it is unpacked")
        if not one.is_dir():
            yield Member(name, one.file_size, lambda one=one: packed.open(one))


def _checked(archive: Path, members: Iterable[Member]) -> list[Member]:
    """All members, if no two are in one place and if they are not too many bytes: told before those are looked for."""
    limit = max(HARMLESS, RATIO * archive.stat().st_size)
    found: dict[str, Member] = {}
    total = 0
    for member in members:
        total += member.length
        if total > limit or len(found) >= MEMBERS:
            raise DataError(
                f"{archive}: claims to hold more than {said_bytes(limit)} or {MEMBERS:,} files, which no archive of"
                " images does; nothing of it is unpacked"
            )
        if found.setdefault(_place(member.name), member) is not member:
            raise DataError(f"{archive}: {member.name} is in it twice, and nothing of it is unpacked")
    for member in found.values():
        for parent in PurePosixPath(_place(member.name)).parents:
            if str(parent) in found:
                raise DataError(f"{archive}: {parent} is a file and a folder in it, and nothing of it is unpacked")
    if not found:
        raise DataError(f"{archive}: holds no file")
    return list(found.values())


def _name(archive: Path, name: str) -> str:
    """A member's name without `.` parts; DataError where it leads out of the folder, on any system."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    drive = re.match("[A-Za-z]:", name)
    if name.startswith("/") or ".." in parts or "\\" in name or drive or not name.isprintable():
        raise DataError(f"{archive}: {name!r} leads out of the folder, and nothing of it is unpacked")
    return "/".join(parts)


def _place(name: str) -> str:
    """Names for which some file systems know only one file."""
    return unicodedata.normalize("NFC", name).casefold()


@contextlib.contextmanager
def _told(archive: Path) -> Iterator[None]:
    """DataError for whatever reading a damaged archive raises."""
    try:
        yield
    except (*_DAMAGE, *_FOREIGN) as error:
        raise DataError(f"{archive}: damaged, or packed in an unknown way ({error})") from error

"""Where files lie when nobody says so, how they are written (whole or not at all), and how sizes are put."""

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from segbench.errors import MissingInput

TEMPORARY = ".writing-"  # how the names of unfinished files begin
SIZES = ("bytes", "kB", "MB", "GB", "TB")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a write fails with when there is no room


def data_home() -> Path:
    """The folder in which published data sets are looked for and put when no other is named."""
    return cache_home() / "data"


def cache_home() -> Path:
    """What can be made again: data sets, and the checksums of files that have not changed since they were read."""
    import platformdirs

    return platformdirs.user_cache_path("segbench")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that after any crash it is there with all of `data`, or is what it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{path.name}"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def set_aside(path: Path, problem: str, folder: Path | None = None) -> str:
    """Rename a damaged file, so that it is kept but read no more, here or in `folder`; what to tell about it."""
    folder = folder or path.parent
    names = itertools.chain([f"{path.name}.damaged"], (f"{path.name}.damaged-{n}" for n in itertools.count(2)))
    name = next(one for one in names if not (folder / one).exists())
    try:
        path.rename(folder / name)
    except OSError as error:
        return f"{path} {problem}; it cannot be set aside: {error.strerror}"
    return f"{path} {problem}; it is set aside as {name}"


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is safe from then on."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sha256(path: Path) -> str:
    """Of the whole file, in hexadecimal; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """MissingInput, with what to do, for an error of writing below a folder of data sets."""
    try:
        yield
    except OSError as error:
        why, what = error.strerror or str(error), "name another folder with --data"
        if error.errno in FULL:
            why, what = f"{why}; {said_bytes(free_bytes(folder))} are free", f"make room, or {what}"
        raise MissingInput(
            f"{folder}: cannot be written ({why}); {what}, and give the command again: it goes on from there"
        ) from error


def free_bytes(folder: Path) -> int:
    """What can still be written to a folder that may not be there yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def said_bytes(count: float) -> str:
    """A size in words: `1.9 GB`."""
    power = min(len(SIZES) - 1, max(0, (len(str(int(count))) - 1) // 3))
    return f"{count / 1000**power:.3g} {SIZES[power]}"

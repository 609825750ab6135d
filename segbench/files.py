"""Where files lie when nobody says so, and how they are written: whole or not at all."""

import hashlib
import os
from pathlib import Path

TEMPORARY = ".writing-"  # how the names of unfinished files begin


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def sha256(path: Path) -> str:
    """Of the whole file, in hexadecimal; OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

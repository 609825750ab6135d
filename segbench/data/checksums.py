"""sha256 of many files, each read once: what has the size and the time of its last change is not read again.

They are kept as JSON in the user's cache, one file per folder of a data set. Everything in it can be made again, so a
damaged or missing file costs time, never a number. What changes a file's bytes but neither its size nor its time (bit
rot) is found by `segbench data verify`, which reads everything.
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from segbench.errors import DataError, MissingInput
from segbench.files import cache_home, sha256, write_whole

WORKERS = 8  # reading waits for the disk; hashing leaves the interpreter's lock

_log = logging.getLogger(__name__)


def of(root: Path, files: Sequence[Path], again: bool = False) -> dict[Path, str]:
    """sha256 in hexadecimal of files below a folder; with `again`, every file is read whatever is remembered.

    MissingInput for a file that is not there, DataError for one that cannot be read or lies outside.
    """
    remembered = {} if again else _remembered(root)
    known: dict[Path, str] = {}
    stamps: dict[Path, list[int]] = {}
    for path in files:
        stamps[path] = _stamp(path)
        entry = remembered.get(_key(root, path))
        if entry and entry[:2] == stamps[path]:
            known[path] = entry[2]
    unread = [path for path in files if path not in known]
    if unread:
        begun = time.monotonic()
        with ThreadPoolExecutor(WORKERS) as pool:
            known |= zip(unread, pool.map(_sum, unread), strict=True)
        remembered |= {_key(root, path): [*stamps[path], known[path]] for path in unread}
        _remember(root, remembered)
        _log.info("%s: %d files read for their checksums in %.1f s", root, len(unread), time.monotonic() - begun)
    return {path: known[path] for path in files}


def place(root: Path) -> Path:
    """Where the checksums of a folder are kept."""
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return cache_home() / "checksums" / f"{name}.json"


def _remembered(root: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(place(root).read_bytes())
        files = content["files"] if content["root"] == str(root.resolve()) else {}
        good = {name: one for name, one in files.items() if [type(part) for part in one] == [int, int, str]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return good


def _remember(root: Path, files: dict[str, list[Any]]) -> None:
    content = json.dumps({"root": str(root.resolve()), "files": files})
    with contextlib.suppress(OSError):  # a full or read-only home costs the next run time, nothing else
        write_whole(place(root), content.encode())


def _key(root: Path, path: Path) -> str:
    try:
        return str(path.relative_to(root))
    except ValueError as error:
        raise DataError(f"{path}: lies outside {root}") from error


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return [status.st_size, status.st_mtime_ns]


def _sum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error

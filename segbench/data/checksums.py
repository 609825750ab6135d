"""sha256 of many files, each read once: what has not changed since is not read again.

What tells a change are the size, the time of the last change of the content, and that of the inode (which copying or
unpacking with old times does not bring back). They are kept as JSON in the user's cache, one file per folder of a data
set. Everything in it can be made again, so a damaged or missing file costs time, never a number. What changes bytes
and none of these (bit rot) is found by `segbench data verify`, which reads everything.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from segbench.errors import DataError, MissingInput
from segbench.files import cache_home, sha256, write_whole

WORKERS = 8  # reading waits for the disk; hashing and decoding leave the interpreter's lock
WAITING = 4 * WORKERS  # files begun before the first of them is asked for
FRESH = 2.0  # seconds: clocks of file systems tick as slowly, so that a second change within may not show

Item = TypeVar("Item")
Made = TypeVar("Made")

_log = logging.getLogger(__name__)


class Stamp(NamedTuple):
    """What differs after a change."""

    size: int  # bytes
    modified: int  # nanoseconds
    changed: int  # nanoseconds, of the inode

    def __str__(self) -> str:
        return f"{self.size} {self.modified} {self.changed}"

    @property
    def settled(self) -> bool:
        """Whether the file cannot change any more without another stamp, if this one was just taken."""
        return abs(time.time_ns() - max(self.modified, self.changed)) >= FRESH * 1e9


class Sum(NamedTuple):
    """A file's sha256 in hexadecimal, and what it looked like before it was read."""

    stamp: Stamp
    sha256: str
    settled: bool = True  # whether a later change would show in the stamp


def of(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """sha256 in hexadecimal of files below a folder.

    MissingInput for a file that is not there, DataError for one that cannot be read or lies outside.
    """
    remembered, known, unread = _remembered(root), dict[Path, str](), dict[Path, Stamp]()
    for path in files:
        now = stamp(path)
        then, _, sha256 = remembered.get(key(root, path), "").rpartition(" ")
        if then == str(now):
            known[path] = sha256
        else:
            unread[path] = now
    del remembered  # megabytes, and `remember` reads it again
    if unread:
        begun, settled = time.monotonic(), {path for path, now in unread.items() if now.settled}
        found = dict(zip(unread, in_order(_sum, unread), strict=True))
        remember(root, {path: Sum(unread[path], found[path], path in settled) for path in unread})
        known |= found
        _log.info("%s: %d files read for their checksums in %.1f s", root, len(unread), time.monotonic() - begun)
    return {path: known[path] for path in files}


def unread(root: Path, files: Iterable[Path]) -> list[Path]:
    """Those files below a folder whose checksum, as they are now, is not known."""
    remembered = _remembered(root)
    return [path for path in files if remembered.get(key(root, path), "").rpartition(" ")[0] != str(stamp(path))]


def contradicted(root: Path, sums: Mapping[Path, Sum]) -> set[Path]:
    """Files that look as they did, but had another checksum then."""
    remembered = _remembered(root)
    then = ((path, one, remembered.get(key(root, path), "").rpartition(" ")) for path, one in sums.items())
    return {path for path, one, (stamp, _, sum_) in then if stamp == str(one.stamp) and sum_ != one.sha256}


def remember(root: Path, sums: Mapping[Path, Sum]) -> None:
    """Keep the checksums of files, beside what is known of others, unless they changed a moment ago."""
    entries = _remembered(root)
    entries |= {key(root, path): f"{one.stamp} {one.sha256}" for path, one in sums.items() if one.settled}
    content = json.dumps({"root": str(root.resolve()), "files": entries})
    with contextlib.suppress(OSError):  # a full or read-only home costs the next run time, nothing else
        write_whole(_place(root), content.encode())


def folder_id(root: Path) -> str:
    """What a folder's file in the cache is called."""
    return hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def key(root: Path, path: Path) -> str:
    """A file's path in its folder; DataError if it lies outside."""
    below, whole = f"{root}{os.sep}", str(path)
    if whole.startswith(below):  # pathlib says the same, but then keeps the parts of every path in memory
        return whole[len(below) :]
    try:
        return str(path.relative_to(root))
    except ValueError as error:
        raise DataError(f"{path}: lies outside {root}") from error


def stamp(path: Path) -> Stamp:
    """MissingInput if there is no such file, DataError if nothing can be known of it."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: there is no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def in_order(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """What threads make of items, in their order, with few of them in memory at any time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) >= WAITING:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()


def _place(root: Path) -> Path:
    return cache_home() / "checksums" / f"{folder_id(root)}.json"


def _remembered(root: Path) -> dict[str, str]:
    """Stamp and sha256 of the files of a folder, by their path in it; nothing where it cannot be read."""
    try:
        content = json.loads(_place(root).read_bytes())
        files = content["files"] if content["root"] == str(root.resolve()) else {}
        return {name: one for name, one in files.items() if type(one) is str}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _sum(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error

"""Published data sets, downloaded, verified and unpacked: whole, or kept apart until they are.

archives/NAME/     what was downloaded (`transfer`)
NAME.incomplete/   unpacked so far; nothing reads it, and the next attempt begins it anew
NAME/              whole
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segbench.data import archive, transfer
from segbench.data.facts import Archive, Published
from segbench.data.transfer import Tell
from segbench.errors import MissingInput
from segbench.files import free_bytes, fsync_folder, said_bytes, writing


def get(known: Published, home: Path, check: Callable[[Path], object], keep: bool, tell: Tell) -> Path:
    """Download all archives of a data set, unpack them, and return its folder below the data folder.

    `check` raises for a folder that is not complete. MissingInput where the server, the connection or the disk end it,
    and the same call goes on; DataError for an archive that is not the published one.
    """
    own, unfinished, store = home / known.name, home / f"{known.name}.incomplete", home / "archives" / known.name
    with writing(home), _alone(known, store):
        if own.is_dir() and any(own.iterdir()):
            raise MissingInput(f"{own}: is there, but not complete; move it away, or name another folder with --data")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        _preflight(known, home, store)
        packed = [transfer.fetch(one, store, tell) for one in known.archives]
        total = sum(map(archive.size, packed))
        _require(home, total, f"unpacking {known.title}")
        _unpack(known.archives, packed, unfinished, lambda done: tell(f"unpacking {known.name}", done, total))
        check(unfinished)
        os.sync()  # once for all files: one by one takes minutes on a slow disk
        unfinished.rename(own)
        fsync_folder(home)
        if not keep:
            shutil.rmtree(store)
    return own


def _unpack(archives: Sequence[Archive], packed: Sequence[Path], into: Path, tell: Callable[[int], object]) -> None:
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        tell(done)

    for one, path in zip(archives, packed, strict=True):
        archive.unpack(path, into / one.into, told)


def _preflight(known: Published, home: Path, store: Path) -> None:
    """MissingInput if the disk cannot hold what is to come; archives of images unpack to about their own size."""
    to_come = sum(max(0, (one.bytes or 0) - transfer.there(one, store)) for one in known.archives)
    unpacked = sum(one.bytes or 0 for one in known.archives)
    _require(home, to_come + unpacked, f"downloading and unpacking {known.title}")


def _require(home: Path, needed: int, what: str) -> None:
    free = free_bytes(home)
    if needed > free:
        raise MissingInput(
            f"{home}: {what} takes {said_bytes(needed)} ({needed:,} bytes), but {said_bytes(free)} ({free:,} bytes) are"
            " free; make room, or name another folder with --data"
        )


@contextlib.contextmanager
def _alone(known: Published, store: Path) -> Iterator[None]:
    """MissingInput while another process gets the same data set; a dead one's lock is free."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with (store.parent / f".{known.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MissingInput(f"{store}: another process is getting {known.title}; wait until it has ended") from error
        yield

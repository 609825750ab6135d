"""Where a run keeps its cells: files that are there whole or not at all, each checked when it is read.

    OUT/<model>/<task>/<fingerprint[:16]>/
        cell.json             the finished cell: its header, facts and measures, and the sha256 of every other file
        NAME.safetensors      arrays
        checkpoint*           while the cell is computed
        provenance.json       when, where and how long; the only file that differs between equal runs
        failure.txt           the last crash

No file is ever rewritten in place, and no file is shared by cells, so runs may share a folder.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy

from segbench.errors import CellError, StoreError
from segbench.files import FULL, TEMPORARY, free_bytes, said_bytes, set_aside, write_whole
from segbench.records import Record, canonical, digest, measure, measure_facts, readable
from segbench.types import Measure

CELL = "cell.json"
CHECKPOINTS = "checkpoint*.safetensors"
FAILURE = "failure.txt"
PROVENANCE = "provenance.json"

_log = logging.getLogger(__name__)
_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9._=~-]{0,63}")
_ARRAYS_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    model: str
    revision: str
    task: str
    kind: str
    seed: int
    limit: int | None
    fingerprint: str
    about: dict[str, Any]
    measures: tuple[Measure, ...]
    model_card: dict[str, Any]
    task_spec: dict[str, Any]
    path: Path
    examples: int | None = None  # how many the kind was asked to keep
    inputs: dict[str, Any] | None = None  # what the fingerprint is the digest of

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Arrays that the kind saved, checked; StoreError when they are not what was saved."""
        return _load_arrays(self.path / f"{name}.safetensors")[0]

    def records(self) -> list[Record]:
        """One row per measure."""
        return [
            Record(
                self.model, self.revision, self.task, self.fingerprint, self.seed, self.limit,
                m.metric, m.value, m.unit, m.count, m.site, m.key,
                m.interval.low if m.interval else None, m.interval.high if m.interval else None,
            )
            for m in self.measures
        ]  # fmt: skip


class Store:
    """The cells below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cell(self, model: str, task: str, fingerprint: str) -> "Cell":
        """The place of one cell; nothing is created before something is written."""
        return Cell(self.root, model, task, fingerprint)

    def results(self) -> list[Result]:
        """Every finished cell, checked, in the order of the folders' names.

        A damaged cell is set aside, so that it is measured again, and told in a warning.
        """
        found = []
        for path in sorted(self.root.glob(f"[!.]*/[!.]*/*/{CELL}")):
            try:
                found.append(read_result(path.parent))
            except StoreError as error:
                _log.warning("%s", error)
        return found


class Cell:
    """One (model, task) measurement, finished or not. CellError where there is no room to write."""

    def __init__(self, root: Path, model: str, task: str, fingerprint: str) -> None:
        self.model, self.task, self.fingerprint = model, task, fingerprint
        self._place = Path(folder_name(model), folder_name(task), fingerprint[:16])
        self._root = root
        self._about: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}  # what a kind has to say there

    @property
    def path(self) -> Path:
        return self._root / self._place

    def state(self) -> Literal["done", "started", "absent"]:
        if (self.path / CELL).exists():
            return "done"
        return "started" if any(self.path.glob(CHECKPOINTS)) else "absent"

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the cell while it is computed: False when another process does. A dead owner's lock is free."""
        path = self._root / ".locks" / "+".join(self._place.parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            self._sweep()
            yield True

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep arrays of the finished cell, in one file that is written whole."""
        if not _ARRAYS_NAME.fullmatch(name) or name.startswith("checkpoint"):
            raise CellError(f"{name!r} cannot name a file of arrays; expected lower case letters, digits, _ and -")
        _write(self.path / f"{name}.safetensors", _packed(arrays, {}))

    def save_checkpoint(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], part: str = "") -> None:
        """Keep the state of an unfinished cell, or of a part of it, in place of the one before."""
        _write(self._checkpoint(part), _packed(arrays, facts))

    def load_checkpoint(self, part: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """The last checkpoint; a damaged one is set aside and None is returned, as if there had been none."""
        if not self._checkpoint(part).exists():
            return None
        try:
            return _load_arrays(self._checkpoint(part))
        except StoreError as error:
            _log.warning("%s; starting from the beginning", error)
            return None

    def about(self, facts: Mapping[str, Any]) -> None:
        """Add facts that go into the finished cell: anything JSON can hold."""
        canonical(facts)
        self._about |= facts

    def finish(self, header: Mapping[str, Any], measures: Sequence[Measure]) -> None:
        """Write the cell down and drop its checkpoint. CellError for NaN or infinity in a measure."""
        files = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.path.glob("*.safetensors"))
            if not path.match(CHECKPOINTS)
        }
        names = {"model": self.model, "task": self.task, "fingerprint": self.fingerprint}
        given = {key: value for key, value in header.items() if value is not None}
        cell = {**given, **names, "about": self._about, "files": files, "measures": [*map(measure_facts, measures)]}
        _write(self.path / CELL, readable({"cell": cell, "sha256": digest(cell)}).encode())
        self._sweep()

    def result(self) -> Result:
        """The finished cell, every file of it checked; StoreError when it is damaged or not finished."""
        return read_result(self.path)

    def reopen(self) -> None:
        """Make a finished cell unfinished, so that it is measured again."""
        (self.path / CELL).unlink(missing_ok=True)

    def note(self, name: str, text: str) -> None:
        """Keep a text beside the cell that is no part of it: provenance or a failure."""
        _write(self.path / name, text.encode())

    def _sweep(self) -> None:
        """Remove what killed processes left, and what a finished cell does not need. Only under the lock."""
        for path in self.path.glob(f"{TEMPORARY}*"):
            path.unlink(missing_ok=True)
        if self.state() == "done":
            for path in (*self.path.glob(CHECKPOINTS), self.path / FAILURE):
                path.unlink(missing_ok=True)

    def _checkpoint(self, part: str) -> Path:
        return self.path / CHECKPOINTS.replace("*", f"-{part}" if part else "")


def folder_name(name: str) -> str:
    """A folder for any name: the name itself where it is plain, else a readable part and a hash; never shared.

    The `+` keeps the two apart, as no plain name holds one.
    """
    if _PLAIN_NAME.fullmatch(name):
        return name
    readable_part = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{readable_part}+{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def read_result(folder: Path) -> Result:
    """The finished cell in a folder. Whatever does not match its checksum is set aside and StoreError is raised."""
    path = folder / CELL
    try:
        document = json.loads(path.read_bytes())
        cell = document["cell"]
        whole = document["sha256"] == digest(cell)
        place = (folder_name(cell["model"]), folder_name(cell["task"]), cell["fingerprint"][:16])
        files = {Path(name).name: expected for name, expected in cell["files"].items()}  # never outside the cell
    except FileNotFoundError as error:
        raise StoreError(f"{folder} holds no finished cell") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, CellError) as error:
        raise StoreError(set_aside(path, f"cannot be read ({type(error).__name__}: {error})")) from error
    if not whole:
        raise StoreError(set_aside(path, "does not match its own sha256"))
    if folder.resolve().parts[-3:] != place:
        raise StoreError(set_aside(path, f"belongs into {'/'.join(place)}"))
    for name, expected in files.items():
        try:
            matches = hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected
        except OSError as error:
            raise StoreError(set_aside(path, f"lists {name}, which cannot be read ({error.strerror})")) from error
        if not matches:
            problem = set_aside(folder / name, "does not match its sha256 in the finished cell")
            raise StoreError(set_aside(path, f"lists a damaged file: {problem}"))
    named = {field.name: cell.get(field.name) for field in fields(Result)}
    return Result(**{**named, "measures": tuple(map(measure, cell["measures"])), "path": folder})


def _write(path: Path, data: bytes) -> None:
    """Write a file of a cell whole; CellError, with what is missing, where the disk is full."""
    try:
        write_whole(path, data)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise CellError(
            f"{path}: no room ({error.strerror}): {said_bytes(len(data))} are to be written and "
            f"{said_bytes(free_bytes(path.parent))} are free; make room and give the same command again: "
            "it goes on from what was finished"
        ) from error


def _packed(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    """One safetensors file that holds its own checksum, over facts, names, types, shapes and contents."""
    ready = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in ready.items():
        if array.dtype.kind not in "biuf":
            raise CellError(f"array {name!r} of type {array.dtype} cannot be kept")
    ready = {name: array.astype(array.dtype.newbyteorder("="), order="C") for name, array in ready.items()}
    header = {"sha256": _contents(ready, facts), "facts": facts}
    try:
        return safetensors.numpy.save(ready, {"segbench": canonical(header)})  # one key: their order is not kept
    except safetensors.SafetensorError as error:
        raise CellError(f"arrays cannot be kept: {error}") from error


def _load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts of a file that `_packed` made; a damaged one is set aside and StoreError raised."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            header = json.loads(file.metadata()["segbench"])
        whole = header["sha256"] == _contents(arrays, header["facts"])
    except FileNotFoundError as error:
        raise StoreError(f"{path} is not there") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError) as error:
        raise StoreError(set_aside(path, f"cannot be read ({type(error).__name__}: {error})")) from error
    if not whole:
        raise StoreError(set_aside(path, "does not match its sha256"))
    return arrays, header["facts"]


def _contents(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> str:
    total = hashlib.sha256(canonical(facts).encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(canonical([name, str(array.dtype), list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()

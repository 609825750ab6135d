"""Where states of images rest: in memory, or in one flat file per site beside a JSON header with its checksum."""

import hashlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from segbench.adapters.base import Features
from segbench.errors import CellError, StoreError
from segbench.files import FULL, TEMPORARY, free_bytes, said_bytes, set_aside, sha256, write_whole
from segbench.records import canonical, digest
from segbench.types import Site

Make = Callable[[str, int], "Rows"]  # room for so many images under a name

_log = logging.getLogger(__name__)
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class Rows(ABC):
    """States of the images of a split, one tensor an image, in the order in which they are added."""

    home: torch.device  # where they lie, or leave for the disk: states that are there take no more memory when added

    @abstractmethod
    def add(self, states: Float[Tensor, "b s d"]) -> None:
        """The states of the next images."""

    @abstractmethod
    def __getitem__(self, index: int) -> Float[Tensor, "s d"]: ...

    @abstractmethod
    def forget(self, images: Iterable[int]) -> None:
        """Nobody will ask for these images again."""

    @abstractmethod
    def finish(self) -> None:
        """All images were added."""

    @abstractmethod
    def drop(self) -> None:
        """None of them is needed any more."""


class InMemory(Rows):
    """On a device, or in the memory of the host."""

    def __init__(self, device: torch.device) -> None:
        self.home = device
        self._rows: dict[int, Tensor] = {}

    def add(self, states: Float[Tensor, "b s d"]) -> None:
        self._rows |= enumerate(states.to(self.home).unbind(), len(self._rows))

    def __getitem__(self, index: int) -> Float[Tensor, "s d"]:
        return self._rows[index]

    def forget(self, images: Iterable[int]) -> None:
        for index in images:
            del self._rows[index]

    def finish(self) -> None:
        pass

    def drop(self) -> None:
        self._rows.clear()


class OnDisk(Rows):
    """One flat file, whole or not there; a killed process finds what it had finished before.

    The checksum is compared when a file of an earlier process is opened. CellError when the disk is full.
    """

    home = torch.device("cpu")

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self._temporary = path.with_name(TEMPORARY + path.name)
        self._places: list[list[int]] = []  # first byte, and shape
        self._dtype = torch.float32
        self._digest, self._end = hashlib.sha256(), 0
        self._temporary.unlink(missing_ok=True)
        self._file: int | None = None

    @classmethod
    def found(cls, path: Path, count: int) -> "OnDisk | None":
        """What an earlier process finished; None where there is nothing, or nothing whole, which is set aside."""
        if not _beside(path).exists():
            return None  # killed before it was finished, if it was begun
        rows = cls(path, count)
        try:
            rows._places, rows._dtype = _checked(path, count)
            rows._file = os.open(path, os.O_RDONLY)
        except StoreError as error:
            for one in filter(Path.exists, (path, _beside(path))):  # neither is of use without the other
                aside = path.parent.parent  # the folder itself goes when the cell is finished
                _log.warning("%s; it is made anew", set_aside(one, str(error), aside))
            return None
        return rows

    def add(self, states: Float[Tensor, "b s d"]) -> None:
        flat = states.contiguous().cpu()
        self._dtype = flat.dtype
        data = flat.view(torch.uint8).numpy()
        try:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            for row in data:
                view = memoryview(row.reshape(-1))
                start = self._end
                while self._end < start + len(view):
                    self._end += os.pwrite(self._file, view[self._end - start :], self._end)
                self._digest.update(view)
                self._places.append([start, *flat.shape[1:]])
        except OSError as error:
            raise self._failed(error, len(data[0].reshape(-1))) from error

    def __getitem__(self, index: int) -> Float[Tensor, "s d"]:
        start, *shape = self._places[index]
        assert self._file is not None, "nothing was added"
        buffer = bytearray(self._dtype.itemsize * shape[0] * shape[1])
        view = memoryview(buffer)
        while view:
            read = os.preadv(self._file, [view], start)
            if not read:
                raise CellError(f"{self.path} ends too early: it was changed while it was read; run again")
            view, start = view[read:], start + read
        return torch.frombuffer(buffer, dtype=self._dtype).view(*shape)

    def forget(self, images: Iterable[int]) -> None:
        pass

    def finish(self) -> None:
        if self._file is None:
            return
        rows = {"dtype": str(self._dtype), "places": self._places, "sha256": self._digest.hexdigest()}
        header = canonical({"rows": rows, "sha256": digest(rows)}).encode()
        try:
            os.fsync(self._file)
            self._temporary.replace(self.path)
            write_whole(_beside(self.path), header)
        except OSError as error:
            raise self._failed(error, len(header)) from error

    def drop(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        for path in (_beside(self.path), self.path, self._temporary):
            path.unlink(missing_ok=True)

    def _failed(self, error: OSError, each: int) -> Exception:
        """What to raise where a write failed; `each` is the bytes of an image, or of the header, which comes last."""
        done = len(self._places)
        self.drop()
        if error.errno not in FULL:
            return error
        return CellError(
            f"{self.path.parent}: no room ({error.strerror}) for the features at {self.path.stem}: {done} of "
            f"{self.count} images were written, {said_bytes(each * max(1, self.count - done))} are missing and "
            f"{said_bytes(free_bytes(self.path.parent))} are free; make room and give the same command again: "
            "it goes on from what was finished"
        )


def at_home(features: Features, rows: Mapping[Site, Rows]) -> Features:
    """Features where the rows of their sites lie: all that takes memory, before the first of them is added."""
    return {site: states.to(rows[site].home) for site, states in features.items()}


def _beside(path: Path) -> Path:
    return path.with_suffix(path.suffix + ".json")


def _checked(path: Path, count: int) -> tuple[list[list[int]], torch.dtype]:
    """Where the images lie in a file, and as what, by its header; StoreError where either of them is damaged."""
    try:
        document = json.loads(_beside(path).read_bytes())
        rows = document["rows"]
        if document["sha256"] != digest(rows) or len(rows["places"]) != count:
            raise StoreError("does not match the checksum of its header")
        if rows["sha256"] != sha256(path):
            raise StoreError("does not match its checksum")
        return rows["places"], _DTYPES[rows["dtype"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, CellError) as error:
        raise StoreError(f"cannot be read ({type(error).__name__}: {error})") from error

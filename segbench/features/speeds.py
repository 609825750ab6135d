"""What the estimates stand on, measured here and now: sizes, a forward pass, a disk, and what is free."""

import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segbench.features.estimate import Costs, Room, host_memory
from segbench.features.memory import MicroBatch
from segbench.features.source import checked
from segbench.features.work import Work
from segbench.files import free_bytes
from segbench.kernels import Target
from segbench.types import Site

TIMED = 4  # images whose forward pass is timed
RATED = 1 << 26  # bytes that are written and read to see how quick a disk is

_log = logging.getLogger(__name__)


def room(device: torch.device | str, folder: Path, shared_by: int = 1) -> Room:
    """What is free now, for each of so many processes that share the host; every GPU has one."""
    device, disk = torch.device(device), free_bytes(folder) // shared_by
    host = host_memory() // shared_by
    if device.type == "cuda":
        return Room({"device": torch.cuda.mem_get_info(device)[0], "host": host}, disk)
    return Room({"host": host}, disk)


def measured(work: Work) -> Costs:
    """Sizes and speeds, from a few images of the training split."""
    adapter, few = work.adapter, range(min(TIMED, len(work.train), work.micro_batch.images))
    train, _ = work.streamed(work.sites)
    micro_batch = MicroBatch(len(few))  # its own: a cell may never hold all sites of so many images
    sums: dict[Site | str, float] = dict.fromkeys((*work.sites, "states", "labels", "encode", "forward"), 0)

    def timed(images: Sequence[int]) -> list[tuple[Site | str, int | float]]:
        found: list[tuple[Site | str, int | float]] = []
        for batch in adapter.batches([checked(work.train, index) for index in images]):
            begun = _now(adapter.device)
            encoded = adapter.encode(batch)
            between = _now(adapter.device)
            features = adapter.decode(encoded, work.sites)
            found += [("encode", between - begun), ("forward", _now(adapter.device) - begun)]
            found += ((site, _bytes(tensor)) for site, tensor in features.items())
            found.append(("states", _bytes(encoded.call) + _bytes(encoded.image)))
            targets = map(train.ground_truth, batch.grids, batch.masks)
            found.append(("labels", sum(_target_bytes(target, len(work.train.classes)) for target in targets)))
        return found

    next(micro_batch.each([0], timed))  # the first pass of a process is slower
    for found in micro_batch.each(few, timed):
        for what, much in found:
            sums[what] += much
    per_image = {site: int(sums[site]) // len(few) for site in work.sites}
    heaviest = work.load.images * sum(per_image.values())
    write, read = _rates(work.folder, min(RATED, heaviest))
    states, labels, encode, forward = (sums[what] / len(few) for what in ("states", "labels", "encode", "forward"))
    return Costs(per_image, int(states), int(labels), forward, encode, write, read)


def _rates(folder: Path, count: int) -> tuple[float, float]:
    """Bytes per second written to a folder's disk, and read from it, without what memory keeps of them.

    Next to nothing where nothing can be written, so that no policy that writes is the quickest.
    """
    try:
        return _timed_rates(folder, count)
    except OSError as error:
        _log.warning("features: %s cannot be written (%s)", folder, error.strerror)
        return 1.0, 1.0


def _timed_rates(folder: Path, count: int) -> tuple[float, float]:
    data = os.urandom(1 << 20)
    times = max(1, count >> 20)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryFile(dir=there) as file:
        begun = time.monotonic()
        for _ in range(times):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        written = time.monotonic()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        between = time.monotonic()
        while file.read(len(data)):
            pass
        read = time.monotonic()
    size = len(data) * times
    return size / max(1e-6, written - begun), size / max(1e-6, read - between)


def _bytes(value: Any) -> int:
    """Of all tensors in the arguments of a call."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, parts))


def _target_bytes(target: Target, classes: int) -> int:
    """Of labels and validity, and of the up-sampled labels per patch and class that a loss keeps beside them."""
    h, w = target.grid_map.grid
    return _bytes([target.labels, target.valid]) + 4 * h * w * classes


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()

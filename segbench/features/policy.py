"""Where features live while probes are trained, chosen by arithmetic: what it takes, what is there, how long it lasts.

* `stream` runs the model again in every epoch and keeps nothing.
* `memory` runs it once and holds the features of all sites.
* `sweep` runs it once, block by block, and holds the states of one layer.
* `groups` holds as many sites at a time as fit, and runs the model once per group, as deep as the group needs.
* `disk` is the sweep with its layer in a file, or, where a model cannot be stepped through, every site in a file.

All give the same numbers. `auto` takes the quickest that fits.
"""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from segbench.adapters.base import Adapter, Features
from segbench.adapters.stepping import Stepper
from segbench.errors import ModelError
from segbench.features.estimate import Chosen, Costs, Estimate, Load, Room, estimated, host_memory
from segbench.features.memory import MicroBatch
from segbench.features.rows import InMemory, OnDisk, Rows, at_home
from segbench.features.source import Held, Streamed, checked
from segbench.features.sweep import Stage, Sweep
from segbench.files import free_bytes
from segbench.kernels import Target
from segbench.team import Team
from segbench.types import Dataset, Site

Policy = Literal["auto", "stream", "memory", "sweep", "disk", "groups"]
Progress = Callable[[int], None]  # called with the number of images that were just worked on

ORDER: tuple[Chosen, ...] = ("memory", "sweep", "groups", "stream", "disk")  # among equally quick ones
TIMED = 4  # images whose forward pass is timed
RATED = 1 << 26  # bytes that are written and read to see how quick a disk is

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What the probes of a cell read."""

    adapter: Adapter
    train: Dataset
    val: Dataset
    sites: tuple[Site, ...]
    micro_batch: MicroBatch
    reads: int  # of an image's features, over all epochs
    folder: Path  # where files may lie
    team: Team = field(default_factory=Team)

    @property
    def load(self) -> Load:
        """What one process of the team reads, at most."""
        images = max(len(a) + len(b) for a, b in zip(*map(self.team.parts, self._lengths), strict=True))
        return Load(self.sites, images, -(-self.reads // self.team.size))

    @property
    def own(self) -> int:
        """Images of both splits that this process reads once."""
        return sum(len(self.team.part(length)) for length in self._lengths)

    @property
    def _lengths(self) -> tuple[int, int]:
        return len(self.train), len(self.val)

    def streamed(self, sites: Sequence[Site]) -> tuple[Streamed, Streamed]:
        """Both splits, by forward passes."""
        train, val = (Streamed(self.adapter, one, sites, self.micro_batch, self.team) for one in (self.train, self.val))
        return train, val


@dataclass(frozen=True)
class Plan:
    """A chosen policy, and what was known of all."""

    work: Work
    costs: Costs
    chosen: Estimate
    estimates: tuple[Estimate, ...]
    stepper: Stepper | None

    def facts(self) -> dict[str, Any]:
        """For the provenance of a cell."""
        told = [str(one) for one in self.estimates]
        refused = next(one.refused for one in self.estimates if one.policy == "sweep")
        return {"policy": self.chosen.policy, "estimates": told, "costs": self.costs.facts(), "refused": refused}

    def stages(self, done: Sequence[Site], progress: Progress) -> Iterator[Stage]:
        """The groups of sites with their features, one after the other; each lasts until the next one is asked for."""
        groups = [tuple(site for site in group if site not in done) for group in self.chosen.groups]
        left = [site for group in groups for site in group]
        if not left:
            return
        home = torch.device("cpu") if self.chosen.place == "host" else self.work.adapter.device
        if self.chosen.policy == "stream":
            yield Stage(tuple(left), *self.work.streamed(left))
        elif self.chosen.policy in ("memory", "groups"):
            for group in filter(None, groups):
                yield from self._read_at_once(group, home, progress)
        elif self.stepper and self.chosen.place == "disk":
            yield from Sweep(self.stepper, self.work.streamed(left), self._file, self._found, progress).stages(left)
        elif self.stepper:
            held = partial(_in_memory, home), _nothing
            yield from Sweep(self.stepper, self.work.streamed(left), *held, progress).stages(left)
        else:
            yield from self._cached(left, progress)

    def _read_at_once(self, group: tuple[Site, ...], home: torch.device, progress: Progress) -> Iterator[Stage]:
        """One stage, whose sites one forward pass over all images leaves in memory."""
        rows = [{site: InMemory(home) for site in group} for _ in range(2)]
        splits = self.work.streamed(group)
        train, val = (_held(one, its, progress) for one, its in zip(splits, rows, strict=True))
        yield Stage(group, train, val)
        for its in rows:
            for one in its.values():
                one.drop()

    def _cached(self, sites: Sequence[Site], progress: Progress) -> Iterator[Stage]:
        """One stage per site, each from its own files, which one forward pass over all images writes."""
        rows: list[dict[Site, Rows]] = []
        targets = []
        for name, one in zip(("train", "val"), self.work.streamed(sites), strict=True):
            part = one.team.part(len(one.dataset))
            count = len(part)
            found = {site: self._found(f"{name}-{site}-patches", count) for site in sites}
            made = {site: self._file(f"{name}-{site}-patches", count) for site in sites if found[site] is None}
            if made:
                split = Streamed(self.work.adapter, one.dataset, tuple(made), self.work.micro_batch, self.work.team)
                targets.append(_filled(split, made, progress))
            else:
                targets.append([one.target(index) for index in part])
            rows.append({site: found[site] or made[site] for site in sites})
        for site in sites:
            train, val = (
                Held(one, {site: its[site].__getitem__}, theirs)
                for one, its, theirs in zip(self.work.streamed([site]), rows, targets, strict=True)
            )
            yield Stage((site,), train, val)
            for its in rows:
                its[site].drop()

    def _file(self, name: str, count: int) -> Rows:
        return OnDisk(self.work.folder / f"{name}.raw", count)

    def _found(self, name: str, count: int) -> Rows | None:
        return OnDisk.found(self.work.folder / f"{name}.raw", count)


def choose(work: Work, policy: Policy) -> Plan:
    """The policy that was asked for, or the quickest that fits, also in place of one that the model cannot have.

    All processes of a team choose by what the first one measured.
    """
    stepper, refused = _stepper(work)
    if refused := next(filter(None, map(bytes.decode, work.team.exchange(refused.encode()))), ""):
        stepper = None  # also where another process could: what memory it has is its own
    told = work.team.agree([measured(work).facts(), vars(room(work.adapter.device, work.folder, work.team.here))])
    costs = Costs.of(told[0])
    estimates = estimated(work.load, costs, Room(**told[1]), refused)
    able = [one for one in estimates if one.policy == policy and not one.refused]
    if able:
        chosen = next((one for one in able if one.fits), able[-1])
    else:
        fitting = [one for one in estimates if one.fits]
        chosen = min(fitting, key=lambda one: (one.seconds or 0.0, ORDER.index(one.policy)))
        if policy != "auto":
            reason = next(one.refused for one in estimates if one.policy == policy)
            _log.warning("features: no %s (%s); %s in its place", policy, reason, chosen.policy)
    for one in estimates:
        _log.info("features: %s%s", one, " <- chosen" if one is chosen else "")
    return Plan(work, costs, chosen, estimates, stepper)


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


def _held(streamed: Streamed, rows: Mapping[Site, Rows], progress: Progress) -> Held:
    targets = _filled(streamed, rows, progress)
    return Held(streamed, {site: one.__getitem__ for site, one in rows.items()}, targets)


def _filled(streamed: Streamed, rows: Mapping[Site, Rows], progress: Progress) -> list[Target]:
    """One forward pass over this process's part of a split, whose features go into `rows`; the targets."""
    found: list[Target] = []

    def forward(images: Sequence[int]) -> list[tuple[Features, list[Target]]]:
        return [(at_home(features, rows), targets) for features, targets in streamed.read(images)]

    for batches in streamed.micro_batch.each(streamed.team.part(len(streamed.dataset)), forward):
        for features, targets in batches:
            for site, one in rows.items():
                one.add(features[site])
            found += targets
            progress(len(targets))
    for one in rows.values():
        one.finish()
    return found


def _stepper(work: Work) -> tuple[Stepper | None, str]:
    """What steps through the model's blocks, or why nothing can."""
    adapter = work.adapter
    batch = next(adapter.batches([checked(work.train, 0)]))
    (encoded,) = MicroBatch(1).each([batch], lambda batches: adapter.encode(*batches))
    try:
        return Stepper.of(adapter, encoded), ""
    except ModelError as error:
        return None, str(error)


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


def _in_memory(home: torch.device, name: str, count: int) -> Rows:
    return InMemory(home)


def _nothing(name: str, count: int) -> None:
    """What a process before this one left in memory."""

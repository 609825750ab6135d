"""Where features live while probes are trained, chosen by arithmetic: what it takes, what is there, how long it lasts.

* `stream` runs the model again in every epoch and keeps nothing.
* `memory` runs it once and holds the features of all sites.
* `sweep` runs it once, block by block, and holds the states of one layer.
* `groups` holds as many sites at a time as fit, and runs the model once per group, as deep as the group needs.
* `disk` is the sweep with its layer in a file, or, where a model cannot be stepped through, every site in a file.

All give the same numbers. `auto` takes the quickest that fits.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from segbench.adapters.base import Features
from segbench.adapters.stepping import Stepper
from segbench.errors import ModelError
from segbench.features.estimate import Chosen, Costs, Estimate, Room, estimated
from segbench.features.memory import MicroBatch
from segbench.features.rows import InMemory, OnDisk, Rows, at_home
from segbench.features.source import Held, Streamed, checked
from segbench.features.speeds import measured, room
from segbench.features.sweep import Stage, Sweep
from segbench.features.work import Work
from segbench.kernels import Target
from segbench.types import Site

Policy = Literal["auto", "stream", "memory", "sweep", "disk", "groups"]
Progress = Callable[[int], None]  # called with the number of images that were just worked on

ORDER: tuple[Chosen, ...] = ("memory", "sweep", "groups", "stream", "disk")  # among equally quick ones (to 1 ms)

_log = logging.getLogger(__name__)


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
        chosen = min(fitting, key=lambda one: (round(one.seconds or 0.0, 3), ORDER.index(one.policy)))
        if policy != "auto":
            reason = next(one.refused for one in estimates if one.policy == policy)
            _log.warning("features: no %s (%s); %s in its place", policy, reason, chosen.policy)
    for one in estimates:
        _log.info("features: %s%s", one, " <- chosen" if one is chosen else "")
    return Plan(work, costs, chosen, estimates, stepper)


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


def _in_memory(home: torch.device, name: str, count: int) -> Rows:
    return InMemory(home)


def _nothing(name: str, count: int) -> None:
    """What a process before this one left in memory."""

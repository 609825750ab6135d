"""What every policy takes, by arithmetic: bytes, what is free, and seconds where an image's forward pass was timed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from segbench.files import said_bytes
from segbench.types import Site

Chosen = Literal["stream", "memory", "sweep", "disk", "groups"]

SHARES = {"host": 0.5, "device": 0.8, "disk": 0.9}  # of what is free; a host is shared with others
ENCODER = Site("encoder")


@dataclass(frozen=True)
class Costs:
    """What an image costs, as it was measured on a few. Without the seconds: as far as a checkpoint's config tells."""

    sites: Mapping[Site, int]  # bytes of the features
    states: int  # bytes of the whole sequence before a block, and of what else the blocks are called with
    labels: int  # bytes of the ground truth
    forward: float | None = None  # seconds
    encode: float = 0.0  # seconds of what comes before the LLM
    write: float = 1.0  # bytes per second to and from the folder for files
    read: float = 1.0

    def facts(self) -> dict[str, Any]:
        """For the provenance of a cell; `of` reads it."""
        return vars(self) | {"sites": {str(site): count for site, count in self.sites.items()}}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Costs":
        """What `facts` gave; TypeError, KeyError or SpecError for anything else."""
        return cls(**{**facts, "sites": {Site.parse(text): int(count) for text, count in facts["sites"].items()}})


@dataclass(frozen=True)
class Load:
    """How much a cell reads."""

    sites: tuple[Site, ...]
    images: int  # of both splits
    reads: int  # of an image's features, over all epochs


@dataclass(frozen=True)
class Room:
    """Bytes that are free: beside the model and on the host, and where files may lie."""

    memory: Mapping[Literal["device", "host"], int]
    disk: int


@dataclass(frozen=True)
class Estimate:
    """What one policy takes."""

    policy: Chosen
    how: str  # in words
    place: Literal["host", "device", "disk", "nowhere"]
    bytes: int
    free: int
    seconds: float | None  # of forward passes, reading and writing; the probes' own work is the same for all
    groups: tuple[tuple[Site, ...], ...]  # sites whose probes are trained together, one group after the other
    refused: str = ""  # why it cannot be had

    @property
    def fits(self) -> bool:
        return not self.refused and (self.place == "nowhere" or self.bytes <= SHARES[self.place] * self.free)

    def __str__(self) -> str:
        there = f" of {said_bytes(self.free)} free" if self.place != "nowhere" else ""
        verdict = f" ({self.refused or 'does not fit'})" if not self.fits else ""
        took = "" if self.seconds is None else f", about {self.seconds:.3g} s"
        return f"{self.policy}: {self.how}, {said_bytes(self.bytes)}{there}{took}{verdict}"


def estimated(load: Load, costs: Costs, room: Room, refused: str = "") -> tuple[Estimate, ...]:
    """Every policy wherever it could lie; `refused` is why the model cannot be stepped through, if it cannot."""
    n, sites, size = load.images, load.sites, costs.sites
    each = tuple((site,) for site in sites)
    every = sum(size[site] for site in sites)
    forward = costs.forward or 0.0
    once = n * forward
    beside = size[ENCODER] if ENCODER in sites else 0
    for layer in {site.layer for site in sites}:
        streams = [size[site] for site in sites if site.layer == layer and site.stream != "hidden"]
        beside = max(beside, sum(streams))
    found = []
    for place, free in room.memory.items():
        memory = n * (every + costs.labels)
        found.append(Estimate("memory", f"all sites in {place} memory", place, memory, free, once, (sites,)))
        how, needed = f"one layer at a time in {place} memory", n * (costs.states + beside + costs.labels)
        found.append(Estimate("sweep", how, place, needed, free, once, each, refused))
        groups = _packed(sites, size, SHARES[place] * free / n - costs.labels)
        deep = sum(costs.encode + (forward - costs.encode) * _share(group, sites) for group in groups)
        largest = n * (max(sum(size[site] for site in group) for group in groups) + costs.labels)
        how = f"{len(groups)} group(s) of sites in {place} memory"
        found.append(Estimate("groups", how, place, largest, free, n * deep, groups))
    if refused:
        needed, written, passed = n * every, n * every, load.reads * every
    else:
        needed, written = n * (2 * costs.states + beside), n * costs.states * len(sites)
        passed = (load.reads + n) * costs.states * len(sites)
    how = "every site in a file" if refused else "one layer at a time in a file"
    seconds = once + written / costs.write + passed / costs.read
    found.append(Estimate("disk", how, "disk", needed, room.disk, seconds, each))
    how = "a forward pass per epoch"
    found.append(Estimate("stream", how, "nowhere", 0, 0, load.reads * forward, (sites,)))
    return tuple(found if costs.forward is not None else (replace(one, seconds=None) for one in found))


def host_memory() -> int:
    """Free bytes: what Linux says is available, or the pages that are free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _packed(sites: Sequence[Site], size: Mapping[Site, int], room: float) -> tuple[tuple[Site, ...], ...]:
    """The sites in their order, as many together as there is room for, and one at least."""
    groups: list[list[Site]] = []
    for site in sites:
        if groups and sum(size[one] for one in groups[-1]) + size[site] <= room:
            groups[-1].append(site)
        else:
            groups.append([site])
    return tuple(map(tuple, groups))


def _share(group: Sequence[Site], sites: Sequence[Site]) -> float:
    """How much of the LLM that all sites need is needed by a group, at most."""
    last = max(sites.index(site) for site in group)
    return last / max(1, len(sites) - 1)

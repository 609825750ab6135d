"""The layer sweep: the states of all images rest before one block while its probe is trained, then all go on by one.

The LLM runs once per image, not once per image and epoch, and the states of one layer are all that is held.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segbench.adapters.base import ADAPTER, ENCODER, FINAL, Encoded, Features
from segbench.adapters.stepping import Stepper, resting
from segbench.features.rows import Make, Rows, at_home
from segbench.features.source import Held, Streamed, checked
from segbench.kernels import Target
from segbench.types import Site


@dataclass(frozen=True)
class Stage:
    """Some sites, and where their features are read while the stage lasts."""

    sites: tuple[Site, ...]
    train: Held | Streamed
    val: Held | Streamed


@dataclass(frozen=True)
class _Resting:
    """Neighbours in a split that share a batch, without their states."""

    images: range
    encoded: Encoded

    def take(self, images: Sequence[int]) -> Encoded:
        """The batch of these of them."""
        if len(images) == len(self.images):
            return self.encoded
        return self.encoded.take([index - self.images.start for index in images])


@dataclass
class _Split:
    """One split on its way through the blocks."""

    name: str
    streamed: Streamed
    batches: list[_Resting] = field(default_factory=list)
    at: list[Int[Tensor, " t"]] = field(default_factory=list)  # sequence positions of the patches, by image
    targets: list[Target] = field(default_factory=list)
    rows: dict[Site, Rows] = field(default_factory=dict)  # what rests now

    @property
    def part(self) -> range:
        """Which images of the split are this process's; everything here is of these, counted from the first one."""
        return self.streamed.team.part(len(self.streamed.dataset))

    def held(self, site: Site, rests: Site) -> Held:
        """The features of a site, as one reads them from what rests under `rests`."""
        rows = self.rows[rests]

        def patches(index: int) -> Float[Tensor, "t d"]:
            sequence = rows[index]
            return sequence[self.at[index].to(sequence.device)]

        whole = rests.stage == "llm" and rests.stream == "hidden"
        return Held(self.streamed, {site: patches if whole else rows.__getitem__}, self.targets)


class Sweep:
    """The stages of a training and a val split, layer by layer; `found` is what an earlier process left of them."""

    def __init__(
        self,
        stepper: Stepper,
        splits: tuple[Streamed, Streamed],
        make: Make,
        found: Callable[[str, int], Rows | None],
        progress: Callable[[int], None],
    ) -> None:
        self.stepper, self.adapter, self.make, self.found = stepper, stepper.adapter, make, found
        self.splits = tuple(_Split(name, one) for name, one in zip(("train", "val"), splits, strict=True))
        self.progress = progress

    def stages(self, sites: Sequence[Site]) -> Iterator[Stage]:
        """One stage per site, in the order of computation; each lasts until the next one is asked for."""
        hidden = [site for site in sites if site.stream == "hidden" and site != ENCODER]
        deepest = max(_depth(site, self.adapter.depth) for site in sites)
        start = self._rested(sites)
        for split in self.splits:
            self._encode(split, ENCODER in sites, start)
        if ENCODER in sites:
            yield self._stage(ENCODER, ENCODER)
            self._drop(ENCODER)
        for block in range(start, self.adapter.depth + 1):
            here, behind = Site("llm", block), Site("llm", block + 1)
            names = (ADAPTER, here) if block == 0 else (here,)
            for site in (one for one in names if one in hidden):
                yield self._stage(site, here)
            if block == deepest:
                break
            streams = [site for site in sites if site.layer == block and site.stream != "hidden"]
            if block == self.adapter.depth:
                behind = FINAL
            for split in self.splits:
                self._advance(split, block, behind, streams)
            for site in streams:
                yield self._stage(site, site)
                self._drop(site)
            self._drop(here)
            if behind == FINAL:
                yield self._stage(FINAL, FINAL)
        self._drop(*self.splits[0].rows)

    def _rested(self, sites: Sequence[Site]) -> int:
        """The block before which an earlier process left all that is still wanted; 0 where it left nothing."""
        for block in range(self.adapter.depth, 0, -1):
            if any(_depth(site, self.adapter.depth) < block for site in sites if site != ENCODER):
                continue  # its features come before
            if any(site.layer == block - 1 and site.stream != "hidden" for site in sites):
                continue
            here = Site("llm", block)
            found = [self.found(f"{split.name}-{here}", len(split.part)) for split in self.splits]
            if rested := [rows for rows in found if rows is not None]:
                if len(rested) == len(found):
                    for split, rows in zip(self.splits, rested, strict=True):
                        split.rows[here] = rows
                    return block
                for rows in rested:
                    rows.drop()
        return 0

    def _encode(self, split: _Split, encoder: bool, start: int) -> None:
        """Everything before the first block, for every image; its states only where the sweep starts there."""
        part, places = split.part, range(len(split.part))
        wanted = ([ENCODER] if encoder else []) + ([Site("llm", 0)] if start == 0 else [])
        split.rows |= {site: self.make(f"{split.name}-{site}", len(part)) for site in wanted}

        def enter(images: Sequence[int]) -> list[tuple[Encoded, list[Target], Features]]:
            entered = []
            for batch in self.adapter.batches([checked(split.streamed.dataset, index) for index in images]):
                encoded = self.adapter.encode(batch)
                found = {ENCODER: encoded.encoder} if encoder else {}
                found |= {Site("llm", 0): self.stepper.enter(encoded)} if start == 0 else {}
                targets = [*map(split.streamed.ground_truth, batch.grids, batch.masks)]
                entered.append((resting(encoded), targets, at_home(found, split.rows)))
            return entered

        for entered in split.streamed.micro_batch.each(part, enter):
            for encoded, targets, found in entered:
                first = len(split.targets)
                split.batches.append(_Resting(places[first : first + len(targets)], encoded))
                split.at += encoded.image_at.unbind()
                split.targets += targets
                for site, states in found.items():
                    split.rows[site].add(states)
                self.progress(len(targets))
        for site in wanted:
            split.rows[site].finish()

    def _advance(self, split: _Split, block: int, behind: Site, streams: Collection[Site]) -> None:
        """All images by one block, or through the final norm, which counts as one more."""
        here = split.rows[Site("llm", block)]
        made = {site: self.make(f"{split.name}-{site}", len(split.targets)) for site in (behind, *streams)}
        split.rows |= made

        def step(batch: _Resting, images: Sequence[int]) -> tuple[Sequence[int], Features]:
            encoded, states = batch.take(images), torch.stack([here[index] for index in images])
            states = states.to(self.adapter.device)
            if behind == FINAL:
                return images, at_home({FINAL: self.stepper.norm(encoded, states)}, made)
            states, taken = self.stepper.advance(encoded, states, block, streams)
            return images, at_home({behind: states} | taken, made)

        for batch in split.batches:
            for images, found in split.streamed.micro_batch.each(batch.images, partial(step, batch)):
                for site, states in found.items():
                    made[site].add(states)
                here.forget(images)
        for rows in made.values():
            rows.finish()

    def _stage(self, site: Site, rests: Site) -> Stage:
        train, val = (split.held(site, rests) for split in self.splits)
        return Stage((site,), train, val)

    def _drop(self, *sites: Site) -> None:
        for split in self.splits:
            for site in sites:
                split.rows.pop(site).drop()


def _depth(site: Site, depth: int) -> int:
    """The number of blocks behind which a site is known, where the final norm counts as one more."""
    if site.layer == "norm":
        return depth + 1
    return 0 if site.stage != "llm" else site.layer + (site.stream != "hidden")

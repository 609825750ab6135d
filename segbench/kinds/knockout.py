"""Attention knockout: do tokens of one class hold a confusion up, or resolve it? (paper Eq. 1, C.1, Fig. 11)

For a class c and an image, the probe at the adapter site predicts every patch. The wrong patches are those predicted c
whose ground truth is another class; n0 is their number and their dominant ground truth g is the correct class. Then no
image token may attend to the blocked tokens, and n(l) counts all patches wrongly predicted c at layer l, so it may
exceed n0. Persistence is the mean of n(l)/n0; the ratio of sums and the median stand beside it.
"""

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int
from pydantic import Field, field_validator

from segbench import registry
from segbench.errors import CellError, SpecError
from segbench.geometry import patch_labels
from segbench.kinds.base import Job, inherited, probed
from segbench.metrics import persistence
from segbench.specs import Spec, TaskSpec
from segbench.types import IGNORE, Dataset, Measure, Sample, Site

if TYPE_CHECKING:
    from segbench.adapters.base import Batch, Encoded
    from segbench.features import MicroBatch
    from segbench.probes import ProbeBank

BLOCKING = ("incorrect", "correct", "random")
CONDITIONS = ("none", *BLOCKING)


class Params(Spec):
    """Keys of a knockout task. The ground truth of a patch is the majority label of its pixels, ignore excluded."""

    probes: str = Field(description="the probe task whose probes, val images and classes are used")
    classes: tuple[str, ...] | None = Field(default=None, description="the confused classes c; all when left out")
    least: int = Field(default=8, ge=1, description="images with fewer wrong patches are left out, and counted")
    layers: str = Field(default="all", description="the LLM blocks in which tokens are blocked: all, 4 or 8-16")

    @field_validator("layers")
    @classmethod
    def _is_window(cls, text: str) -> str:
        if text != "all" and not re.fullmatch(r"\d+(-\d+)?", text):
            raise ValueError(f"{text!r} is no window of LLM blocks; expected all, 4 or 8-16")
        return text


def requires(params: Params) -> tuple[str, ...]:
    """The probes come from a probe task."""
    return (params.probes,)


def check(params: Params, required: Mapping[str, TaskSpec]) -> None:
    """SpecError for a class that the data of the probe task does not have."""
    classes = probed(params.probes, required).load("val").classes
    for name in params.classes or ():
        _class_id(name, classes, params.probes)


def run(job: Job) -> Iterator[Measure]:
    """Yield persistence in % of n0 per site, condition and class, and over all classes together, in three summaries.

    Arrays `patches`: one row per (image, class) with `n` int32 [m, conditions, sites] and `n0`, `image`, `class` [m].
    Raises SpecError for an unknown class or window, CellError when no image has enough wrong patches.
    """
    from segbench import probes
    from segbench.features import MicroBatch

    params: Params = job.params
    source = job.required[params.probes]
    val = source.params.data.load("val", job.limit)
    probed = map(Site.parse, source.result.about["sites"])
    sites = tuple(site for site in probed if site.is_layer or site.stage == "adapter")
    if Site("adapter") not in sites or len(sites) < 2:
        raise CellError(f"{params.probes} probes no adapter or no LLM layer: a knockout needs both")
    bank = probes.ProbeBank.load(source.result.arrays("probes"), sites, job.adapter.device)
    blocks = sum(site.is_layer for site in job.adapter.sites())
    window = _window(params.layers, blocks)
    confused = [_class_id(name, val.classes, params.probes) for name in params.classes or val.classes]

    micro_batch = MicroBatch(job.batch_size)
    reading = _Reading(job, val, bank, sites, confused, window, micro_batch)
    found: list[_Row] = []
    left_out = dict.fromkeys(confused, 0)
    for start in range(0, len(val), job.batch_size)[job.team.rank :: job.team.size]:
        images = range(start, min(start + job.batch_size, len(val)))
        for rows, few in micro_batch.each(images, reading.rows):
            found += rows
            for c in few:
                left_out[c] += 1
        job.progress(images[-1] + 1, len(val), "knockout")
    job.cell.provenance["micro_batch"] = micro_batch.smallest(job.team)  # below batch_size: memory ran out
    patches = {
        "n": np.reshape([row.n for row in found], (-1, len(CONDITIONS), len(sites))).astype(np.int32),
        "n0": np.asarray([row.n0 for row in found], np.int32),
        "image": np.asarray([row.image for row in found], np.int32),
        "class": np.asarray([row.c for row in found], np.int32),
        "left_out": np.asarray([left_out[c] for c in confused], np.int32),
    }
    patches = _gathered(job.team.gather(patches), confused)
    left_out = dict(zip(confused, patches.pop("left_out").tolist(), strict=True))
    if not len(patches["n0"]):
        raise CellError(f"no val image has {params.least} or more patches wrongly predicted as one of these classes")
    job.cell.save_arrays("patches", patches)
    job.cell.about(
        {
            "classes": [val.classes[c] for c in confused],
            "all_classes": list(val.classes),
            "conditions": list(CONDITIONS),
            "sites": [str(site) for site in sites],
            "layers": params.layers,
            "least": params.least,
            "left_out": {val.classes[c]: count for c, count in left_out.items()},
        }
        | inherited(source.result)
    )
    for name, c in [("all", None), *((val.classes[c], c) for c in confused)]:
        keep = patches["n0"] > 0 if c is None else patches["class"] == c
        if keep.any():
            some = {array: rows[keep] for array, rows in patches.items()}
            yield from _measures(name, some, [str(site) for site in sites], source.result.about.get("clusters"))


@dataclass(frozen=True)
class _Reading:
    """What is read of which model, with which probes."""

    job: Job
    val: Dataset
    bank: "ProbeBank"
    sites: tuple[Site, ...]
    confused: Sequence[int]  # classes
    window: range
    micro_batch: "MicroBatch"

    def rows(self, images: Sequence[int]) -> "tuple[list[_Row], list[int]]":
        """One for every confusion in these images, and the classes of those with too few wrong patches."""
        rows, few = [], []
        for samples, batch in _batches(self.job, self.val, images):
            encoded = self.job.adapter.encode(batch)
            plain = self.bank.patches(self.job.adapter.decode(encoded, self.sites)).cpu().numpy()  # l b t
            cases: list[_Case] = []
            for row, (image, sample) in enumerate(samples):
                truth = patch_labels(batch.masks[row], batch.grids[row], len(self.val.classes))
                for c in self.confused:
                    seed = (self.job.seed, zlib.crc32(sample.name.encode()), c)
                    case = _Case.of(image, row, c, plain[0, row], truth, seed)
                    if case.n0 >= self.job.params.least:
                        cases.append(case)
                    elif case.n0:
                        few.append(c)
            copies = [(case, blocked) for case in cases for blocked in case.blocked]
            wrong = itertools.chain.from_iterable(self.micro_batch.each(copies, partial(self._wrong, encoded)))
            for case in cases:
                n = [case.wrong(plain[:, case.row]).sum(-1), *itertools.islice(wrong, len(BLOCKING))]
                rows.append(_Row(case.image, case.c, case.n0, np.stack(n)))
        return rows, few

    def _wrong(
        self, encoded: "Encoded", copies: "Sequence[tuple[_Case, Bool[np.ndarray, 't']]]"
    ) -> list[Int[np.ndarray, " l"]]:
        """Wrong patches by site of every copy of an image, each with its own tokens blocked."""
        import torch

        some = encoded.take([case.row for case, _ in copies])
        blocked = torch.from_numpy(np.stack([one for _, one in copies])).to(self.job.adapter.device)
        found = self.bank.patches(self.job.adapter.decode(some, self.sites, blocked, self.window)).cpu().numpy()
        return [case.wrong(found[:, copy]).sum(-1) for copy, (case, _) in enumerate(copies)]


@dataclass(frozen=True)
class _Case:
    """One confusion: class c in one image, and which tokens each condition but `none` blocks."""

    image: int
    row: int  # of the batch
    c: int
    n0: int
    truth: Int[np.ndarray, " t"]
    blocked: Bool[np.ndarray, "3 t"]  # in the order of BLOCKING

    @classmethod
    def of(
        cls,
        image: int,
        row: int,
        c: int,
        predicted: Int[np.ndarray, " t"],
        truth: Int[np.ndarray, " t"],
        seed: Sequence[int],
    ) -> "_Case":
        """Blocked are the tokens predicted c, those predicted g, and as many random ones as are predicted c."""
        wrong = (predicted == c) & (truth != c) & (truth != IGNORE)
        incorrect = predicted == c
        g = np.bincount(truth[wrong], minlength=1).argmax() if wrong.any() else c
        random = np.random.default_rng(seed).permutation(len(predicted)) < incorrect.sum()
        return cls(image, row, c, int(wrong.sum()), truth, np.stack([incorrect, predicted == g, random]))

    def wrong(self, predicted: Int[np.ndarray, "*rest t"]) -> Bool[np.ndarray, "*rest t"]:
        """All patches that are wrongly predicted c, not only those that were so at the adapter."""
        return (predicted == self.c) & (self.truth != self.c) & (self.truth != IGNORE)


@dataclass(frozen=True)
class _Row:
    image: int
    c: int
    n0: int
    n: Int[np.ndarray, "conditions l"]


def _gathered(
    parts: Sequence[Mapping[str, Int[np.ndarray, "_ ..."]]], confused: Sequence[int]
) -> dict[str, Int[np.ndarray, "_ ..."]]:
    """What all processes found, by image and class."""
    patches = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "left_out"}
    rank = {c: number for number, c in enumerate(confused)}
    order = np.lexsort([[rank[c] for c in patches["class"].tolist()], patches["image"].tolist()])
    summed = np.sum([part["left_out"] for part in parts], 0)
    return {name: array[order] for name, array in patches.items()} | {"left_out": summed}


def _batches(job: Job, val: Dataset, images: Sequence[int]) -> "Iterator[tuple[Sequence[tuple[int, Sample]], Batch]]":
    """Val images as batches, with the number and the sample of each."""
    from segbench.features import checked

    samples = [(image, checked(val, image)) for image in images]
    for batch in job.adapter.batches([sample for _, sample in samples]):
        yield samples[: len(batch.grids)], batch
        samples = samples[len(batch.grids) :]


def _window(text: str, blocks: int) -> range:
    """The LLM blocks in which attention is knocked out; both ends count."""
    if text == "all":
        return range(blocks)
    first, _, last = text.partition("-")
    window = range(int(first), int(last or first) + 1)
    if not window or window[-1] >= blocks:
        raise SpecError(f"layers: {text} is no window of the {blocks} LLM blocks of this model (0 to {blocks - 1})")
    return window


def _class_id(name: str, classes: Sequence[str], task: str) -> int:
    if name not in classes:
        raise SpecError(f"classes: {name!r} is no class of {task}{registry.nearest(name, classes)}")
    return classes.index(name)


def _measures(
    name: str,
    patches: Mapping[str, Int[np.ndarray, "m *rest"]],
    sites: Sequence[str],
    clusters: Sequence[str] | None,
) -> Iterator[Measure]:
    """Every summary with its 95 % interval, for each condition and site."""
    images = len(np.unique(patches["image"]))
    for metric in persistence.METRICS:
        for condition, curve in persistence.curves(metric, patches, CONDITIONS, sites, clusters).items():
            for site, sampled in curve.items():
                if estimate := sampled.estimate():
                    yield Measure(metric, estimate.value, "%", images, site, f"{name}/{condition}", estimate.interval)

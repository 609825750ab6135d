"""Layerwise probing: how well can a linear map read the classes at each site? (paper A.2, Table 2)"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from segbench import stats
from segbench.errors import CellError, DataError, SpecError
from segbench.geometry import coverage
from segbench.kinds.base import Job, SiteName
from segbench.metrics import oracle
from segbench.specs import DataSpec, Spec
from segbench.store import Cell
from segbench.types import Dataset, Measure, Site

if TYPE_CHECKING:
    from segbench.adapters.base import Adapter
    from segbench.features import FeatureSource
    from segbench.probes import Best, ProbeBank, Trainer

Beta = Annotated[float, Field(ge=0, lt=1)]

HOLDOUT = 10  # selection: train_holdout keeps every tenth training image out of the training


class Protocol(Spec):
    """How the probes are trained. The defaults are the paper's (A.2); what A.2 leaves open is named here too."""

    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=1, description="images per optimiser step, whatever fits into memory at once")
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(default=0.0, ge=0)
    power: float = Field(default=0.9, ge=0, description="of the polynomial decay of lr, taken per step")
    bias: bool = True
    init: Literal["uniform", "zeros"] = "uniform"
    norm: Literal["none", "standardize"] = "none"
    selection: Literal["val_best", "last", "train_holdout"] = "val_best"


class Params(Spec):
    """Keys of a probe task."""

    data: DataSpec
    protocol: Protocol = Protocol()
    sites: tuple[SiteName, ...] | None = Field(default=None, description="all residuals of the model when left out")
    features: Literal["auto", "stream", "memory"] = "auto"


def requires(params: Params) -> tuple[str, ...]:
    """A probe task stands on no other task."""
    return ()


def run(job: Job) -> Iterator[Measure]:
    """Train one probe per site on the training split, evaluate after each epoch, yield the numbers of the chosen epoch.

    Arrays: `counts` (int32 [l, n, k, 3]: hit, truth and predicted pixels, at the chosen epoch, the last and the best
    on val), `probes` (weights and biases of the chosen and of the last epoch), `examples` (label maps at original
    resolution).
    Raises CellError when a probe diverges or when no pixel can be counted.
    """
    from segbench import features, probes

    params: Params = job.params
    train, val = params.data.load("train", job.limit), params.data.load("val", job.limit)
    if train.classes != val.classes:
        raise DataError(f"{params.data.name}: train has the classes {train.classes}, val {val.classes}")
    sites = _sites(job.adapter, params.sites)
    read = _Tally(job, len(train) + len(val), "reading")
    sources = [features.source(job.adapter, d, sites, job.batch_size, params.features, read) for d in (train, val)]
    ceiling = _ceiling(job, val)
    if not ceiling.seen:
        raise CellError("no labelled pixel of the val split is seen by the model")
    kept = _fit(job, sites, sources[0], sources[1])
    chosen, last = kept[params.protocol.selection], kept["last"]

    counts = chosen.arrays["counts"]
    other = {name: kept[name].arrays["counts"] for name in ("last", "val_best")}
    job.cell.save_arrays("counts", {"best": counts, **other})
    job.cell.save_arrays("probes", chosen.probes | {f"last/{name}": array for name, array in last.probes.items()})
    bank = probes.ProbeBank.load(chosen.probes, sites, job.adapter.device)
    job.cell.save_arrays("examples", _examples(bank, sources[1], job.examples))
    best_epochs = zip(sites, chosen.arrays["epoch"].tolist(), strict=True)
    job.cell.about(
        {
            "sites": [str(site) for site in sites],
            "classes": list(train.classes),
            "images": ceiling.names,
            "selection": params.protocol.selection,
            "best_epochs": {str(site): epoch + 1 for site, epoch in best_epochs},
            "train_images": len(train),
        }
        | ({"grid": list(ceiling.grids[0])} if len(ceiling.grids) == 1 else {})
    )
    yield Measure("coverage", 100 * ceiling.seen / ceiling.labelled, "%", len(val))
    yield Measure("classes_present", int((counts[0, ..., 1].sum(0) > 0).sum()), "count", len(val))
    yield Measure("oracle_miou", float(stats.miou(ceiling.counts)), "%", len(val))
    yield from _measures(sites, counts, other)


@dataclass(frozen=True)
class _Ceiling:
    """What the geometry alone decides about the val split."""

    names: list[str]
    grids: list[tuple[int, int]]  # one, unless the model gives images grids of their own
    seen: int  # labelled pixels that the model saw
    labelled: int
    counts: Int[np.ndarray, "k 3"]  # of the oracle: the best that patches of this size could do


def _ceiling(job: Job, val: Dataset) -> _Ceiling:
    """One look at every val image, before anything is trained; the model does not run."""
    from segbench.features import checked

    names, seen, labelled, grids = [], 0, 0, set()
    total = np.zeros((len(val.classes), 3), np.int64)
    for index in range(len(val)):
        sample = checked(val, index)
        grid_map = job.adapter.grid_map((sample.image.height, sample.image.width))
        covered = coverage(sample.mask, grid_map)
        names.append(sample.name)
        seen, labelled = seen + covered.seen, labelled + covered.labelled
        grids.add(grid_map.grid)
        total += oracle.counts(sample.mask, grid_map, len(val.classes))
    return _Ceiling(names, sorted(grids), seen, labelled, total)


class _Tally:
    """Adds up images of one stretch of work and passes them on."""

    def __init__(self, job: Job, total: int, what: str, done: int = 0) -> None:
        self.job, self.total, self.what, self.done = job, total, what, done

    def __call__(self, images: int) -> None:
        self.done += images
        self.job.progress(self.done, self.total, self.what)


def _sites(adapter: "Adapter", wanted: tuple[str, ...] | None) -> tuple[Site, ...]:
    """The sites to probe, in the order of the model: all residuals, unless some are named."""
    if wanted is None:
        return adapter.sites()
    known = adapter.known_sites()
    asked = {Site.parse(text) for text in wanted}
    if strange := asked - set(known):
        raise SpecError(
            f"no site {', '.join(map(str, strange))}; this model has "
            f"{', '.join(map(str, adapter.sites()))} and llm.L.key, llm.L.value"
        )
    return tuple(site for site in known if site in asked)


def _fit(job: Job, sites: tuple[Site, ...], train: "FeatureSource", val: "FeatureSource") -> "dict[str, Best]":
    """Train the bank, or go on where a killed run stopped; what each way of choosing an epoch keeps, by its name."""
    from segbench import probes

    protocol: Protocol = job.params.protocol
    everything, val_images = np.arange(len(train.dataset)), range(len(val.dataset))
    held_out = everything[::HOLDOUT] if protocol.selection == "train_holdout" else everything[:0]
    fitted = np.setdiff1d(everything, held_out)
    if not len(fitted):
        raise CellError(f"{len(everything)} training image(s) leave none to train on beside the held-out ones")
    widths = {site: job.adapter.widths[site] for site in sites}
    bank = probes.ProbeBank(widths, len(val.dataset.classes), protocol.bias, protocol.init, job.seed)
    bank.to(job.adapter.device)
    schedule = probes.Schedule(
        protocol.epochs, protocol.batch, protocol.lr, protocol.betas, protocol.weight_decay, protocol.power, job.seed
    )
    trainer = probes.Trainer(bank, train, fitted, schedule)
    kept = {"last": probes.Best(), "val_best": probes.Best(), "train_holdout": probes.Best()}
    start = _restored(job.cell, trainer, kept)
    if start == 0 and protocol.norm == "standardize":
        bank.standardise(train, fitted)

    per_epoch = len(everything) + len(val_images)
    tally = _Tally(job, protocol.epochs * per_epoch, "training", start * per_epoch)
    for epoch in range(start, protocol.epochs):
        trainer.epoch(epoch, tally)
        weights = bank.export()
        exported = probes.ProbeBank.load(weights, sites, job.adapter.device)  # folding rounds: count what is kept
        counts = probes.count(exported, val, val_images)
        score = stats.miou(counts.sum(1))
        kept["last"] = probes.Best()
        kept["last"].offer(epoch, score, counts, weights)
        kept["val_best"].offer(epoch, score, counts, weights)
        if len(held_out):
            deciding = stats.miou(probes.count(exported, train, held_out).sum(1))
            kept["train_holdout"].offer(epoch, deciding, counts, weights)
        tally(len(held_out) + len(val_images))
        _keep(job.cell, trainer, kept, epoch + 1)
    return kept


def _keep(cell: Cell, trainer: "Trainer", kept: "dict[str, Best]", epochs: int) -> None:
    """Checkpoint the training after an epoch."""
    parts = {"trainer": trainer.state()} | {name: best.arrays for name, best in kept.items()}
    arrays = {f"{part}/{key}": array for part, named in parts.items() for key, array in named.items()}
    cell.save_checkpoint(arrays, {"epochs": epochs})


def _restored(cell: Cell, trainer: "Trainer", kept: "dict[str, Best]") -> int:
    """Go back to the checkpoint of a killed run; the number of epochs that are done, 0 without a checkpoint."""
    checkpoint = cell.load_checkpoint()
    if checkpoint is None:
        return 0
    arrays, facts = checkpoint
    trainer.restore(_below(arrays, "trainer"))
    for name, best in kept.items():
        best.arrays = _below(arrays, name)
    return facts["epochs"]


def _below(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}


def _examples(bank: "ProbeBank", val: "FeatureSource", most: int) -> dict[str, np.ndarray]:
    """`<e>.image`, `<e>.truth` and `<e>.<site>`: pictures and label maps of a few val images spread over the split."""
    from segbench import probes

    count = min(most, len(val.dataset))
    indices = np.unique(np.linspace(0, len(val.dataset) - 1, count).astype(int)) if count else []
    arrays: dict[str, np.ndarray] = {}
    for row, (pixels, _) in enumerate(probes.predictions(bank, val, indices)):
        sample = val.dataset[int(indices[row])]
        arrays |= {f"{row}.image": np.asarray(sample.image), f"{row}.truth": sample.mask}
        arrays |= {f"{row}.{site}": one.cpu().numpy() for site, one in zip(bank.sites, pixels, strict=True)}
    return arrays


def _measures(
    sites: Sequence[Site], counts: Int[np.ndarray, "l n k 3"], other: dict[str, Int[np.ndarray, "l n k 3"]]
) -> Iterator[Measure]:
    """mIoU and accuracies per site, with 95 % intervals over images."""
    images = counts.shape[1]
    weights = stats.resamples(images)
    summaries = {"miou": stats.miou, "pixel_accuracy": stats.pixel_accuracy, "mean_accuracy": stats.mean_accuracy}
    columns = {metric: (summary, counts) for metric, summary in summaries.items()}
    columns |= {f"miou_{name}": (stats.miou, one) for name, one in other.items()}
    for metric, (summary, one) in columns.items():
        values, intervals = summary(one.sum(1)), stats.intervals(stats.draws(summary, one, weights))
        for site, value, interval in zip(sites, values.tolist(), intervals, strict=True):
            yield Measure(metric, value, "%", images, str(site), interval=interval)

"""Training a bank of probes to the end, or on from where a killed run stopped, and counting pixels after each epoch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from segbench import stats
from segbench.errors import CellError
from segbench.specs import Spec
from segbench.store import Cell
from segbench.types import Site

if TYPE_CHECKING:
    import torch

    from segbench.features import FeatureSource
    from segbench.probes import Best, Trainer

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


@dataclass(frozen=True)
class Fitting:
    """One bank to train: on what, how, and where its checkpoints go."""

    widths: Mapping[Site, int]  # of all sites of the cell, so that a probe starts alike whoever is trained beside it
    sites: tuple[Site, ...]  # of the bank
    train: "FeatureSource"
    val: "FeatureSource"
    protocol: Protocol
    seed: int
    device: "torch.device"
    cell: Cell
    what: str = ""  # is trained beside the cell's own probes, in the names of its checkpoints
    stage: str = ""  # of the cell, likewise, where its sites are not all in one bank

    @property
    def parts(self) -> tuple[str, ...]:
        """Its own part of the cell, and that of one bank of all sites, which another feature policy may have left."""
        return tuple(dict.fromkeys(("-".join(filter(None, (self.what, self.stage))), self.what)))

    @property
    def work(self) -> int:
        """Images that the whole training goes through."""
        return self.protocol.epochs * (len(self.train.dataset) + len(self.val.dataset))


@dataclass(frozen=True)
class Fitted:
    """Trained probes, less those that diverged."""

    sites: tuple[Site, ...]
    kept: "dict[str, Best]"  # by the way of choosing an epoch
    diverged: Mapping[Site, str]  # what is told of each

    def rows(self, kept: str, name: str, sites: Sequence[Site]) -> np.ndarray:
        """An array of these sites, [l, ...], as one way of choosing an epoch keeps it."""
        return self.kept[kept].arrays[name][[self.sites.index(site) for site in sites]] if sites else np.empty(0)


def fit(this: Fitting, progress: Callable[[int], None]) -> Fitted:
    """What each way of choosing an epoch keeps; CellError when nothing is left to train on.

    A probe that diverges leaves the bank, and the others go on from their last checkpoint as if it had not been there.
    """
    from segbench.probes import Diverged

    sites, diverged, told = this.sites, {}, 0

    def tell(images: int) -> None:
        nonlocal told
        told += images
        progress(images)

    while sites:
        try:
            return Fitted(sites, _fit(replace(this, sites=sites), tell), diverged)
        except Diverged as error:
            diverged[error.site] = str(error)
            sites = tuple(site for site in sites if site != error.site)
            tell(-told)
    return Fitted((), {}, diverged)


def _fit(this: Fitting, progress: Callable[[int], None]) -> "dict[str, Best]":
    from segbench import probes

    protocol = this.protocol
    everything, val_images = np.arange(len(this.train.dataset)), range(len(this.val.dataset))
    held_out = everything[::HOLDOUT] if protocol.selection == "train_holdout" else everything[:0]
    fitted = np.setdiff1d(everything, held_out)
    if not len(fitted):
        raise CellError(f"{len(everything)} training image(s) leave none to train on beside the held-out ones")
    every = probes.ProbeBank(this.widths, len(this.val.dataset.classes), protocol.bias, protocol.init, this.seed)
    bank = every.only(this.sites).to(this.device)
    schedule = probes.Schedule(
        protocol.epochs, protocol.batch, protocol.lr, protocol.betas, protocol.weight_decay, protocol.power, this.seed
    )
    trainer = probes.Trainer(bank, this.train, fitted, schedule)
    kept = {"last": probes.Best(), "val_best": probes.Best(), "train_holdout": probes.Best()}
    start = _restored(this, trainer, kept)
    if start == 0 and protocol.norm == "standardize":
        bank.standardise(this.train, fitted)

    progress(start * (len(everything) + len(val_images)))
    for epoch in range(start, protocol.epochs):
        trainer.epoch(epoch, progress)
        weights = bank.export()
        exported = probes.ProbeBank.load(weights, bank.sites, this.device)  # folding rounds: count what is kept
        try:
            counts = probes.count(exported, this.val, val_images)
        except probes.Diverged as error:
            when = f" after epoch {epoch + 1} (step {trainer.step})"
            raise probes.Diverged(error.site, error.largest, when) from error
        score = stats.miou(counts.sum(1))
        kept["last"] = probes.Best()
        kept["last"].offer(epoch, score, counts, weights)
        kept["val_best"].offer(epoch, score, counts, weights)
        if len(held_out):
            deciding = stats.miou(probes.count(exported, this.train, held_out).sum(1))
            kept["train_holdout"].offer(epoch, deciding, counts, weights)
        progress(len(held_out) + len(val_images))
        _keep(this, trainer, kept, epoch + 1)
    return kept


def _keep(this: Fitting, trainer: "Trainer", kept: "dict[str, Best]", epochs: int) -> None:
    """Checkpoint the training after an epoch."""
    parts = {"trainer": trainer.state()} | {name: best.arrays for name, best in kept.items()}
    arrays = {f"{part}/{key}": array for part, named in parts.items() for key, array in named.items()}
    this.cell.save_checkpoint(arrays, {"epochs": epochs, "sites": [str(site) for site in this.sites]}, this.parts[0])


def _restored(this: Fitting, trainer: "Trainer", kept: "dict[str, Best]") -> int:
    """Go back to the checkpoint of a killed run; the number of epochs that are done, 0 without a checkpoint.

    It may be of a bank with more sites: of those that diverged since, or of all, where another feature policy trained
    them together. Sites that stopped at epochs of their own start anew where they are to be trained together.
    """
    ours = {str(site) for site in this.sites}
    found = filter(None, map(this.cell.load_checkpoint, this.parts))
    able = [one for one in found if ours <= set(one[1].get("sites", ()))]
    if not able:
        return 0
    arrays, facts = max(able, key=lambda one: one[1]["epochs"])
    there = facts["sites"]
    trainer.restore(_below(arrays, "trainer"))
    rows = [there.index(str(site)) for site in this.sites]
    probes = {f"probe.{site}.{name}" for site in this.sites for name in ("weight", "bias")}
    for name, best in kept.items():
        of_all = _below(arrays, name)
        best.arrays = {key: of_all[key] for key in of_all.keys() & probes}
        best.arrays |= {key: of_all[key][rows] for key in ("epoch", "score", "counts") if key in of_all}
    return facts["epochs"]


def _below(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}

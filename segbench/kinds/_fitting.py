"""Training a bank of probes to the end, or on from where a killed run stopped, and counting pixels after each epoch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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

    widths: Mapping[Site, int]
    train: "FeatureSource"
    val: "FeatureSource"
    protocol: Protocol
    seed: int
    device: "torch.device"
    cell: Cell
    part: str = ""  # of the cell, in the names of its checkpoints

    @property
    def work(self) -> int:
        """Images that the whole training goes through."""
        return self.protocol.epochs * (len(self.train.dataset) + len(self.val.dataset))


def fit(this: Fitting, progress: Callable[[int], None]) -> "dict[str, Best]":
    """What each way of choosing an epoch keeps, by its name; CellError when nothing is left to train on."""
    from segbench import probes

    protocol = this.protocol
    everything, val_images = np.arange(len(this.train.dataset)), range(len(this.val.dataset))
    held_out = everything[::HOLDOUT] if protocol.selection == "train_holdout" else everything[:0]
    fitted = np.setdiff1d(everything, held_out)
    if not len(fitted):
        raise CellError(f"{len(everything)} training image(s) leave none to train on beside the held-out ones")
    bank = probes.ProbeBank(this.widths, len(this.val.dataset.classes), protocol.bias, protocol.init, this.seed)
    bank.to(this.device)
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
        counts = probes.count(exported, this.val, val_images)
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
    this.cell.save_checkpoint(arrays, {"epochs": epochs}, this.part)


def _restored(this: Fitting, trainer: "Trainer", kept: "dict[str, Best]") -> int:
    """Go back to the checkpoint of a killed run; the number of epochs that are done, 0 without a checkpoint."""
    checkpoint = this.cell.load_checkpoint(this.part)
    if checkpoint is None:
        return 0
    arrays, facts = checkpoint
    trainer.restore(_below(arrays, "trainer"))
    for name, best in kept.items():
        best.arrays = _below(arrays, name)
    return facts["epochs"]


def _below(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}

"""What a bank of probes says of images at original resolution, and its pixels counted against the truth."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from segbench.features import FeatureSource, Indices
from segbench.kernels import LIMIT, Target, upsampled_argmax, upsampled_counts
from segbench.probes.bank import Diverged, ProbeBank, refuse_divergence
from segbench.probes.memory import MicroBatch


class Counted(NamedTuple):
    """What a bank says of a split, in pixels."""

    images: Int32[np.ndarray, "l n k 3"]  # hit, truth and predicted, per site, image and class
    confusion: Int64[np.ndarray, "l k k"]  # by [truth, prediction], over all images


@torch.no_grad()
def evaluate(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Counted:
    """Every probe's predictions at original resolution, counted; Diverged, naming the site, for one that did.

    Every process of the team counts its share, and has the whole in the end.
    """
    sites, classes, device = len(bank.sites), bank.classes, bank.means[0].device
    confusion = torch.zeros(sites, classes, classes, dtype=torch.int64, device=device)
    images = [torch.zeros(sites, 0, classes, 3, dtype=torch.int32, device=device)]
    diverged = None
    try:
        for logits, targets in _logits(bank, source, source.own(indices)):
            images.append(upsampled_counts(logits, targets, confusion).int())
    except Diverged as error:
        diverged = error
    refuse_divergence(source.team, bank.sites, diverged)
    shares, own = source.shares(indices), {"images": torch.cat(images, 1), "confusion": confusion}
    parts = source.team.gather({name: tensor.cpu().numpy() for name, tensor in own.items()})
    together = np.empty((sites, len(indices), classes, 3), np.int32)
    for share, part in zip(shares, parts, strict=True):
        together[:, share] = part["images"]
    counted = Counted(together, np.sum([part["confusion"] for part in parts], 0))
    assert (counted.confusion.sum(2) == counted.images[..., 1].sum(1)).all()
    assert (counted.confusion.sum(1) == counted.images[..., 2].sum(1)).all()
    return counted


def count(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Int32[np.ndarray, "l n k 3"]:
    """Pixels as (hit, truth, predicted) per site, image and class."""
    return evaluate(bank, source, indices).images


def predictions(
    bank: ProbeBank, source: FeatureSource, indices: Indices
) -> Iterator[tuple[Integer[Tensor, "l H W"], Target]]:
    """Predicted class of every pixel at original resolution, for each site and image in turn, here and nowhere else."""
    for logits, targets in _logits(bank, source, indices):
        for row, target in enumerate(targets):
            yield upsampled_argmax(logits[:, row], target), target


def label_maps(bank: ProbeBank, source: FeatureSource, indices: Indices) -> list[Integer[np.ndarray, "l H W"]]:
    """As `predictions`, each made by the process of the team that reads the image, and known to all."""
    made = [pixels.cpu().numpy() for pixels, _ in predictions(bank, source, source.own(indices))]
    found: dict[int, np.ndarray] = {}
    parts = source.team.gather({str(number): pixels for number, pixels in enumerate(made)})
    for share, part in zip(source.shares(indices), parts, strict=True):
        found |= {place: part[str(number)] for number, place in enumerate(share)}
    return [found[place] for place in range(len(indices))]


@torch.no_grad()
def _logits(
    bank: ProbeBank, source: FeatureSource, indices: Indices
) -> Iterator[tuple[Float[Tensor, "l b t k"], Sequence[Target]]]:
    """Logits on the patch grid, batch by batch; Diverged where they have no argmax."""
    micro_batch = MicroBatch(source.batch_size)
    for logits, targets in micro_batch.each(source, indices, lambda batch: (bank(batch[0]), batch[1])):
        for site, largest in zip(bank.sites, logits.abs().amax((1, 2, 3)).tolist(), strict=True):
            if not largest <= LIMIT:  # nor is NaN
                raise Diverged(
                    site,
                    f"the probe at {site} diverged: its largest logit is {largest:.3g}; "
                    "try a smaller protocol.lr or protocol.norm: standardize",
                )
        yield logits, targets

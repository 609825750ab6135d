"""What a bank of probes says of images at original resolution, and its pixels counted against the truth."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from segbench.features import FeatureSource, Indices
from segbench.kernels import LIMIT, Target, upsampled_argmax, upsampled_counts
from segbench.probes.bank import Diverged, ProbeBank, refuse_divergence

Batch = tuple[Float[Tensor, "l b t k"], list[Target]]  # logits on the patch grid
T = TypeVar("T")


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
    images = [np.empty((sites, 0, classes, 3), np.int32)]

    def counts_of(batches: Iterator[Batch]) -> tuple[list[np.ndarray], Int64[Tensor, "l k k"]]:
        pairs = torch.zeros_like(confusion)  # of these images alone: what is tried again must not count twice
        counts = (upsampled_counts(logits, targets, pairs) for logits, targets in batches)
        return [one.int().cpu().numpy() for one in counts], pairs

    diverged = None
    try:
        for counts, pairs in _each(bank, source, source.own(indices), counts_of):
            images += counts
            confusion += pairs
    except Diverged as error:
        diverged = error
    refuse_divergence(source.team, bank.sites, diverged)
    own = {"images": np.concatenate(images, 1), "confusion": confusion.cpu().numpy()}
    shares, parts = source.shares(indices), source.team.gather(own)
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

    def drawn(batches: Iterator[Batch]) -> list[tuple[Integer[Tensor, "l H W"], Target]]:
        images = ((logits[:, row], one) for logits, targets in batches for row, one in enumerate(targets))
        return [(upsampled_argmax(logits, target), target) for logits, target in images]

    for pictures in _each(bank, source, indices, drawn):
        yield from pictures


def label_maps(bank: ProbeBank, source: FeatureSource, indices: Indices) -> list[Integer[np.ndarray, "l H W"]]:
    """As `predictions`, each made by the process of the team that reads the image, and known to all."""
    made = [pixels.cpu().numpy() for pixels, _ in predictions(bank, source, source.own(indices))]
    found: dict[int, np.ndarray] = {}
    parts = source.team.gather({str(number): pixels for number, pixels in enumerate(made)})
    for share, part in zip(source.shares(indices), parts, strict=True):
        found |= {place: part[str(number)] for number, place in enumerate(share)}
    return [found[place] for place in range(len(indices))]


def _each(
    bank: ProbeBank, source: FeatureSource, indices: Indices, work: Callable[[Iterator[Batch]], T]
) -> Iterator[T]:
    """What the work makes of the images, as many at once as fit."""

    @torch.no_grad()
    def read(part: Sequence[int]) -> T:
        return work(_logits(bank, source, part))

    yield from source.micro_batch.each([*map(int, indices)], read)


def _logits(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Iterator[Batch]:
    """Batch by batch; Diverged where they have no argmax."""
    for features, targets in source.read(indices):
        logits = bank(features)
        for site, largest in zip(bank.sites, logits.abs().amax((1, 2, 3)).tolist(), strict=True):
            if not largest <= LIMIT:  # nor is NaN
                raise Diverged(site, largest)
        yield logits, targets

"""What a bank of probes says of images at original resolution, and its pixels counted against the truth."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int32, Int64, Integer
from torch import Tensor

from segbench.features import FeatureSource, Indices
from segbench.kernels import LIMIT, Target, upsampled_argmax, upsampled_counts
from segbench.probes.bank import Diverged, ProbeBank


class Counted(NamedTuple):
    """What a bank says of a split, in pixels."""

    images: Int32[np.ndarray, "l n k 3"]  # hit, truth and predicted, per site, image and class
    confusion: Int64[np.ndarray, "l k k"]  # by [truth, prediction], over all images


@torch.no_grad()
def evaluate(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Counted:
    """Every probe's predictions at original resolution, counted; Diverged, naming the site, for one that did."""
    sites, classes, device = len(bank.sites), bank.classes, bank.means[0].device
    confusion = torch.zeros(sites, classes, classes, dtype=torch.int64, device=device)
    images = []
    for logits, targets in _logits(bank, source, indices):
        images.append(upsampled_counts(logits, targets, confusion).int())
    counted = Counted(torch.cat(images, 1).cpu().numpy(), confusion.cpu().numpy())
    assert (counted.confusion.sum(2) == counted.images[..., 1].sum(1)).all()
    assert (counted.confusion.sum(1) == counted.images[..., 2].sum(1)).all()
    return counted


def count(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Int32[np.ndarray, "l n k 3"]:
    """Pixels as (hit, truth, predicted) per site, image and class."""
    return evaluate(bank, source, indices).images


def predictions(
    bank: ProbeBank, source: FeatureSource, indices: Indices
) -> Iterator[tuple[Integer[Tensor, "l H W"], Target]]:
    """Predicted class of every pixel at original resolution, for each site and image in turn."""
    for logits, targets in _logits(bank, source, indices):
        for row, target in enumerate(targets):
            yield upsampled_argmax(logits[:, row], target), target


@torch.no_grad()
def _logits(
    bank: ProbeBank, source: FeatureSource, indices: Indices
) -> Iterator[tuple[Float[Tensor, "l b t k"], Sequence[Target]]]:
    """Logits on the patch grid, batch by batch; Diverged where they have no argmax."""
    for features, targets in source.read(indices):
        logits = bank(features)
        for site, largest in zip(bank.sites, logits.abs().amax((1, 2, 3)).tolist(), strict=True):
            if not largest <= LIMIT:  # nor is NaN
                raise Diverged(
                    site,
                    f"the probe at {site} diverged: its largest logit is {largest:.3g}; "
                    "try a smaller protocol.lr or protocol.norm: standardize",
                )
        yield logits, targets

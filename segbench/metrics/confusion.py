"""Intersection over union and accuracies, as ratios taken once over integer pixel counts that add up.

Three integers are kept per class and image, over the labelled pixels: `hit`, those that are and were called the class,
`truth`, those that are it, `predicted`, those that were called it. IoU = hit / (truth + predicted - hit) of the sums
over all images: the mIoU of mmsegmentation's IoUMetric and torchmetrics' MulticlassJaccardIndex, no mean over images.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64, Integer

from segbench import stats
from segbench.errors import CellError
from segbench.types import IGNORE


class ClassMean(NamedTuple):
    """A mean over classes, and over how many."""

    value: float  # %
    classes: int


def counts(
    prediction: Integer[np.ndarray, "*pixels"], truth: Integer[np.ndarray, "*pixels"], classes: int
) -> Int64[np.ndarray, "k 3"]:
    """Pixels per class as (hit, truth, predicted) where the truth is not IGNORE; sums over images and ranks.

    CellError if a counted pixel's truth or prediction is no class.
    """
    prediction, truth = _labelled(prediction, truth, classes)
    hits = truth[prediction == truth]
    return np.stack([np.bincount(ids, minlength=classes) for ids in (hits, truth, prediction)], axis=1)


def confusion(
    prediction: Integer[np.ndarray, "*pixels"], truth: Integer[np.ndarray, "*pixels"], classes: int
) -> Int64[np.ndarray, "k k"]:
    """Pixel counts by [truth, prediction] where the truth is not IGNORE; sums over images and ranks.

    CellError if a counted pixel's truth or prediction is no class.
    """
    prediction, truth = _labelled(prediction, truth, classes)
    pairs = truth.astype(np.int64) * classes + prediction
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def miou(total: Int[np.ndarray, "k 3"]) -> ClassMean:
    """Mean IoU in percent over the classes with a non-empty union, of counts summed over images.

    A class that neither occurs nor is predicted has no IoU and is left out; one that is only predicted counts with 0.
    CellError if no pixel is labelled.
    """
    _check_total(total)
    return ClassMean(float(stats.miou(total[None])[0]), int(stats.present(total).sum()))


def mean_accuracy(total: Int[np.ndarray, "k 3"]) -> ClassMean:
    """Mean, over the classes that occur, of the share of their pixels that was hit, in percent; CellError as `miou`."""
    _check_total(total)
    return ClassMean(float(stats.mean_accuracy(total[None])[0]), int(np.count_nonzero(total[:, 1])))


def pixel_accuracy(total: Int[np.ndarray, "k 3"]) -> float:
    """Share of the labelled pixels that was hit, in percent; CellError if there are none."""
    _check_total(total)
    return float(stats.pixel_accuracy(total[None])[0])


def check_conserved(table: Int[np.ndarray, "*images k 3"]) -> None:
    """CellError unless every image's counts can be counts of one prediction.

    None is negative, no class is hit more often than it occurs or is predicted, and as many pixels are predicted as
    there are labelled ones.
    """
    hit, truth, predicted = np.moveaxis(table.astype(np.int64), -1, 0)
    if (hit < 0).any() or (hit > np.minimum(truth, predicted)).any():
        raise CellError("pixel counts are impossible: a class is hit more often than it occurs or is predicted")
    if (truth.sum(-1) != predicted.sum(-1)).any():
        raise CellError("pixel counts are impossible: there are not as many predicted pixels as labelled ones")


def _labelled(
    prediction: Integer[np.ndarray, "*pixels"], truth: Integer[np.ndarray, "*pixels"], classes: int
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Prediction and truth of the pixels that count. What counts is decided by the truth alone."""
    if prediction.shape != truth.shape:
        raise CellError(f"a prediction of {prediction.shape} pixels for a ground truth of {truth.shape}")
    labelled = truth != IGNORE
    for name, ids in (("ground truth", truth[labelled]), ("prediction", prediction[labelled])):
        if ids.size and not 0 <= ids.min() <= ids.max() < classes:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise CellError(f"the {name} holds {wrong}, which is none of the {classes} classes (0..{classes - 1})")
    return prediction[labelled], truth[labelled]


def _check_total(total: Int[np.ndarray, "k 3"]) -> None:
    check_conserved(total)
    if not total[:, 1].any():
        raise CellError("nothing to count: no pixel that the model saw is labelled")

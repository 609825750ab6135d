"""Intersection over union and accuracies, as ratios taken once over integer pixel counts that add up.

Three integers are kept per class and image, over the labelled pixels: `hit`, those that are and were called the class,
`truth`, those that are it, `predicted`, those that were called it. IoU = hit / (truth + predicted - hit) of the sums
over all images: the mIoU of mmsegmentation's IoUMetric and torchmetrics' MulticlassJaccardIndex, no mean over images.
"""

import numpy as np
from jaxtyping import Int64, Integer

from segbench.errors import CellError
from segbench.types import IGNORE


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

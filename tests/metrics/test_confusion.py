"""Pixel counts against torchmetrics and against the formula of mmsegmentation, written out once more here."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex, MulticlassStatScores

from segbench import stats
from segbench.errors import CellError
from segbench.metrics import confusion
from segbench.types import IGNORE


@st.composite
def predictions(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray], int]:
    """Predictions and truths of one to five images, with ignored pixels and classes that never occur."""
    classes = draw(st.sampled_from([1, 2, 3, 21, 150, 255]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    used = random.choice(classes, min(classes, draw(st.integers(1, 12))), replace=False)
    ignored = draw(st.sampled_from([0.0, 0.1, 1.0]))
    images, truths = [], []
    for _ in range(draw(st.integers(1, 5))):
        shape = tuple(random.integers(1, 20, 2))
        truth = random.choice(used, shape)
        images.append(np.where(random.random(shape) < 0.6, truth, random.choice(used, shape)))
        truths.append(np.where(random.random(shape) < ignored, IGNORE, truth).astype(np.uint8))
    return images, truths, classes


def total_counts(images: list[np.ndarray], truths: list[np.ndarray], classes: int) -> np.ndarray:
    return np.sum([confusion.counts(image, truth, classes) for image, truth in zip(images, truths, strict=True)], 0)


def histogram_counts(images: list[np.ndarray], truths: list[np.ndarray], classes: int) -> np.ndarray:
    """mmsegmentation's intersect_and_union with float64 histograms, as (hit, truth, predicted)."""
    total = np.zeros((classes, 3))
    for image, truth in zip(images, truths, strict=True):
        keep = truth != IGNORE
        kept, label = image[keep], truth[keep]
        for column, ids in enumerate((kept[kept == label], label, kept)):
            total[:, column] += np.histogram(ids, bins=classes, range=(0, classes - 1) if classes > 1 else (0, 1))[0]
    return total


@settings(max_examples=1000)
@given(predictions())
def test_counts_are_mmsegmentations_as_integers(case):
    np.testing.assert_array_equal(total_counts(*case), histogram_counts(*case))


@settings(max_examples=1000, deadline=None)
@given(predictions())
def test_counts_and_miou_are_torchmetrics(case):
    images, truths, classes = case
    assume(classes > 1 and any((truth != IGNORE).any() for truth in truths))
    jaccard = MulticlassJaccardIndex(classes, ignore_index=IGNORE, average="macro", validate_args=False)
    scores = MulticlassStatScores(classes, ignore_index=IGNORE, average=None, validate_args=False)
    for image, truth in zip(images, truths, strict=True):
        pair = torch.from_numpy(image)[None], torch.from_numpy(truth.astype(np.int64))[None]
        jaccard.update(*pair)
        scores.update(*pair)
    total = total_counts(*case)
    hit, false, _, missed, support = scores.compute().numpy().T
    np.testing.assert_array_equal(total, np.stack([hit, hit + missed, hit + false], 1))
    np.testing.assert_array_equal(support, total[:, 1])
    assert stats.miou(total) == pytest.approx(100 * jaccard.compute().item(), abs=1e-4)


@given(predictions())
def test_counts_are_the_margins_of_the_confusion(case):
    images, truths, classes = case
    for image, truth in zip(images, truths, strict=True):
        table = confusion.confusion(image, truth, classes)
        margins = np.stack([table.diagonal(), table.sum(1), table.sum(0)], 1)
        np.testing.assert_array_equal(confusion.counts(image, truth, classes), margins)


@given(predictions())
def test_as_many_pixels_are_predicted_as_labelled(case):
    _, truths, _ = case
    total = total_counts(*case)
    labelled = sum((truth != IGNORE).sum() for truth in truths)
    assert total[:, 1].sum() == total[:, 2].sum() == labelled
    assert (total[:, 0] <= total[:, 1:].min(1)).all()


@given(predictions())
def test_images_can_be_cut_up_in_any_way(case):
    images, truths, classes = case
    flat = np.concatenate([image.ravel() for image in images]), np.concatenate([truth.ravel() for truth in truths])
    np.testing.assert_array_equal(confusion.counts(*flat, classes), total_counts(*case))


def test_confusion_is_truth_by_prediction():
    table = confusion.confusion(np.array([1, 1, 0]), np.array([0, 0, IGNORE]), 2)
    np.testing.assert_array_equal(table, [[0, 2], [0, 0]])


def test_class_that_is_only_predicted_counts_and_absent_class_does_not():
    truth, prediction = np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1])
    total = confusion.counts(prediction, truth, 5)
    assert stats.miou(total) == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert stats.mean_accuracy(total) == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert stats.pixel_accuracy(total) == 75


def test_perfect_prediction_is_100_and_a_constant_one_has_its_closed_form():
    truth = np.repeat(np.arange(4), [10, 20, 30, 40])
    assert stats.miou(confusion.counts(truth, truth, 9)) == 100
    assert stats.miou(confusion.counts(np.full(100, 3), truth, 9)) == pytest.approx(100 * 0.4 / 4)


def test_only_the_truth_says_what_is_ignored():
    total = confusion.counts(np.array([0, 200, 1]), np.array([0, IGNORE, 1]), 2)
    np.testing.assert_array_equal(total, [[1, 1, 1], [1, 1, 1]])
    with pytest.raises(CellError, match="prediction holds 255, which is none of the 2 classes"):
        confusion.counts(np.array([0, IGNORE]), np.array([0, 1]), 2)


@pytest.mark.parametrize("wrong", [2, 254, -1])
def test_label_that_is_no_class_is_never_dropped_silently(wrong):
    with pytest.raises(CellError, match=f"ground truth holds {wrong}"):
        confusion.counts(np.array([0, 0]), np.array([0, wrong]), 2)


def test_prediction_of_another_size_is_refused():
    with pytest.raises((CellError, TypeError), match="prediction"):  # TypeError: shapes checked by jaxtyping
        confusion.counts(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)


def test_counts_stay_exact_where_float32_would_not():
    count = np.array([[16_777_217, 16_777_217, 16_777_217]])
    assert (500 * count.astype(np.int64))[0, 0] == 8_388_608_500
    assert stats.miou(np.concatenate([500 * count, [[0, 1, 1]]])) == pytest.approx(50.0)

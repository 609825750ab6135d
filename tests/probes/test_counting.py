"""Counts of pixels and label maps, against those of every image by itself."""

import numpy as np
import pytest
import torch
from planted import CLASSES, LACKS, Planted, bank

from segbench import probes
from segbench.errors import CellError
from segbench.metrics import confusion
from segbench.probes import counting
from segbench.types import IGNORE


def test_evaluation_counts_every_image_once_and_sums_the_pairs_over_all():
    made = bank()
    counted = probes.evaluate(made, Planted(), [7, 2, 5])
    predicted = np.zeros((2, 3, 3), int)
    for row, (pixels, target) in enumerate(probes.predictions(made, Planted(), [7, 2, 5])):
        truth = target.labels.where(target.valid, IGNORE).numpy()
        for site in range(2):
            pairs = confusion.confusion(pixels[site].numpy(), truth, CLASSES)
            np.testing.assert_array_equal(counted.images[site, row, :, 0], pairs.diagonal())
            np.testing.assert_array_equal(counted.images[site, row, :, 1], pairs.sum(1))
            np.testing.assert_array_equal(counted.images[site, row, :, 2], pairs.sum(0))
            predicted[site] += pairs
    np.testing.assert_array_equal(counted.confusion, predicted)
    assert (predicted.sum((1, 2)) == 3 * 11 * 16).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e38])
def test_an_evaluation_of_a_probe_that_diverged_names_its_site(bad):
    made = bank()
    made.linears[1].weight.data[2] = bad
    with pytest.raises(CellError, match=r"the probe at llm\.1 diverged: its largest logit is"):
        probes.evaluate(made, Planted(), range(4))
    with pytest.raises(CellError, match=r"the probe at llm\.1 diverged"):
        next(probes.predictions(made, Planted(), range(4)))


@pytest.mark.parametrize("lack", LACKS, ids=["torch on a CPU", "python", "torch on a GPU"])
def test_an_evaluation_that_lacks_memory_counts_no_image_twice(monkeypatch, lack):
    """Memory runs out behind the counting, when half of it may have been added up."""
    count, tried = counting.upsampled_counts, []

    def narrow(logits, targets, pairs):
        tried.append(len(targets))
        counts = count(logits, targets, pairs)
        if len(targets) > 2:
            if lack is None:
                torch.empty(1 << 55)
            raise lack
        return counts

    made, source, chosen = bank(), Planted(batch_size=8), [7, 2, 5, 0, 3, 9]
    expected = probes.evaluate(made, Planted(batch_size=8), chosen)
    monkeypatch.setattr(counting, "upsampled_counts", narrow)
    found = probes.evaluate(made, source, chosen)
    assert tried == [6, 3, 1, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.confusion, expected.confusion)
    assert source.micro_batch.images == 1


def test_maps_that_lack_memory_are_drawn_for_fewer_images_at_once(monkeypatch):
    draw, made, source = counting.upsampled_argmax, bank(), Planted(batch_size=8)
    expected = probes.label_maps(made, source, [4, 1, 3])
    room = iter((True, False, True, True, True))

    def narrow(logits, target):
        if not next(room):
            raise MemoryError
        return draw(logits, target)

    monkeypatch.setattr(counting, "upsampled_argmax", narrow)
    found = probes.label_maps(made, source, [4, 1, 3])
    assert source.micro_batch.images == 1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)

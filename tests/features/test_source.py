"""Features of a forward pass, and what a data set may not hold."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_features import SITES

from segbench import features
from segbench.data import scenes
from segbench.errors import DataError
from segbench.types import Sample


def read(source, indices):
    """Features [n, t, d] by site, labels and validity, of all micro-batches together."""
    batches = list(source.read(indices))
    joined = {site: torch.cat([features[site] for features, _ in batches]) for site in SITES}
    return joined, [target for _, targets in batches for target in targets]


def test_features_are_of_the_image_that_was_asked_for(adapter, dataset):
    ordered, _ = read(features.Streamed(adapter, dataset, SITES, features.MicroBatch(5)), range(5))
    shuffled, _ = read(features.Streamed(adapter, dataset, SITES, features.MicroBatch(2)), [4, 1])
    torch.testing.assert_close(shuffled[SITES[1]], ordered[SITES[1]][[4, 1]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ordered[SITES[1]][4], ordered[SITES[1]][1], atol=1e-2)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.zeros((4, 6), np.int64), r"odd: the mask is int64 \(4, 6\); expected uint8 \(4, 6\)"),
        (np.zeros((6, 4), np.uint8), r"odd: the mask is uint8 \(6, 4\); expected uint8 \(4, 6\)"),
        (np.full((4, 6), 16, np.uint8), r"odd: the mask holds 16; expected 0\.\.15 or 255"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_by_name(mask, told):
    class One(scenes.Dataset):
        classes = scenes.CLASSES

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Sample("odd", Image.new("RGB", (6, 4)), mask)

    with pytest.raises(DataError, match=told):
        features.checked(One(), 0)

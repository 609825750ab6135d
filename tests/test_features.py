"""Features held in memory are those of a forward pass, and a sample that does not fit is refused by name."""

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from segbench import features
from segbench.adapters import base
from segbench.data import scenes
from segbench.errors import DataError
from segbench.types import Sample, Site

SITES = (Site("encoder"), Site("llm", 2))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return base.load(tiny_models.spec(tiny_models.write(tmp_path_factory.mktemp("tiny"))), "cpu")


@pytest.fixture
def dataset():
    return scenes.load(scenes.Params(train=5, val=1, size=(48, 60)), "train")


def read(source, indices):
    """Features [n, t, d] by site, labels and validity, of all micro-batches together."""
    batches = list(source.read(indices))
    joined = {site: torch.cat([features[site] for features, _ in batches]) for site in SITES}
    return joined, [target for _, targets in batches for target in targets]


@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4], [3, 0, 3]])
def test_held_features_are_those_of_a_forward_pass(adapter, dataset, indices):
    streamed = features.Streamed(adapter, dataset, SITES, 2)
    heard = []
    held = features.Held(streamed, heard.append)
    assert heard == [2, 2, 1]
    (ours, our_targets), (theirs, their_targets) = read(held, indices), read(streamed, indices)
    for site in SITES:
        torch.testing.assert_close(ours[site], theirs[site], rtol=1e-4, atol=1e-5)
    for a, b, index in zip(our_targets, their_targets, indices, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert np.array_equal(a.labels.numpy(), dataset[index].mask)


def test_features_are_of_the_image_that_was_asked_for(adapter, dataset):
    ordered, _ = read(features.Streamed(adapter, dataset, SITES, 5), range(5))
    shuffled, _ = read(features.Streamed(adapter, dataset, SITES, 2), [4, 1])
    torch.testing.assert_close(shuffled[SITES[1]], ordered[SITES[1]][[4, 1]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ordered[SITES[1]][4], ordered[SITES[1]][1], atol=1e-2)


@pytest.mark.parametrize(
    ("policy", "free", "made"),
    [
        ("auto", 4.0, features.Held),
        ("auto", 3.9, features.Streamed),
        ("memory", 0.0, features.Held),
        ("stream", 9.0, features.Streamed),
    ],
)
def test_auto_holds_what_needs_a_quarter_of_the_free_memory(adapter, dataset, monkeypatch, policy, free, made):
    of_an_image = 36 * (32 + 48) * 4 + 48 * 60 * (2 + 1)  # features in float32; labels in int16 and their validity
    monkeypatch.setattr(features, "_memory_at_hand", lambda device: free * 5 * of_an_image)
    source = features.source(adapter, dataset, SITES, 2, policy, lambda images: None)
    assert type(source) is made


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

"""The plain evaluation against torch's own interpolation in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segbench.kernels import Target, plain
from segbench.kernels.plain import upsampled_argmax, upsampled_counts
from segbench.metrics.confusion import counts
from segbench.types import IGNORE, GridMap


def scene(grid, image, classes, seed=0, ignored=0.2):
    random = np.random.default_rng(seed)
    mask = random.integers(0, classes, image).astype(np.uint8)
    mask[random.random(image) < ignored] = IGNORE
    return mask, torch.from_numpy(random.normal(0, 3, (2, grid[0] * grid[1], classes)))


def full_logits(logits, grid, image):
    picture = logits.unflatten(1, grid).permute(0, 3, 1, 2)
    return F.interpolate(picture, image, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("rows", [1, 1 << 10, 1 << 19])
def test_strips_of_any_height_give_the_same(monkeypatch, rows):
    mask, logits = scene((4, 5), (33, 41), 6)
    target = Target.of(GridMap.squash((4, 5), (33, 41)), mask)
    whole = upsampled_argmax(logits.float(), target)
    monkeypatch.setattr(plain, "ROWS_AT_ONCE", rows)
    assert torch.equal(upsampled_argmax(logits.float(), target), whole)


def test_prediction_is_the_argmax_of_the_full_resolution_logits():
    _, logits = scene((4, 5), (33, 41), 6)
    target = Target.of(GridMap.squash((4, 5), (33, 41)), np.zeros((33, 41), np.uint8))
    expected = full_logits(logits, (4, 5), (33, 41)).argmax(1)
    assert (upsampled_argmax(logits.float(), target) != expected).float().mean() < 1e-3  # near ties


def test_unseen_and_ignored_pixels_count_nowhere():
    mask, logits = scene((4, 4), (16, 16), 5)
    grid_map = GridMap((4, 4), (16, 16), (0.25, 0.25), (0.0, 0.0), (2, 3, 14, 16))
    target = Target.of(grid_map, mask)
    hidden = mask.copy()
    hidden[:2], hidden[14:], hidden[:, :3] = IGNORE, IGNORE, IGNORE
    assert target.pixels == (hidden != IGNORE).sum()
    predicted = upsampled_argmax(logits.float(), target)
    ours = upsampled_counts(logits.float()[:, None], [target])[:, 0].numpy()
    for row in range(2):
        np.testing.assert_array_equal(ours[row], counts(predicted[row].numpy(), hidden, 5))


def test_transposed_tokens_and_a_stretched_grid_change_the_prediction():
    mask, logits = scene((3, 6), (24, 48), 4)
    target = Target.of(GridMap.squash((3, 6), (24, 48)), mask)
    right = upsampled_argmax(logits.float(), target)
    transposed = logits.float().unflatten(1, (6, 3)).transpose(1, 2).flatten(1, 2)
    assert (upsampled_argmax(transposed, target) != right).float().mean() > 0.3
    padded = GridMap((3, 6), (24, 48), (3 / 48, 6 / 48), (0.75, 0.0), (0, 0, 24, 48))
    assert (upsampled_argmax(logits.float(), Target.of(padded, mask)) != right).float().mean() > 0.1

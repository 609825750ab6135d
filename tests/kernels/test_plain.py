"""The plain kernels against torch's own interpolation and cross-entropy in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segbench.kernels import Target, plain
from segbench.kernels.plain import upsampled_argmax, upsampled_counts, upsampled_cross_entropy
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


@settings(max_examples=40, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    image=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    classes=st.integers(2, 7),
    seed=st.integers(0, 99),
)
def test_loss_and_gradient_equal_interpolate_and_cross_entropy(grid, image, classes, seed):
    mask, logits = scene(grid, image, classes, seed)
    target = Target.of(GridMap.squash(grid, image), mask)
    truth = torch.from_numpy(mask.astype(np.int64)).expand(2, *image)
    ours, theirs = logits.float().requires_grad_(), logits.clone().requires_grad_()
    loss = upsampled_cross_entropy(ours, target)
    pixels = F.cross_entropy(full_logits(theirs, grid, image), truth, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(loss.double(), pixels.sum((1, 2)), rtol=1e-5, atol=1e-4)
    loss.sum().backward()
    pixels.sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)


def test_far_apart_logits_neither_overflow_nor_lose_the_gradient():
    mask, logits = scene((3, 3), (12, 12), 4)
    logits = logits * 100
    target = Target.of(GridMap.squash((3, 3), (12, 12)), mask)
    ours, theirs = logits.float().requires_grad_(), logits.clone().requires_grad_()
    truth = torch.from_numpy(mask.astype(np.int64)).expand(2, 12, 12)
    upsampled_cross_entropy(ours, target).sum().backward()
    F.cross_entropy(full_logits(theirs, (3, 3), (12, 12)), truth, ignore_index=IGNORE, reduction="sum").backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rows", [1, 1 << 10, 1 << 19])
def test_strips_of_any_height_give_the_same(monkeypatch, rows):
    mask, logits = scene((4, 5), (33, 41), 6)
    target = Target.of(GridMap.squash((4, 5), (33, 41)), mask)
    whole = upsampled_cross_entropy(logits.float(), target), upsampled_argmax(logits.float(), target)
    monkeypatch.setattr(plain, "ROWS_AT_ONCE", rows)
    torch.testing.assert_close(upsampled_cross_entropy(logits.float(), target), whole[0])
    assert torch.equal(upsampled_argmax(logits.float(), target), whole[1])


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
    ours = upsampled_counts(logits.float(), target).numpy()
    for row in range(2):
        np.testing.assert_array_equal(ours[row], counts(predicted[row].numpy(), hidden, 5))
    gradient = logits.float().requires_grad_()
    upsampled_cross_entropy(gradient, target).sum().backward()
    assert gradient.grad.abs().sum() > 0
    nothing = Target.of(grid_map, np.full((16, 16), IGNORE, np.uint8))
    assert upsampled_cross_entropy(gradient, nothing).tolist() == [0, 0]


def test_transposed_tokens_and_a_stretched_grid_change_the_prediction():
    mask, logits = scene((3, 6), (24, 48), 4)
    target = Target.of(GridMap.squash((3, 6), (24, 48)), mask)
    right = upsampled_argmax(logits.float(), target)
    transposed = logits.float().unflatten(1, (6, 3)).transpose(1, 2).flatten(1, 2)
    assert (upsampled_argmax(transposed, target) != right).float().mean() > 0.3
    padded = GridMap((3, 6), (24, 48), (3 / 48, 6 / 48), (0.75, 0.0), (0, 0, 24, 48))
    assert (upsampled_argmax(logits.float(), Target.of(padded, mask)) != right).float().mean() > 0.1

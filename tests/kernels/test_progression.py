"""What only the plain making of the loss can get wrong: its bands, and where it leaves the powers."""

import pytest
import torch
from upsampled import scene

from segbench import geometry
from segbench.kernels import Target, powers, progression


@pytest.mark.parametrize("band", [1, 1 << 9, 1 << 24])
def test_bands_of_any_height_give_the_same(monkeypatch, band):
    grid_map = geometry.pad((5, 4), (37, 50))
    mask, logits = scene(grid_map, 6, seed=0)
    target = Target.of(grid_map, mask)
    totals, gradients = progression.loss_and_gradient(logits, target)
    monkeypatch.setitem(progression.BAND, "cpu", band)
    again, same = progression.loss_and_gradient(logits, target)
    torch.testing.assert_close(again, totals)
    torch.testing.assert_close(same, gradients, rtol=1e-4, atol=1e-5)


def test_pixel_by_pixel_is_the_same_as_by_powers(monkeypatch):
    grid_map = geometry.pad((5, 4), (37, 50))
    mask, logits = scene(grid_map, 6, seed=0)
    target = Target.of(grid_map, mask)
    totals, gradients = progression.loss_and_gradient(logits, target)
    monkeypatch.setattr(powers, "REACH", {})
    monkeypatch.setattr(progression, "_by_powers", None)
    again, same = progression.loss_and_gradient(logits, target)
    torch.testing.assert_close(again, totals, rtol=1e-6, atol=0)
    torch.testing.assert_close(same, gradients, rtol=1e-4, atol=1e-5)


def test_a_far_logit_sends_only_the_rows_beside_it_pixel_by_pixel(monkeypatch):
    grid_map = geometry.pad((6, 6), (60, 60))
    mask, logits = scene(grid_map, 6, seed=0, probes=1, scale=0.1)
    monkeypatch.setitem(progression.BAND, "cpu", 1)
    walked = []
    for name in ("_by_powers", "_pixel_by_pixel"):
        real = getattr(progression, name)
        monkeypatch.setattr(progression, name, lambda *x, real=real, name=name: walked.append(name) or real(*x))
    progression.loss_and_gradient(logits, Target.of(grid_map, mask))
    assert walked == ["_by_powers"] * 60
    logits[0, 5 * 6 + 2, 1] += 50  # in the last row of patches, whose centre is in pixel row 55
    walked.clear()
    progression.loss_and_gradient(logits, Target.of(grid_map, mask))
    assert walked[:45] == ["_by_powers"] * 45
    assert walked[55:] == ["_pixel_by_pixel"] * 5

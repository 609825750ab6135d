"""The Triton kernels against float64: on a GPU where there is one, else interpreted, instruction by instruction."""

import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segbench import geometry, kernels
from segbench.errors import CellError
from segbench.geometry import upsampling
from segbench.kernels import Target, cuda, plain
from segbench.types import IGNORE, GridMap

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PAD, CROP = geometry.pad((3, 3), (9, 17)), geometry.crop((2, 3), (10, 14), 8)  # small: a row of 32 pixels takes 1 ms


def interpreted():
    """Import the kernels with a triton of their own: it decides while it is imported whether it interprets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in [one for one in sys.modules if one.partition(".")[0] == "triton" and "._C" not in one]:
            patch.delitem(sys.modules, name)
        importlib.import_module("segbench.kernels.cuda_kernels")


if cuda.available() and not GPU:
    interpreted()


@pytest.fixture
def triton():
    if not cuda.available():
        pytest.skip("triton is not installed: it comes with torch's builds for CUDA")


def scene(grid_map, classes, scale=2.0, probes=2, seed=0, ignored=0.2):
    random = np.random.default_rng(seed)
    mask = random.integers(0, min(classes, IGNORE), grid_map.image).astype(np.uint8)
    mask[random.random(grid_map.image) < ignored] = IGNORE
    logits = random.normal(0, scale, (probes, grid_map.grid[0] * grid_map.grid[1], classes))
    return Target.of(grid_map, mask, DEVICE), torch.from_numpy(logits).float().to(DEVICE)


def exact(logits, target):
    """Loss and gradient in float64."""
    leaf, grid_map = logits.double().cpu().requires_grad_(), target.grid_map
    rows, columns = (torch.from_numpy(upsampling(grid_map, axis)) for axis in (0, 1))
    full = torch.einsum("yh,lhwk,xw->lkyx", rows, leaf.unflatten(1, grid_map.grid), columns)
    truth = torch.where(target.valid, target.labels.long(), IGNORE).cpu().expand(len(logits), -1, -1)
    loss = F.cross_entropy(full, truth, ignore_index=IGNORE, reduction="none").sum((1, 2))
    loss.sum().backward()
    return loss.detach(), leaf.grad


def fused(logits, target):
    loss, gradient = cuda.losses_and_gradients(logits[:, None], [target])
    return loss[:, 0].cpu(), gradient[:, 0].cpu()


@pytest.mark.parametrize(
    ("grid_map", "classes", "scale"),
    [
        pytest.param(GridMap.squash((2, 3), (7, 20)), 19, 2, id="squash"),
        pytest.param(PAD, 37, 2, id="pad"),
        pytest.param(CROP, 2, 2, id="crop, two classes"),
        pytest.param(GridMap.squash((1, 2), (3, 82)), 5, 2, id="one row, cells wider than a tile"),
        pytest.param(GridMap.squash((6, 5), (4, 3)), 5, 2, id="fewer pixels than patches"),
        pytest.param(GridMap.squash((2, 1), (70, 3)), 33, 3, id="cells higher than a tile"),
        pytest.param(GridMap.squash((1, 2), (1, 2)), 1203, 3, id="many classes"),
        pytest.param(GridMap.squash((2, 2), (13, 12)), 21, 100, id="far apart"),
        pytest.param(GridMap.squash((2, 3), (17, 13)), 6, 12, id="some far apart"),
    ],
)
def test_loss_and_gradient_are_float64s_up_to_rounding(triton, grid_map, classes, scale):
    target, logits = scene(grid_map, classes, scale, probes=1)
    (ours, gradient), (right, slope) = fused(logits, target), exact(logits, target)
    torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-6)
    assert (gradient - slope).norm() < 1e-5 * slope.norm()


def test_classes_that_fade_between_patches_do_not_vanish(triton):
    """Every class is at home on one patch and 300 below elsewhere: half way, all exponentials are below 2^-126."""
    grid_map = GridMap.squash((3, 3), (12, 12))
    target, _ = scene(grid_map, 9)
    logits = torch.eye(9, device=DEVICE)[None] * 300
    (ours, gradient), (right, slope) = fused(logits, target), exact(logits, target)
    torch.testing.assert_close(ours, right, rtol=1e-6, atol=1e-6)
    assert (gradient - slope).norm() < 1e-5 * slope.norm()


def test_a_probes_large_logits_cost_another_probe_no_digit(triton):
    target, logits = scene(GridMap.squash((2, 2), (8, 8)), 5)
    alone = fused(logits[:1], target)
    shifted = fused(torch.cat([logits[:1], logits[1:] * 1000]), target)
    assert torch.equal(alone[0], shifted[0][:1])
    assert torch.equal(alone[1], shifted[1][:1])


def test_images_that_share_launches_are_as_in_launches_of_their_own_to_the_bit(triton, monkeypatch):
    maps = [GridMap.squash((1, 2), (2, 34)), geometry.crop((1, 2), (3, 5), 2), GridMap.squash((2, 1), (5, 2))]
    scenes = [scene(grid_map, 5, seed=seed) for seed, grid_map in enumerate(maps)]
    logits, targets = torch.stack([one for _, one in scenes], 1), [target for target, _ in scenes]
    monkeypatch.setattr(cuda, "TALLIED", 32)
    results = []
    for memory, parts in ((1 << 29, 2), (1, 6)):
        monkeypatch.setattr(cuda, "MEMORY", memory)
        assert len(list(cuda._parts(logits, targets, cuda._bytes_of_loss))) == parts
        confusion = torch.ones(2, 5, 5, dtype=torch.int64, device=DEVICE)
        counts = cuda.upsampled_counts(logits, targets, confusion)
        assert counts[..., 1].sum(2).tolist() == [[target.pixels for target in targets]] * 2
        assert torch.equal(confusion.sum(2) - 5, counts[..., 1].sum(1))
        results.append((*cuda.losses_and_gradients(logits, targets), counts, confusion))
    assert all(torch.equal(together, alone) for together, alone in zip(*results, strict=True))


def test_parts_cover_every_probe_on_every_image_once_and_stay_within_the_memory(monkeypatch):
    grids = [(4, 4)] * 5 + [(2, 8)] * 2 + [(4, 4)]
    targets = [Target.of(GridMap.squash(grid, (20, 30)), np.zeros((20, 30), np.uint8)) for grid in grids]
    for fits in (1, 2, 5, 7, 12, 1000):
        monkeypatch.setattr(cuda, "MEMORY", fits * 100)
        covered = torch.zeros(5, 8)
        for part, some in cuda._parts(torch.zeros(5, 8, 16, 3), targets, lambda *_: 100):
            covered[part] += 1
            assert covered[part].numel() <= fits
            assert some == targets[part[1]]
            assert len({target.grid_map.grid for target in some}) == 1
        assert (covered == 1).all()


def test_an_image_without_labels_has_no_loss_and_no_gradient(triton):
    unseen = GridMap((3, 3), (9, 9), (0.4, 0.4), (0.0, 0.0), (3, 3, 3, 9))
    for target, logits in (scene(PAD, 4, ignored=1), scene(unseen, 4)):
        loss, gradient = fused(logits, target)
        assert loss.tolist() == [0, 0]
        assert gradient.count_nonzero() == 0


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter is numpy
def test_a_logit_without_bounds_spoils_the_loss_of_its_probe_alone(triton):
    target, logits = scene(GridMap.squash((2, 2), (3, 3)), 4, probes=5)
    right = fused(logits[:1], target)
    logits[1:, 3, 2] = torch.tensor([torch.nan, torch.inf, -torch.inf, 2e37])
    loss, gradient = fused(logits, target)
    assert loss[0] == right[0][0]
    assert torch.equal(gradient[0], right[1][0])
    assert loss[1:].isnan().all()
    assert gradient[1:].isnan().all()


def test_a_ground_truth_beyond_the_probes_classes_is_refused(triton):
    target, logits = scene(PAD, 4)
    with pytest.raises(CellError, match=r"the ground truth holds class 3, beyond the probe's 3"):
        fused(logits[..., :3], target)
    counts = cuda.upsampled_counts(logits[:, None, :, :3], [target])
    assert (counts[..., 1:].sum(2) == target.pixels - (target.valid & (target.labels == 3)).sum()).all()


@pytest.mark.parametrize(
    ("grid_map", "classes"),
    [(GridMap.squash((2, 3), (9, 40)), 19), (PAD, 33), (CROP, 2), (GridMap.squash((1, 1), (3, 40)), 5)],
)
def test_argmax_and_counts_are_the_plain_ones_but_for_near_ties(triton, grid_map, classes):
    target, logits = scene(grid_map, classes)
    off = cuda.upsampled_argmax(logits, target) != plain.upsampled_argmax(logits, target)
    assert off.sum() <= 1
    ours, theirs = torch.zeros(2, 2, classes, classes, dtype=torch.int64, device=DEVICE)
    counts = cuda.upsampled_counts(logits[:, None], [target], ours)
    right = plain.upsampled_counts(logits[:, None], [target], theirs)
    assert (counts - right).abs().sum() <= 4 * off.sum()
    assert (ours - theirs).abs().sum() <= 4 * off.sum()
    assert (counts[..., 1:].sum(2) == target.pixels).all()


def test_the_first_of_equal_classes_wins(triton):
    target, logits = scene(GridMap.squash((3, 3), (9, 10)), 20, probes=1)
    logits[..., 10:] = logits[..., :10]
    winners = cuda.upsampled_argmax(logits, target)
    assert winners.max() < 10
    assert len(winners.unique()) > 5
    assert cuda.upsampled_argmax(torch.zeros_like(logits), target).count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 2e37])
def test_logits_without_an_argmax_are_refused_by_the_probes_number(triton, bad):
    target, logits = scene(PAD, 3, probes=4)
    logits[2, 7, 1] = bad
    with pytest.raises(CellError, match=r"the largest logit of probe 2 is (nan|inf|2e\+37)"):
        cuda.upsampled_counts(logits[:, None], [target])


def test_the_interface_trains_and_counts_by_them(triton, monkeypatch):
    target, logits = scene(CROP, 3)
    monkeypatch.setattr(kernels, "_making", lambda device: cuda.Making("Triton", cuda.Kernels()))
    leaf = logits.clone().requires_grad_()
    losses = kernels.upsampled_cross_entropy(leaf[:, None], [target])[:, 0]
    (losses * torch.tensor([2.0, -1.0], device=DEVICE)).sum().backward()
    _, slope = exact(logits, target)
    slope[0] *= 2
    slope[1] *= -1
    assert (leaf.grad.cpu() - slope).norm() < 1e-5 * slope.norm()
    assert kernels.upsampled_counts(logits[:, None], [target])[..., 1].sum() == 2 * target.pixels
    assert kernels.upsampled_argmax(logits, target).dtype == torch.uint8


def test_a_device_that_is_neither_cpu_nor_gpu_has_plain_pytorch():
    assert kernels.making("meta") == "plain PyTorch"


def test_the_kernels_are_tried_before_they_are_used_and_plain_pytorch_stands_in(triton, monkeypatch, caplog):
    caplog.set_level(logging.INFO)

    def once(function):  # what is tried is the same each time
        found = []

        def call(*arguments):
            found[:] = found or [function(*arguments)]
            return found[0]

        return call

    right = once(cuda.upsampled_counts)

    def wrong(*arguments):
        return right(*arguments).roll(1, 2)

    def missing(*_):
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(cuda, "losses_and_gradients", once(cuda.losses_and_gradients))
    for counts, says in (
        (right, "Triton"),
        (wrong, "plain PyTorch (triton's kernels are off by "),
        (missing, "plain PyTorch (triton cannot compile: Failed to find C compiler.)"),
    ):
        monkeypatch.setattr(cuda, "upsampled_counts", counts)
        cuda.making.cache_clear()
        caplog.clear()
        made = cuda.making(DEVICE)
        assert made.says.startswith(says)
        assert (made.kernels is None) == (says != "Triton")
        assert [record.message.startswith(f"probes on {DEVICE}: {says}") for record in caplog.records] == [True]
    cuda.making.cache_clear()


def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    if not cuda.available():
        pytest.skip("triton is not installed: it comes with torch's builds for CUDA")
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    environ = os.environ | {"PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, script, "--offline"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    for kernel in ("log_sums", "gradients", "collect", "winners", "tally"):
        assert f"| {kernel}, " in done.stdout

"""Both makings of the loss against torch's own cross-entropy in float64, and against float32 beside it."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upsampled import grid_maps, scene

from segbench import geometry, kernels
from segbench.errors import CellError
from segbench.geometry import seen_truth, upsampling
from segbench.kernels import Target, build, compiled, progression
from segbench.types import IGNORE, GridMap


@pytest.fixture(scope="module", params=["plain", *build.TARGETS])
def loss(request):
    """Loss and gradient of one image by one making; compiled ones only where they can be."""
    if request.param == "plain":
        return progression.loss_and_gradient
    try:
        return one_image(compiled.load(request.getfixturevalue("library"), request.param))
    except compiled.NotCompiled:
        pytest.skip(f"this machine cannot run {request.param}")


def one_image(making):
    def loss(logits, target):
        totals, gradients = making.losses_and_gradients(logits[:, None], [target])
        return totals[:, 0], gradients[:, 0]

    return loss


def naive(logits, grid_map, mask, dtype=torch.float64):
    """Loss and gradient of one probe by full-resolution logits, as F.interpolate makes them for any grid map."""
    grid = logits.to(dtype).unflatten(0, grid_map.grid).requires_grad_()
    rows, columns = (torch.from_numpy(upsampling(grid_map, axis)).to(dtype) for axis in (0, 1))
    pixels = torch.einsum("yh,hwk,xw->kyx", rows, grid, columns)
    return _graded(pixels, grid, grid_map, mask)


def interpolated(logits, grid_map, mask, dtype):
    """The same through F.interpolate, for grids that cover exactly the whole image."""
    grid = logits.to(dtype).unflatten(0, grid_map.grid).requires_grad_()
    picture = grid.permute(2, 0, 1)[None]
    return _graded(F.interpolate(picture, grid_map.image, mode="bilinear")[0], grid, grid_map, mask)


def _graded(pixels, grid, grid_map, mask):
    truth = torch.from_numpy(seen_truth(mask, grid_map).astype(np.int64))[None]
    total = F.cross_entropy(pixels[None], truth, ignore_index=IGNORE, reduction="sum")
    total.backward()
    return total.item(), grid.grad.flatten(0, 1)


def apart(ours, theirs):
    """Relative distance of two gradients."""
    return ((ours.double() - theirs).norm() / theirs.norm().clamp(min=1e-30)).item()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grid_map=grid_maps(),
    classes=st.sampled_from([2, 3, 5, 16, 17, 19, 31, 150, 1203]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e30]),
    ignored=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_loss_and_gradient_are_those_of_full_resolution_logits_in_float64(
    loss, grid_map, classes, seed, scale, ignored
):
    mask, logits = scene(grid_map, classes, seed, scale, ignored=ignored)
    target = Target.of(grid_map, mask)
    totals, gradients = loss(logits, target)
    for total, gradient, one in zip(totals.tolist(), gradients, logits, strict=True):
        right, slopes = naive(one, grid_map, mask)
        rounding = 4e-7 * target.pixels * one.abs().max().item()
        assert abs(total - right) <= 1e-6 * right + rounding
        if scale <= 30:  # logits of 1e30 are equal or infinitely far apart: gradients there are coin flips
            around = np.prod([upsampling(grid_map, axis).sum(0).max() for axis in (0, 1)])  # pixels around a patch
            assert (gradient - slopes).abs().max() <= 1e-6 * max(1, one.abs().max().item()) * around
        else:
            assert gradient.isfinite().all()
            assert gradient.sum().abs() <= 1e-5 * target.pixels
    if not target.pixels:
        assert totals.tolist() == [0, 0]
        assert not gradients.any()


@pytest.mark.parametrize("spread", [0.3, 3, 30, 100], ids=lambda spread: f"spread {spread}")
@pytest.mark.parametrize(("classes", "image"), [(150, (128, 171)), (19, (128, 256)), (5, (300, 90))])
def test_the_gradient_errs_by_a_millionth_and_less_than_float32_at_full_resolution(loss, classes, image, spread):
    grid_map = GridMap.squash((6, 6), image)
    mask, logits = smooth_scene(grid_map, classes, spread)
    right, slopes = interpolated(logits[0], grid_map, mask, torch.float64)
    _, theirs = interpolated(logits[0], grid_map, mask, torch.float32)
    totals, gradients = loss(logits, Target.of(grid_map, mask))
    assert apart(gradients[0], slopes) <= 1e-6
    assert apart(gradients[0], slopes) <= apart(theirs, slopes)
    assert abs(totals[0].item() - right) <= 1e-6 * right


@pytest.mark.parametrize("spread", [0.01, 1, 4, 15])
@pytest.mark.parametrize("seen", [None, (0, 40, 48, 290)], ids=["all seen", "cells cut"])
def test_the_gradient_is_as_exact_where_patches_are_longer_than_a_run_or_are_cut(loss, seen, spread):
    grid_map = GridMap.squash((3, 3), (48, 330))
    grid_map = grid_map if seen is None else dataclasses.replace(grid_map, seen=seen)
    mask, logits = smooth_scene(grid_map, 40, spread)
    _, slopes = naive(logits[0], grid_map, mask)
    _, gradients = loss(logits, Target.of(grid_map, mask))
    assert apart(gradients[0], slopes) <= 4e-7


def smooth_scene(grid_map, classes, spread):
    """Two regions of pixels and an ignored border; logits that know a little of them, `spread` from class to class."""
    random = np.random.default_rng(classes)
    y, x = np.mgrid[: grid_map.image[0], : grid_map.image[1]]
    wave = np.sin(x / 19) * 9 + y - grid_map.image[0] / 2
    mask = np.where(wave > 0, classes - 1, 1).astype(np.uint8)
    mask[abs(wave) < 4] = IGNORE
    logits = random.normal(0, spread, (1, *grid_map.grid, classes))
    logits[:, :3, :, 1] += spread
    logits[:, 3:, :, -1] += spread
    return mask, torch.from_numpy(logits).float().flatten(1, 2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2e37])
def test_a_logit_that_is_not_finite_spoils_the_loss_of_its_probe_alone(loss, bad):
    grid_map = geometry.pad((5, 4), (37, 50))
    mask, logits = scene(grid_map, 3, seed=0, probes=3)
    target = Target.of(grid_map, mask)
    before, gradient = loss(logits, target)
    logits[1, 7, 1] = bad
    after, spoilt = loss(logits, target)
    assert after.isfinite().tolist() == [True, False, True]
    assert torch.equal(before[::2], after[::2])
    assert torch.equal(gradient[::2], spoilt[::2])
    assert not spoilt[1].isfinite().any()


@pytest.mark.parametrize("scale", [1e6, 1e18, 1e30])
def test_where_logits_are_huge_the_winner_takes_the_pixel(loss, scale):
    grid_map = GridMap.squash((1, 2), (1, 5))
    mask, logits = scene(grid_map, 2, seed=2, scale=scale, ignored=0)
    totals, gradients = loss(logits, Target.of(grid_map, mask))
    for total, gradient, one in zip(totals, gradients, logits, strict=True):
        right, slopes = naive(one, grid_map, mask)
        assert total.item() == pytest.approx(right, rel=1e-5)
        torch.testing.assert_close(gradient.double(), slopes, rtol=1e-5, atol=1e-5)


def test_a_common_offset_of_all_classes_changes_nothing(loss):
    grid_map = geometry.pad((5, 4), (37, 50))
    mask, logits = scene(grid_map, 7, seed=0, probes=1)
    target = Target.of(grid_map, mask)
    (total,), gradient = loss(logits, target)
    (moved,), same = loss(logits.double().add(64).float(), target)
    assert moved.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-4)


def test_unseen_and_ignored_pixels_and_their_logits_count_nowhere(loss):
    grid_map = GridMap((4, 4), (64, 64), (1 / 16, 1 / 16), (0.0, 0.0), (2, 40, 60, 64))
    mask, logits = scene(grid_map, 5, seed=1, probes=1)
    total, gradient = loss(logits, Target.of(grid_map, mask))
    grid = gradient.view(4, 4, 5)
    assert not grid[:, :2].any()  # the seen columns lie between the last two patches, or behind the last
    assert grid[:, 2:].any(-1).all()
    hidden = mask.copy()
    hidden[:2], hidden[60:], hidden[:, :40] = 3, 3, IGNORE
    again, same = loss(logits, Target.of(grid_map, hidden))
    assert torch.equal(total, again)
    assert torch.equal(gradient, same)


def test_it_says_the_same_each_time_however_many_threads_there_are(loss):
    grid_map = GridMap.squash((12, 12), (97, 130))
    mask, logits = scene(grid_map, 20, seed=0, probes=5)
    target, threads = Target.of(grid_map, mask), torch.get_num_threads()

    def work(number):
        totals, gradients = loss(logits.roll(number, 0), target)
        return totals.roll(-number, 0), gradients.roll(-number, 0)

    alone = work(0)
    try:
        torch.set_num_threads(3)  # which divide the probes of a call, too
        with ThreadPoolExecutor(3) as pool:
            results = list(pool.map(work, range(6)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, alone, strict=True))


def test_a_class_beyond_the_probes_is_refused(loss):
    grid_map = GridMap.squash((5, 4), (37, 50))
    mask, logits = scene(grid_map, 4, seed=0)
    with pytest.raises(CellError, match="the ground truth holds class 3, beyond the probe's 3"):
        loss(logits[..., :3], Target.of(grid_map, mask))


def test_through_autograd_the_gradient_is_the_makings_times_what_comes_back(library, monkeypatch):
    grid_map = GridMap.squash((5, 4), (37, 50))
    mask, logits = scene(grid_map, 4, seed=0)
    target = Target.of(grid_map, mask)
    for kernel in (compiled.load(library), None):
        monkeypatch.setattr(compiled, "making", lambda kernel=kernel: compiled.Making("", kernel))
        walk = progression.loss_and_gradient if kernel is None else one_image(kernel)
        leaf = logits.clone().requires_grad_()
        totals = kernels.upsampled_cross_entropy(leaf[:, None], [target])[:, 0]
        (totals * torch.tensor([2.0, -0.5])).sum().backward()
        expected, gradient = walk(logits, target)
        torch.testing.assert_close(totals, expected.float())
        torch.testing.assert_close(leaf.grad, gradient * torch.tensor([2.0, -0.5])[:, None, None])


def test_after_200_optimiser_steps_the_weights_are_as_close_to_float64s_as_float32s(loss):
    torch.manual_seed(0)
    grid_map, classes, width = GridMap.squash((6, 6), (48, 60)), 12, 16
    masks = [smooth_scene(grid_map, classes, 1)[0] if n % 2 else scene(grid_map, classes, n)[0] for n in range(4)]
    tokens = torch.randn(4, 36, width)
    targets = [Target.of(grid_map, mask) for mask in masks]

    def ours(logits, number):
        return loss(logits[None], targets[number])[1][0]

    def train(gradient_of, dtype):
        weight = torch.zeros(classes, width, dtype=dtype, requires_grad=True)
        optimiser = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0)
        for step in range(200):
            x = tokens[step % 4].to(dtype)
            gradient = gradient_of((x @ weight.T).detach(), step % 4)
            weight.grad = gradient.T @ x / targets[step % 4].pixels
            optimiser.step()
        return weight.detach()

    def theirs(dtype):
        return train(lambda logits, number: interpolated(logits, grid_map, masks[number], dtype)[1], dtype)

    right = theirs(torch.float64)
    assert apart(train(ours, torch.float32), right) <= max(1e-6, 1.5 * apart(theirs(torch.float32), right))


def test_the_plan_holds_every_valid_pixel_once_and_is_the_transposed_upsampling(library):
    fast = compiled.load(library)
    for seed, grid_map in enumerate([geometry.pad((5, 4), (37, 50)), geometry.crop((6, 6), (50, 37), 40)]):
        mask, _ = scene(grid_map, 9, seed)
        target = Target.of(grid_map, mask)
        plan = fast.plan(target)
        rows, columns = (upsampling(grid_map, axis) for axis in (0, 1))
        onehot = (mask[..., None] == np.arange(9)) & target.valid.numpy()[..., None]
        expected = np.einsum("yh,yxk,xw->hwk", rows, onehot, columns).reshape(-1, 9)
        for token, label, pixels in ([*plan.place.T.tolist(), plan.pixels], progression.mass(target)):
            found = np.zeros_like(expected)
            found[token, label] = pixels
            np.testing.assert_allclose(found, expected, atol=1e-9)
        bits = np.unpackbits(plan.bits.view(np.uint8).reshape(*plan.bits.shape, 2), axis=2, bitorder="little")
        spread = bits.transpose(0, 2, 1).reshape(-1, plan.bits.shape[1])
        np.testing.assert_array_equal(spread[: len(mask)], target.valid.numpy())
        assert not spread[len(mask) :].any()


def test_the_plan_is_made_once_for_a_ground_truth(library, monkeypatch):
    fast = compiled.load(library)
    grid_map = GridMap.squash((5, 4), (37, 50))
    mask, logits = scene(grid_map, 4, seed=0)
    target = Target.of(grid_map, mask)
    first = one_image(fast)(logits, target)[0]
    monkeypatch.setattr(fast, "plan", None)
    assert torch.equal(one_image(fast)(logits, target)[0], first)


def test_the_compiled_loss_is_many_times_faster_than_full_resolution_logits(library):
    fast = one_image(compiled.load(library))
    grid_map = GridMap.squash((24, 24), (256, 341))
    mask, logits = scene(grid_map, 150, seed=0, probes=1)
    target = Target.of(grid_map, mask)
    fast(logits, target)

    def seconds(work):
        start = time.thread_time()
        work()
        return time.thread_time() - start

    def full():
        return interpolated(logits[0], grid_map, mask, torch.float32)

    pairs = [(seconds(full), seconds(lambda: fast(logits, target))) for _ in range(3)]
    assert min(a for a, _ in pairs) > 15 * min(b for _, b in pairs)  # about 150 and more where it was measured

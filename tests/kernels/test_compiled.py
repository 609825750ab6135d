"""The compiled evaluation against float64: another class only where two are equal up to float32's rounding."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upsampled import full, grid_maps, largest_corner, scene

from segbench import geometry, kernels
from segbench.errors import CellError
from segbench.geometry import seen_truth
from segbench.kernels import Target, build, compiled, plain
from segbench.metrics import confusion
from segbench.types import GridMap

EPS = float(np.finfo(np.float32).eps)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grid_map=grid_maps(),
    classes=st.sampled_from([2, 3, 5, 16, 17, 31, 150, 257, 1203]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    ties=st.booleans(),
    ignored=st.sampled_from([0.0, 0.2, 1.0]),
    bias=st.sampled_from([0, 0.5, 2]),
)
def test_every_pixel_is_float64s_argmax_or_a_near_tie_and_is_counted_once(
    target_kernels, grid_map, classes, seed, scale, ties, ignored, bias
):
    mask, logits = scene(grid_map, classes, seed, scale, ties, ignored, bias=bias)
    target = Target.of(grid_map, mask)
    winners = target_kernels.argmax(logits, target).numpy().astype(np.int64)
    pairs = torch.ones(2, classes, classes, dtype=torch.int64)
    counts = target_kernels.counts(logits[:, None], [target], pairs)[:, 0].numpy()
    truth = seen_truth(mask, grid_map)
    for row in range(2):
        pixels = full(logits[row], grid_map)
        lost = pixels.max(-1) - np.take_along_axis(pixels, winners[row][..., None], -1)[..., 0]
        assert (lost <= 8 * EPS * largest_corner(logits[row], grid_map)).all()
        np.testing.assert_array_equal(counts[row], confusion.counts(winners[row], truth, classes))
        np.testing.assert_array_equal(pairs[row].numpy() - 1, confusion.confusion(winners[row], truth, classes))
    assert (counts[..., 1:].sum(1) == target.pixels).all()


def test_it_counts_as_the_plain_making_does(target_kernels):
    grid_map = geometry.pad((24, 24), (120, 161))
    mask, logits = scene(grid_map, 150, seed=0, probes=3)
    target = Target.of(grid_map, mask)
    ours, theirs = torch.zeros(2, 3, 150, 150, dtype=torch.int64)
    compiled_counts = target_kernels.counts(logits[:, None], [target], ours)
    plain_counts = plain.upsampled_counts(logits[:, None], [target], theirs)
    assert (compiled_counts - plain_counts).abs().sum() <= 8  # near ties among 3 x 19,320 pixels
    assert (ours - theirs).abs().sum() <= 8
    assert len(theirs[0].nonzero()) > 1000


def test_the_first_of_equal_classes_wins(target_kernels):
    grid_map = GridMap.squash((5, 4), (37, 50))
    mask, logits = scene(grid_map, 40, seed=1)
    logits[..., 20:] = logits[..., :20]
    winners = target_kernels.argmax(logits, Target.of(grid_map, mask))
    assert winners.max() < 20
    assert len(winners.unique()) > 5
    nothing = target_kernels.argmax(torch.zeros_like(logits), Target.of(grid_map, mask))
    assert nothing.count_nonzero() == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 2e37])
@pytest.mark.parametrize("making", ["compiled", "plain"])
def test_logits_without_an_argmax_are_refused_by_the_probes_number(library, making, bad):
    grid_map = GridMap.squash((5, 4), (37, 50))
    mask, logits = scene(grid_map, 3, seed=0, probes=4)
    logits[2, 7, 1] = bad
    count = plain.upsampled_counts if making == "plain" else compiled.load(library).counts
    with pytest.raises(CellError, match=r"the largest logit of probe 2 is (nan|inf|2e\+37)"):
        count(logits[:, None], [Target.of(grid_map, mask)], None)


def test_many_threads_at_once_count_as_one_does(library):
    fast = compiled.load(library)
    grid_map = GridMap.squash((24, 24), (97, 130))
    mask, logits = scene(grid_map, 60, seed=0, probes=5)
    target = Target.of(grid_map, mask)

    def work(number):
        pairs = torch.zeros(5, 60, 60, dtype=torch.int64)
        counts = fast.counts(logits.roll(number, 0)[:, None], [target], pairs)
        return counts.roll(-number, 0), pairs.roll(-number, 0)

    alone, threads = work(0), torch.get_num_threads()
    try:
        torch.set_num_threads(3)  # which divide the probes of a call, too
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(work, range(40)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, alone, strict=True))


def test_a_label_beyond_the_classes_is_told_and_writes_nowhere(library, monkeypatch):
    grid_map = GridMap.squash((5, 4), (37, 50))
    mask, logits = scene(grid_map, 3, seed=0, ignored=0)
    target = Target.of(grid_map, mask)
    kept = int((target.labels != 2).sum())
    wrong = replace(target, labels=torch.where(target.labels == 2, 3, target.labels).short())
    for kernel in (compiled.load(library), None):
        monkeypatch.setattr(compiled, "making", lambda kernel=kernel: compiled.Making("", kernel))
        with pytest.raises(CellError, match=r"of 1850 labelled pixels were counted; .* beyond the probe's 3"):
            kernels.upsampled_counts(logits[:, None], [wrong])
        assert kernels.upsampled_counts(logits[:, None], [target])[..., 1].sum() == 2 * 1850
    counts = compiled.load(library).counts(logits[:, None], [wrong], None)
    assert (counts[..., 1:].sum(2) == kept).all()  # class 3 of the first probe would be class 0 of the second


def test_what_cannot_be_used_says_why_and_the_plain_making_stands_in(library, tmp_path, monkeypatch, caplog):
    with pytest.raises(compiled.NotCompiled, match="not compiled"):
        compiled.load(tmp_path / "absent.so")
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(compiled.NotCompiled, match=r"broken\.so cannot be loaded"):
        compiled.load(broken)
    with monkeypatch.context() as patch:
        patch.setattr(build, "digest", lambda: "another")
        with pytest.raises(compiled.NotCompiled, match="compiled from other sources"):
            compiled.load(library)
    caplog.set_level(logging.INFO)
    for path, says in ((library, "compiled C, "), (broken, "plain PyTorch (broken.so cannot be loaded")):
        caplog.clear()
        compiled.making.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(build, "LIBRARY", path)
            assert kernels.making().startswith(says)
            grid_map = GridMap.squash((3, 3), (9, 9))
            mask, logits = scene(grid_map, 300, seed=0)
            assert kernels.upsampled_argmax(logits, Target.of(grid_map, mask)).dtype == torch.int16
            assert kernels.upsampled_argmax(logits[..., :7], Target.of(grid_map, mask)).dtype == torch.uint8
        compiled.making.cache_clear()
        assert [record.message.startswith(f"evaluation on a CPU: {says}") for record in caplog.records] == [True]

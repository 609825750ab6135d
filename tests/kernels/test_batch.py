"""A micro-batch says of its images what they say alone, to the bit, however many threads share it."""

import multiprocessing

import pytest
import torch
from upsampled import scene

from segbench import geometry, kernels
from segbench.errors import CellError
from segbench.kernels import Target, compiled
from segbench.types import GridMap

CLASSES = 21
MAPS = (
    GridMap.squash((4, 5), (37, 50)),
    geometry.pad((4, 5), (61, 33)),
    geometry.crop((4, 5), (50, 37), 40),
    GridMap.squash((5, 4), (23, 70)),  # as many tokens
    GridMap((4, 5), (9, 9), (0.4, 0.4), (0.0, 0.0), (3, 3, 3, 9)),  # nothing was seen
)


@pytest.fixture(params=["plain", "compiled"])
def making(request, monkeypatch):
    made = compiled.Making("", None)
    if request.param == "compiled":
        made = compiled.Making("", compiled.load(request.getfixturevalue("library")))
    monkeypatch.setattr(compiled, "making", lambda: made)
    return request.param


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def batch(probes):
    drawn = [(grid_map, 0.2) for grid_map in MAPS] + [(MAPS[0], 1.0)]  # in the last, nothing is labelled
    scenes = [scene(grid_map, CLASSES, seed, 1, False, none, probes) for seed, (grid_map, none) in enumerate(drawn)]
    targets = [Target.of(grid_map, mask) for (grid_map, _), (mask, _) in zip(drawn, scenes, strict=True)]
    return torch.stack([logits for _, logits in scenes], 1), targets


def trained(logits, targets):
    leaf = logits.clone().requires_grad_()
    losses = kernels.upsampled_cross_entropy(leaf, targets)
    losses.sum().backward()
    return losses.detach(), leaf.grad


def counted(logits, targets):
    confusion = torch.ones(len(logits), CLASSES, CLASSES, dtype=torch.int64)
    return kernels.upsampled_counts(logits, targets, confusion), confusion - 1


@pytest.mark.parametrize("probes", [1, 3])
def test_a_batch_is_its_images_one_by_one_to_the_bit(making, threads, probes):
    logits, targets = batch(probes)
    threads(1)
    one_by_one = [logits[:, row, None] for row in range(len(targets))]
    alone = [trained(some, [target]) for some, target in zip(one_by_one, targets, strict=True)]
    whole = torch.cat([loss for loss, _ in alone], 1)
    counts, confusions = zip(*map(counted, one_by_one, [[target] for target in targets]), strict=True)
    for number in (1,) if making == "plain" else (1, 3):  # torch's own sums depend on its threads
        threads(number)
        _, fresh = batch(probes)  # whose plans are still to be made
        losses, gradients = trained(logits, fresh)
        assert torch.equal(losses, whole)
        assert torch.equal(gradients, torch.cat([gradient for _, gradient in alone], 1))
        together, confusion = counted(logits, fresh)
        assert torch.equal(together, torch.cat(counts, 1))
        assert torch.equal(confusion, sum(confusions))
        assert confusion.sum() == probes * sum(target.pixels for target in targets)
    assert not whole[:, -2:].any()  # nothing seen, nothing labelled
    assert whole[:, :-2].all()


def test_a_nan_spoils_its_probe_on_its_image_alone(making):
    logits, targets = batch(3)
    losses, gradients = trained(logits, targets)
    spoilt = logits.clone()
    spoilt[1, 2, 7, 3] = torch.nan
    after, pull = trained(spoilt, targets)
    bad = torch.zeros_like(losses, dtype=torch.bool)
    bad[1, 2] = True
    assert torch.equal(after.isnan(), bad)
    assert torch.equal(after[~bad], losses[~bad])
    assert torch.equal(pull[~bad], gradients[~bad])
    assert pull[bad].isnan().all()
    with pytest.raises(CellError, match="the largest logit of probe 1 is nan"):
        kernels.upsampled_counts(spoilt, targets)


def test_a_ground_truth_beyond_the_classes_is_refused_in_any_place(making):
    logits, _ = batch(2)
    masks = [scene(MAPS[0], 3, 0)[0], scene(MAPS[0], 4, 0)[0]]
    few = [Target.of(MAPS[0], mask) for mask in masks]
    with pytest.raises(CellError, match="the ground truth holds class 3, beyond the probe's 3"):
        kernels.upsampled_cross_entropy(logits[:, :2, :, :3], few)


def test_a_forked_process_computes_as_its_parent_does(library, threads, monkeypatch):
    made = compiled.Making("", compiled.load(library))
    monkeypatch.setattr(compiled, "making", lambda: made)
    logits, targets = batch(1)
    threads(2)
    expected = counted(logits, targets)[0]  # the parent's threads have started
    forked = multiprocessing.get_context("fork")
    ours, theirs = forked.Pipe()

    def work():
        theirs.send(counted(logits, targets)[0].tolist())

    child = forked.Process(target=work)
    child.start()
    answered = ours.poll(30)
    if not answered:
        child.kill()
    child.join()
    assert answered
    assert ours.recv() == expected.tolist()

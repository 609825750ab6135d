"""Where memory runs out, fewer images are taken at once, none twice, and what is found stays the same."""

import itertools

import numpy as np
import pytest
import torch
from narrow import Narrow
from planted import LACKS
from tiny_features import SITES, read_all, work

from segbench import features, probes
from segbench.errors import CellError
from segbench.features import MicroBatch, policy
from segbench.features.estimate import SHARES
from segbench.features.memory import TooLarge
from segbench.team import Team
from segbench.types import Site


class Room:
    """Work on numbers of which only so many fit into memory at once."""

    def __init__(self, fit, lack=LACKS[0]):
        self.fit, self.lack, self.tried = fit, lack, []

    def __call__(self, numbers):
        self.tried.append(len(numbers))
        if len(numbers) > self.fit:
            if self.lack is None:
                torch.empty(1 << 55)
            raise self.lack
        return list(numbers)


@pytest.mark.parametrize("lack", LACKS, ids=["torch on a CPU", "python", "torch on a GPU"])
def test_what_was_done_before_memory_ran_out_is_not_done_again(lack, caplog):
    room, micro_batch, made = Room(4, lack), MicroBatch(4), []
    for numbers in micro_batch.each(range(12), room):
        made += numbers
        room.fit = 1
    assert made == list(range(12))
    assert room.tried == [4, 4, 2, *[1] * 8]
    assert micro_batch.images == 1
    assert [message for message in caplog.messages if "out of memory: 2 image(s) at once" in message]


def test_a_library_of_a_gpu_that_cannot_allocate_is_a_lack_of_memory():
    error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert list(MicroBatch(4).each(range(4), Room(2, error))) == [[0, 1], [2, 3]]


def test_any_other_error_is_not_tried_again():
    room = Room(2, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(MicroBatch(4).each(range(4), room))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        MicroBatch(4).whole(range(4), lambda parts: [*map(room, parts)])
    assert room.tried == [4, 4]


def test_one_image_that_does_not_fit_is_told_with_what_to_do():
    for lack in LACKS:
        for tried in (
            lambda room: list(MicroBatch(4).each(range(3), room)),
            lambda room: MicroBatch(4).whole(range(3), lambda parts: [*map(room, parts)]),
        ):
            with pytest.raises(CellError, match="memory does not suffice for one image; free some, name fewer `sites`"):
                tried(Room(0, lack))


def test_no_image_at_all_that_does_not_fit_ends_too():
    with pytest.raises(TooLarge):
        MicroBatch(4).whole([], lambda parts: Room(-1)([*parts]))


def test_a_part_beside_whose_images_no_copy_fits_is_halved_itself():
    micro_batch, seen = MicroBatch(4), []

    def copied(numbers):
        copies = [number for number in numbers for _ in range(3)]
        return [*itertools.chain.from_iterable(micro_batch.each(copies, Room(3 - len(numbers))))]

    for numbers in micro_batch.each(range(4), copied):
        seen.append(numbers)
    assert [*itertools.chain.from_iterable(seen)] == [number for number in range(4) for _ in range(3)]
    assert micro_batch.images == 1


def test_parts_that_were_begun_hold_all_images_when_they_are_halved_meanwhile():
    micro_batch, seen = MicroBatch(4), []
    for part in micro_batch.parts(range(10)):
        seen += part
        micro_batch.images = 1
    assert seen == list(range(10))


def test_the_smallest_number_is_that_of_all_processes():
    class Three(Team):
        def exchange(self, message):
            return [b"8", message, b"16"]

    assert MicroBatch(4).smallest(Three()) == 4
    assert MicroBatch(32).smallest(Three()) == 8


@pytest.mark.parametrize("name", ["memory", "sweep", "groups", "disk", "cached"])
def test_every_policy_reads_the_same_where_few_images_fit(adapter, dataset, tmp_path, monkeypatch, name):
    monkeypatch.setitem(SHARES, "host", 1e-9)
    sites = (*SITES[:1], Site("adapter"), Site("llm", 1, "value"), *SITES[1:], Site("llm", "norm"))
    if name == "cached":
        monkeypatch.setattr(policy, "_stepper", lambda work: (None, "its blocks share keys"))
    narrow = Narrow(adapter, 2)
    wanted = work(narrow, dataset, tmp_path, sites=sites, batch_size=4)
    plan = features.choose(wanted, "disk" if name == "cached" else name)
    assert wanted.micro_batch.images == 4  # what was tried for the estimate decides nothing
    narrow.passed.clear()
    assert read_all(plan, dataset, adapter) == sites
    assert wanted.micro_batch.images == 2
    steps = 1 + len(("llm.1", "llm.2", "llm.3", "llm.4", "llm.norm"))
    passes = {"memory": 1, "cached": 1, "groups": len(sites) - 1, "sweep": steps, "disk": steps}[name]
    assert sum(narrow.passed) == 8 * passes  # of 5 and 3 images, none twice


def test_probes_are_trained_and_counted_alike_on_a_stream_of_few_images(adapter, dataset):
    narrow, micro_batch = Narrow(adapter, 2), MicroBatch(4)
    streams = (
        features.Streamed(narrow, dataset, SITES, micro_batch),
        features.Streamed(adapter, dataset, SITES, MicroBatch(4)),
    )
    schedule = probes.Schedule(2, 4, 0.05, (0.9, 0.999), 0.0, 0.9, 0)
    banks = [probes.ProbeBank({site: adapter.widths[site] for site in SITES}, len(dataset.classes)) for _ in streams]
    for bank, stream in zip(banks, streams, strict=True):
        trainer = probes.Trainer(bank, stream, range(5), schedule)
        for epoch in range(2):
            trainer.epoch(epoch, lambda images: None)
    assert micro_batch.images == 2
    for ours, theirs in zip(*(bank.parameters() for bank in banks), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    micro_batch.images = 4
    ours, theirs = (probes.evaluate(banks[1], stream, range(5)) for stream in streams)
    assert micro_batch.images == 2
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.confusion, theirs.confusion)


def test_a_sweep_whose_memory_runs_out_between_two_blocks_goes_on_with_parts_of_its_batches(adapter, dataset, tmp_path):
    narrow, sites = Narrow(adapter, 4), tuple(Site("llm", layer) for layer in (1, 2, 3))
    wanted = work(narrow, dataset, tmp_path, sites=sites, batch_size=4)
    plan, seen = features.choose(wanted, "sweep"), []
    for stage in plan.stages((), lambda images: None):
        expected = next(features.Streamed(adapter, dataset, stage.sites, MicroBatch(5)).read(range(5)))[0]
        found = torch.cat([found[stage.sites[0]] for found, _ in stage.train.read(range(5))])
        torch.testing.assert_close(found, expected[stage.sites[0]], rtol=1e-4, atol=1e-4)
        seen.append(wanted.micro_batch.images)
        narrow.fit -= 2 if narrow.fit == 4 else 1
        narrow.passed.clear()
    assert seen == [4, 2, 1]


def test_one_image_that_does_not_fit_ends_every_policy_with_advice(adapter, dataset, tmp_path):
    for name in ("memory", "sweep", "disk"):
        narrow = Narrow(adapter, 4)
        plan = features.choose(work(narrow, dataset, tmp_path, batch_size=4), name)
        narrow.vision = 0
        with pytest.raises(CellError, match="memory does not suffice for one image"):
            next(plan.stages((), lambda images: None))
    with pytest.raises(CellError, match="memory does not suffice for one image"):
        features.choose(work(narrow, dataset, tmp_path), "auto")


def test_a_model_that_one_process_cannot_step_through_is_stepped_through_by_none(adapter, dataset, tmp_path):
    class Two(Team):
        def exchange(self, message):
            return [message, message or b"tiny does not step: OutOfMemoryError"]

    wanted = work(adapter, dataset, tmp_path)
    plan = features.choose(features.Work(**{**vars(wanted), "team": Two()}), "sweep")
    assert plan.stepper is None
    assert plan.chosen.policy != "sweep"

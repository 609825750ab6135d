"""Wherever features live they are those of a forward pass; what is chosen is what the arithmetic says."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image

from segbench import features
from segbench.adapters import base
from segbench.adapters.stepping import Stepper
from segbench.data import scenes
from segbench.errors import CellError, DataError
from segbench.features import policy
from segbench.features.estimate import SHARES, Costs, Load, Room, estimated
from segbench.features.rows import OnDisk
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


def test_features_are_of_the_image_that_was_asked_for(adapter, dataset):
    ordered, _ = read(features.Streamed(adapter, dataset, SITES, 5), range(5))
    shuffled, _ = read(features.Streamed(adapter, dataset, SITES, 2), [4, 1])
    torch.testing.assert_close(shuffled[SITES[1]], ordered[SITES[1]][[4, 1]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ordered[SITES[1]][4], ordered[SITES[1]][1], atol=1e-2)


def work(adapter, dataset, folder, reads=100, sites=SITES):
    val = scenes.load(scenes.Params(train=1, val=3, size=(48, 60)), "val")
    return features.Work(adapter, dataset, val, sites, 2, reads, folder)


COSTS = Costs({SITES[0]: 100, SITES[1]: 300}, 320, 50, forward=1.0, encode=0.25, write=1e3, read=1e3)


def free(monkeypatch, memory, disk=10**9):
    monkeypatch.setattr(policy, "room", lambda device, folder, shared_by: Room({"host": memory}, disk))


@pytest.mark.parametrize(
    ("memory", "rate", "expected"),
    [
        (7200, 1e3, "memory"),  # 8 images of 100 + 300 + 50 bytes, in half of what is free
        (7199, 1e3, "sweep"),  # of 200 + 100 + 50
        (5600, 1e2, "groups"),  # of 300 + 50 at most
        (100, 1e3, "disk"),
        (100, 1e2, "stream"),
    ],
)
def test_auto_takes_the_quickest_that_fits(adapter, dataset, tmp_path, monkeypatch, memory, rate, expected):
    free(monkeypatch, memory)
    costs = replace(COSTS, states=200 if memory != 5600 else 250, write=rate, read=rate)
    monkeypatch.setattr(policy, "measured", lambda work: costs)
    assert features.choose(work(adapter, dataset, tmp_path), "auto").chosen.policy == expected


def test_bytes_and_seconds_are_those_of_the_arithmetic():
    load = Load(SITES, images=8, reads=100)
    found = {one.policy: one for one in estimated(load, COSTS, Room({"host": 5000}, 10**9))}
    told = {name: (one.bytes, one.seconds) for name, one in found.items()}
    assert told == {
        "memory": (8 * 450, 8),
        "sweep": (8 * (320 + 100 + 50), 8),
        "groups": (8 * 350, 8 * (0.25 + 1)),  # the encoder's alone, then the whole LLM
        "disk": (8 * (2 * 320 + 100), pytest.approx(8 + 8 * 320 * 2 / 1e3 + 108 * 320 * 2 / 1e3)),
        "stream": (0, 100),
    }
    assert [name for name, one in found.items() if one.fits] == ["disk", "stream"]


def test_costs_that_a_cell_recorded_are_read_again_and_those_of_a_config_have_no_seconds():
    assert Costs.of(json.loads(json.dumps(COSTS.facts()))) == COSTS
    untimed = replace(COSTS, forward=None)
    found = estimated(Load(SITES, images=8, reads=100), untimed, Room({"host": 5000}, 10**9))
    assert [one.seconds for one in found] == [None] * 5
    assert str(found[0]) == "memory: all sites in host memory, 3.6 kB of 5 kB free (does not fit)"


def test_a_model_that_cannot_step_has_every_site_in_a_file_and_a_wish_for_a_sweep_is_not_met(
    adapter, dataset, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(policy, "_stepper", lambda work: (None, "its blocks share keys"))
    plan = features.choose(work(adapter, dataset, tmp_path), "sweep")
    assert plan.chosen.policy == "memory"
    assert "features: no sweep (its blocks share keys); memory in its place" in caplog.text
    disk = features.choose(work(adapter, dataset, tmp_path), "disk")
    assert disk.chosen.how == "every site in a file"
    read_all(disk, dataset, adapter)


@pytest.mark.parametrize("name", ["memory", "sweep", "groups", "disk", "stream"])
def test_every_policy_reads_the_features_of_a_forward_pass(adapter, dataset, tmp_path, monkeypatch, name):
    monkeypatch.setitem(SHARES, "host", 1e-9)  # so that every group is one site
    sites = (*SITES[:1], Site("adapter"), Site("llm", 1), Site("llm", 1, "key_pre"), Site("llm", 1, "value"), SITES[1])
    sites += (Site("llm", 4), Site("llm", "norm"))
    plan = features.choose(work(adapter, dataset, tmp_path, sites=sites), name)
    assert plan.chosen.policy == name
    assert read_all(plan, dataset, adapter) == sites


def read_all(plan, dataset, adapter):
    """Reads every stage, in another order than the images have, and compares with a forward pass."""
    seen, order = [], [4, 0, 3, 3]
    for stage in plan.stages((), lambda images: None):
        expected = next(features.Streamed(adapter, dataset, stage.sites, 4).read(order))[0]
        parts = [found for found, _ in stage.train.read(order)]
        for site in stage.sites:
            found = torch.cat([part[site] for part in parts])
            torch.testing.assert_close(found, expected[site], rtol=1e-4, atol=1e-4)
        assert [target.grid_map.image for _, targets in stage.val.read([0, 2]) for target in targets] == [(48, 60)] * 2
        seen += stage.sites
    return tuple(seen)


def test_sites_that_are_done_are_left_out(adapter, dataset, tmp_path):
    for name in ("sweep", "memory", "disk", "stream"):
        plan = features.choose(work(adapter, dataset, tmp_path), name)
        assert [stage.sites for stage in plan.stages(SITES[:1], lambda images: None)] == [SITES[1:]]
        assert not list(plan.stages(SITES, lambda images: None))


def test_a_sweep_that_was_killed_goes_on_from_the_files_of_its_layer(adapter, dataset, tmp_path, monkeypatch):
    sites = tuple(Site("llm", layer) for layer in (1, 2, 3))
    plan = features.choose(work(adapter, dataset, tmp_path, sites=sites), "disk")
    for stage in plan.stages((), lambda images: None):
        if stage.sites == sites[1:2]:
            break  # as a kill while the probe at llm.2 is trained
    steps = []
    advance = Stepper.advance
    monkeypatch.setattr(
        Stepper,
        "advance",
        lambda self, e, s, block, *more: steps.append(block) or advance(self, e, s, block, *more),
    )
    again = work(adapter, dataset, tmp_path, sites=sites[1:])
    plan = replace(features.choose(again, "disk"), stepper=plan.stepper)
    steps.clear()
    assert read_all(plan, dataset, adapter) == sites[1:]
    assert set(steps) == {2}


def test_a_damaged_file_is_set_aside_and_made_anew(adapter, dataset, tmp_path, caplog):
    sites = tuple(Site("llm", layer) for layer in (1, 2))
    plan = features.choose(work(adapter, dataset, tmp_path / "features", sites=sites), "disk")
    for stage in plan.stages((), lambda images: None):
        if stage.sites == sites[1:]:
            break
    (file,) = tmp_path.glob("features/train-llm.2.raw")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    again = features.choose(work(adapter, dataset, tmp_path / "features", sites=sites[1:]), "disk")
    assert read_all(again, dataset, adapter) == sites[1:]
    told = "it is set aside as train-llm.2.raw.damaged; it is made anew"
    assert f"train-llm.2.raw does not match its checksum; {told}" in caplog.text
    assert (tmp_path / "train-llm.2.raw.damaged").exists()


def test_a_disk_that_is_full_is_told_with_what_is_missing(tmp_path):
    states = torch.zeros(4, 1024, 64)  # a MB
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = OnDisk(tmp_path / "train-llm.2.raw", 12)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, before[1]))
    try:
        rows.add(states)
        rows.add(states)
        with pytest.raises(CellError, match=r"train-llm\.2: 9 of 12 images were written, 786 kB are missing"):
            rows.add(states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_on_disk_comes_back_bit_by_bit(tmp_path, dtype):
    states = torch.randn(3, 5, 7).to(dtype)
    rows = OnDisk(tmp_path / "x.raw", 5)
    rows.add(states)
    rows.add(states[:2, :4])
    rows.finish()
    for one in (rows, OnDisk.found(tmp_path / "x.raw", 5)):
        assert one is not None
        assert torch.equal(torch.stack([one[i] for i in range(3)]), states)
        assert torch.equal(one[4], states[1, :4])
    assert OnDisk.found(tmp_path / "y.raw", 5) is None


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


def test_where_nothing_can_be_written_no_policy_that_writes_is_the_quickest(caplog):
    assert policy._rates(Path("/proc/nowhere"), 1 << 20) == (1.0, 1.0)
    assert "cannot be written" in caplog.text

"""Wherever features live they are those of a forward pass; what is chosen is what the arithmetic says."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_features import COSTS, SITES, read_all, work

from segbench import features
from segbench.features import policy, speeds
from segbench.features.estimate import SHARES, Room
from segbench.types import Site


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


def test_where_nothing_can_be_written_no_policy_that_writes_is_the_quickest(caplog):
    assert speeds._rates(Path("/proc/nowhere"), 1 << 20) == (1.0, 1.0)
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("name", ["memory", "sweep", "groups", "disk", "stream"])
def test_every_policy_reads_the_features_of_a_forward_pass(adapter, dataset, tmp_path, monkeypatch, name):
    monkeypatch.setitem(SHARES, "host", 1e-9)  # so that every group is one site
    sites = (*SITES[:1], Site("adapter"), Site("llm", 1), Site("llm", 1, "key_pre"), Site("llm", 1, "value"), SITES[1])
    sites += (Site("llm", 4), Site("llm", "norm"))
    plan = features.choose(work(adapter, dataset, tmp_path, sites=sites), name)
    assert plan.chosen.policy == name
    assert read_all(plan, dataset, adapter) == sites


def test_sites_that_are_done_are_left_out(adapter, dataset, tmp_path):
    for name in ("sweep", "memory", "disk", "stream"):
        plan = features.choose(work(adapter, dataset, tmp_path), name)
        assert [stage.sites for stage in plan.stages(SITES[:1], lambda images: None)] == [SITES[1:]]
        assert not list(plan.stages(SITES, lambda images: None))

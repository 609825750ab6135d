"""Cells that read probes of clustered images: the clusters go with them, and whole ones are left out."""

from dataclasses import replace

import pytest

from segbench.kinds import base, knockout, starvation
from segbench.store import Store

CITIES = ["ulm", "bonn", "ulm", "bonn"]


@pytest.fixture(scope="module")
def run(cells, adapter, lab, tmp_path_factory):
    """Measures and recorded facts of one more cell of a kind, which reads the probes with or without clusters."""
    from segbench.library import Library

    library = Library([lab])

    def measure(kind, task, about):
        probe = replace(cells["probe"], about={**cells["probe"].about, **about})
        required = {"probe": base.Required(library.task("probe").params, probe)}
        cell = Store(tmp_path_factory.mktemp("store")).cell("tiny", task, "0" * 64)
        job = base.Job(
            adapter, library.task(task).params, cell, required, 0, None, 3, 0, lambda done, total, what: None
        )
        measures = list(kind.run(job))
        cell.finish({"model": "tiny", "task": task, "revision": "", "kind": task, "seed": 0}, measures)
        return measures, cell.result()

    return measure


@pytest.mark.parametrize(("kind", "task"), [(knockout, "knockout"), (starvation, "starvation")])
def test_clusters_are_recorded_and_widen_the_intervals(run, kind, task):
    alone, unclustered = run(kind, task, {})
    together, clustered = run(kind, task, {"clusters": CITIES})
    assert clustered.about["clusters"] == CITIES
    assert "clusters" not in unclustered.about
    key = [(one.metric, one.site, one.key) for one in alone]
    assert [(one.metric, one.site, one.key) for one in together] == key
    assert [one.value for one in together] == pytest.approx([one.value for one in alone])
    widths = [
        (one.interval.high - one.interval.low, two.interval.high - two.interval.low)
        for one, two in zip(alone, together, strict=True)
        if one.interval and two.interval
    ]
    assert len(widths) > 10
    assert sum(two for _, two in widths) > 1.3 * sum(
        one for one, _ in widths
    )  # t(1) of two cities, t(3) of four images

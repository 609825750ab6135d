"""Every dense kind once, on the same tiny checkpoint and scenes."""

import pytest
import tiny_runs

TASKS = {
    "probe": tiny_runs.PROBE,
    "knockout": "kind: knockout\nprobes: probe\nleast: 6\n",
    "knockout-late": "kind: knockout\nprobes: probe\nleast: 6\nlayers: 2-3\n",
    "starvation": "kind: starvation\nprobes: probe\nsite: llm.2\n",
    "starvation-peak": "kind: starvation\nprobes: probe\n",
}


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    return tiny_runs.lab(tmp_path_factory.mktemp("kinds") / "lab", TASKS)


@pytest.fixture(scope="session")
def cells(lab, tmp_path_factory):
    outcomes = tiny_runs.measure(lab, ",".join(TASKS), tmp_path_factory.mktemp("store"))
    assert {outcome.status for outcome in outcomes.values()} == {"ran"}, [o.note for o in outcomes.values()]
    return {name: outcome.result for name, outcome in outcomes.items()}


@pytest.fixture(scope="session")
def adapter(lab):
    from segbench.adapters import base
    from segbench.library import Library

    return base.load(Library([lab]).models("tiny")[0], "cpu")


@pytest.fixture(scope="session")
def val(lab):
    from segbench.library import Library

    (data,) = Library([lab]).task("probe").data()
    return data.load("val")

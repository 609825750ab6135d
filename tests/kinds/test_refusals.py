"""What a kind cannot measure becomes a failed cell with a sentence, never a number and never a trace."""

import pytest
import tiny_runs

from segbench import planning
from segbench.errors import SpecError
from segbench.library import Library
from segbench.planning import Options
from segbench.store import Store

FEW = f"kind: probe\ndata: {tiny_runs.DATA}\nsites: [encoder]\nprotocol: {{epochs: 1}}\n"
TASKS = {
    "few": FEW,
    "no-class": (
        "kind: knockout\nprobes: few2\nclasses: [sky, rugs]\n",
        "'rugs' is no class of few2, did you mean 'rug'?",
    ),
    "no-probe-task": ("kind: starvation\nprobes: no-peak\n", "no-peak is a starvation task; name a probe task"),
    "no-layer": ("kind: knockout\nprobes: few\n", "few probes no adapter or no LLM layer"),
    "no-confusion": ("kind: knockout\nprobes: few2\nleast: 37\n", "no val image has 37 or more patches wrongly"),
    "no-peak": ("kind: starvation\nprobes: few\n", "holds no LLM layer"),
    "no-probe": ("kind: starvation\nprobes: few\nsite: llm.2\n", "few has no probe at llm.2; it has encoder"),
    "few2": FEW.replace("[encoder]", "[adapter, llm.1]"),
    "no-site": (FEW.replace("encoder", "llm.9"), "no site llm.9; this model has encoder, adapter, llm.1,"),
    "diverges": (
        FEW.replace("epochs: 1", "epochs: 3, batch: 8, lr: 1e37"),
        "probe at encoder diverged after epoch 1 (step",
    ),
    "held-out": (
        FEW.replace("train: 8", "train: 1").replace("epochs: 1", "selection: train_holdout"),
        "1 training image(s) leave none to train on",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    texts = {name: text if isinstance(text, str) else text[0] for name, text in TASKS.items()}
    folder = tiny_runs.lab(tmp_path_factory.mktemp("refusals") / "lab", texts)
    return tiny_runs.measure(folder, ",".join(TASKS), folder.parent / "store")


@pytest.mark.parametrize("name", [name for name, text in TASKS.items() if not isinstance(text, str)])
def test_what_cannot_be_measured_is_told(outcomes, name):
    assert TASKS[name][1] in outcomes[name].note
    assert outcomes[name].status == "failed"
    assert outcomes[name].trace is None
    assert outcomes[name].result is None


@pytest.mark.parametrize("name", ["no-class", "no-probe-task"])
def test_what_the_task_that_is_read_can_tell_is_told_before_a_model_loads(tmp_path, name):
    texts = {one: text if isinstance(text, str) else text[0] for one, text in TASKS.items()}
    folder = tiny_runs.lab(tmp_path / "lab", texts)
    library = Library([folder])
    items = planning.plan(library, library.models("tiny"), library.tasks(name), Store(tmp_path), Options(device="cpu"))
    (problem,) = [item.problem for item in items if item.task.name == name]
    assert problem.status == "failed"
    assert problem.note.startswith(str(folder / f"tasks/{name}.yaml"))
    assert TASKS[name][1] in problem.note


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("sites: [encoder, llm.x]", "'llm.x' is no site"),
        ("protocol: {betas: [0.9, 1.0]}", "less than 1"),
        ("protocol: {epochs: 0}", "greater than or equal to 1"),
        ("protocol: {epoch: 3}", "unknown key 'epoch', did you mean 'epochs'?"),
    ],
)
def test_a_mistake_is_told_with_its_line_before_anything_runs(tmp_path, line, told):
    (tmp_path / "wrong.yaml").write_text(f"kind: probe\ndata: {tiny_runs.DATA}\n{line}\n")
    with pytest.raises(SpecError) as error:
        Library([tmp_path]).tasks("wrong")
    assert f"{tmp_path.name}/wrong.yaml:3" in str(error.value)
    assert told in str(error.value)


def test_a_wrong_site_of_a_starvation_task_is_told_with_its_line(tmp_path):
    (tmp_path / "wrong.yaml").write_text("kind: starvation\nprobes: probe-scenes\nsite: peaks\n")
    with pytest.raises(SpecError, match=r"wrong\.yaml:3: site: .*'peaks' is no site"):
        Library([tmp_path]).tasks("wrong")

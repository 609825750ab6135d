"""What the tests share: no network, one thread each, and one finished run of a tiny lab."""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache/matplotlib"))  # its fonts take seconds to list
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="segbench-tests-")  # no test sees or changes a user's data
os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist's workers are processes; more threads only get in their way

import pytest
import tiny_runs
from command import segbench, tiny_run

TASKS = {
    "probe": tiny_runs.PROBE.replace("epochs: 4", "epochs: 2"),
    "starvation": "kind: starvation\nprobes: probe\n",
    "absent": "kind: probe\ndata: {name: folder, path: ./no-such-folder}\n",
    "absent-starvation": "kind: starvation\nprobes: absent\n",
}


def pytest_unconfigure():
    """Nothing stays behind in the folder of temporary files."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_lab(tmp_path_factory):
    """A folder for --include: the model `tiny`, tasks that can run and tasks whose data is not there."""
    return tiny_runs.lab(tmp_path_factory.mktemp("spine") / "lab", TASKS)


@pytest.fixture(scope="session")
def first_run(tiny_lab, tmp_path_factory):
    """Folder of a run of everything in the lab, and what the command said."""
    output = tmp_path_factory.mktemp("spine") / "out"
    return output, segbench("run", *tiny_run(tiny_lab, output), "--tasks", "probe,starvation")

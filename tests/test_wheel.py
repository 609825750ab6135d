import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the project in which somebody has trained, with stand-ins for large weights."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "CHANGELOG.md", "hatch_build.py"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("segbench", "tasks", "models"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", "training-work"} & set(path.parts):
                there = copy / path.relative_to(ROOT)
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(b"weights" if path.suffix == ".safetensors" else path.read_bytes())
    (copy / "models/training-work/scratch").mkdir(parents=True)
    (copy / "models/training-work/scratch/pool.npy").write_bytes(b"gigabytes")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = (copy / "dist").glob("*.whl")
    return path


def test_the_wheel_holds_specs_weights_recipes_and_curves_but_no_workspace(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("tasks", "models"):
        for path in (ROOT / folder).glob("*.yaml"):
            assert f"segbench/_data/{folder}/{path.name}" in names
    for name in ("model.safetensors", "config.json", "recipe.yaml", "training.json"):
        assert f"segbench/_data/models/tiny-clip-causal/{name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "training-work" in name]
    assert {name.partition("/")[0] for name in names} == {"segbench", f"{wheel.name.partition('-py3')[0]}.dist-info"}


def test_an_installed_wheel_finds_its_tasks_and_models_from_an_empty_folder(wheel, tmp_path):
    target, empty = tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(target)
    for what, name in (("tasks", "probe-scenes"), ("models", "tiny-clip-causal")):
        done = subprocess.run(
            [sys.executable, "-m", "segbench", "list", what, "--json"],
            cwd=empty,
            env={**os.environ, "PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert name in {row["name"] for row in json.loads(done.stdout)}

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from segbench.kernels import build

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project in which somebody has trained, with stand-ins for large weights."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "CHANGELOG.md", "hatch_build.py"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("segbench", "tasks", "models", "leaderboard"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and not {"__pycache__", "training-work"} & set(path.parts):
                there = copy / path.relative_to(ROOT)
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(b"weights" if path.suffix == ".safetensors" else path.read_bytes())
    (copy / "models/training-work/scratch").mkdir(parents=True)
    (copy / "models/training-work/scratch/pool.npy").write_bytes(b"gigabytes")
    return copy


@pytest.fixture(scope="module")
def wheel(project):
    return make_wheel(project, project / "dist", os.environ)


def make_wheel(project, folder, environ):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project]
    subprocess.run(command, check=True, capture_output=True, env=environ)
    (path,) = folder.glob("*.whl")
    return path


def making(wheel, folder):
    """What the kernels of a wheel say of themselves where nothing but it is at hand."""
    zipfile.ZipFile(wheel).extractall(folder / "target")
    code = "from segbench import kernels; print(kernels.making())"
    environ = {**os.environ, "PYTHONPATH": str(folder / "target")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_the_wheel_holds_specs_weights_recipes_and_curves_but_no_workspace(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("tasks", "models", "leaderboard/reported"):
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


def test_a_wheel_made_with_a_compiler_is_of_its_platform_and_holds_compiled_kernels(wheel, tmp_path):
    try:
        build.build(tmp_path / build.LIBRARY.name, os.environ.get("CC"))
    except build.BuildError as error:
        pytest.skip(f"the compiled kernels are not tested: {error}")
    assert "-py3-none-" in wheel.name  # any Python: the library knows nothing of it
    assert not wheel.name.endswith("-any.whl")
    assert making(wheel, tmp_path).startswith("compiled C, ")


def test_a_wheel_made_without_a_compiler_is_of_any_platform_and_evaluates_in_plain_pytorch(project, wheel, tmp_path):
    bare = make_wheel(project, tmp_path / "dist", {**os.environ, "CC": "no-such-compiler"})  # beside an older library
    assert bare.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(bare).namelist() if name.endswith(".so")]
    assert making(bare, tmp_path).startswith("plain PyTorch (not compiled; ")

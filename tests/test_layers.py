"""Imports point one way, and what must stay light does."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import segbench

PACKAGE = Path(segbench.__file__).parent
LAYERS = (  # from the faces down; a module imports from its own layer and from those below
    ("cli", "__main__"),
    ("distributed", "runner", "planning", "progress", "doctor", "leaderboard", "plots", "training", "convert"),
    ("kinds",),
    ("probes", "controls"),
    ("features", "store", "shared_store"),
    ("adapters",),
    ("kernels",),
    ("attention", "metrics", "data", "images", "geometry", "stats"),
    ("specs", "library", "registry", "strict_yaml", "records", "team", "types", "files", "errors"),
)
LIGHT = ("errors", "types", "records", "registry", "strict_yaml", "specs", "library", "images", "geometry", "stats")
LIGHT += ("files", "team", "store", "shared_store", "cli", "planning", "runner", "progress", "doctor")
LIGHT += ("adapters.weights", "data", "metrics", "leaderboard", "plots", "kinds")
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_has_its_layer():
    named = {name for layer in LAYERS for name in layer}
    assert {path.parts[0].removesuffix(".py") for path in MODULES} == named


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path):
    own = _layer(path.parts[0].removesuffix(".py"))
    above = [name for name in _imported(path) if _layer(name) < own]
    assert not above, f"{path} imports {above} from above"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_imports_torchvision_or_the_environment_where_it_must_not(path):
    text = (PACKAGE / path).read_text()
    names = {name for node in ast.walk(ast.parse(text)) for name in _modules(node)}
    names -= {"pickle.UnpicklingError"}  # what torch.load(weights_only=True) raises; nothing is unpickled with it
    assert not {name.partition(".")[0] for name in names} & {"torchvision", "pickle"}
    assert "os.environ" not in text or path.parts[0] == "cli"


def test_what_plans_and_reports_does_not_import_torch():
    names = [".".join(["segbench", *path.with_suffix("").parts]).removesuffix(".__init__") for path in MODULES]
    light = [name for name in names if any(f"{name}.".startswith(f"segbench.{one}.") for one in LIGHT)]
    assert len(light) > 25
    code = f"""
import importlib, sys
for name in {light}:
    importlib.import_module(name)
    heavy = [one for one in ("torch", "transformers", "matplotlib", "torchvision", "lmms_eval") if one in sys.modules]
    if heavy:
        raise SystemExit(f"{{name}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _layer(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


def _imported(path: Path) -> Iterator[str]:
    """The modules and folders of segbench that a file imports anywhere in it, by their first names."""
    layered = {name for layer in LAYERS for name in layer}
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        for name in _modules(node):
            first = name.removeprefix("segbench.").partition(".")[0]
            if name.startswith("segbench.") and first in layered:
                yield first


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are written in full"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []

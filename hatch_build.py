"""Compile the kernels at install where there is a C compiler; where there is none, the package works without them."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledKernels(BuildHookInterface):
    """Puts the library beside its sources: editable installs find it there, and wheels take it along."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """A wheel with the library is for one platform and any Python 3; one without it is for all."""
        build = _load(Path(self.root) / "segbench/kernels/build.py")
        try:
            compiler = build.build(compiler=os.environ.get("CC"))
        except build.BuildError as error:
            self.app.display_warning(
                f"segbench is installed without compiled kernels, which it can do without: {error}"
            )
            build.LIBRARY.unlink(missing_ok=True)  # of an earlier build, from who knows what
            return
        self.app.display_info(f"kernels compiled by {compiler}")
        build_data["artifacts"].append(f"/{build.LIBRARY.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        platform = self.build_config.builder.get_best_matching_tag().rpartition("-")[2]
        build_data["tag"] = f"py3-none-{platform}"


def _load(path: Path) -> ModuleType:
    """The module by its file: importing the package would need torch, which a build does not have."""
    spec = importlib.util.spec_from_file_location("segbench_kernels_build", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What is installed and found on this machine, and what of it stands in the way of a run."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from segbench import __version__, registry
from segbench.adapters import weights
from segbench.errors import MissingInput, SegbenchError, SpecError
from segbench.library import Entry, Library, data_folder
from segbench.specs import read_model, read_task

NEEDED = ("torch", "transformers", "datasets", "numpy", "pandas", "pillow", "safetensors", "pydantic", "ruamel.yaml")
OPTIONAL = {"matplotlib": "draws the pictures", "torchvision": "never needed", "lmms_eval": "for VQA tasks"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    problem: str | None = None  # what is wrong, and what to do


def examine(library: Library) -> list[Finding]:
    """Everything worth telling; one with a `problem` stands in the way of a run."""
    return [*_versions(), *_machine(), *_specs(library)]


def _versions() -> Iterator[Finding]:
    yield Finding("segbench", f"{__version__} in {Path(__file__).parent}")
    yield Finding("python", platform.python_version())
    for name in NEEDED:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "absent", f"not installed; pip install {name}")
    for name, use in OPTIONAL.items():  # looked for, not imported: a torchvision built for another torch raises
        there = importlib.util.find_spec(name) is not None
        yield Finding(name, f"{'present' if there else 'absent'} ({use})")


def _machine() -> Iterator[Finding]:
    import torch

    from segbench import kernels
    from segbench.kernels import linear

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    yield Finding("device", ", ".join(names) or f"cpu ({platform.machine()})")
    yield Finding("threads", f"{torch.get_num_threads()} of {len(os.sched_getaffinity(0))} cores")
    device = "cuda" if names else "cpu"
    yield Finding("loss and counts", f"{kernels.making(device)} on {device}")
    yield Finding("probes' products", f"{linear.making(device)} on {device}")
    page = os.sysconf("SC_PAGE_SIZE")
    free, total = (os.sysconf(name) * page for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    yield Finding("memory", f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}")
    disk = shutil.disk_usage(Path.cwd())
    short = "less than 1 GiB is left in the current folder" if disk.free < 2**30 else None
    yield Finding("disk", f"{disk.free / 2**30:.1f} GiB free in {Path.cwd()}", short)


def _specs(library: Library) -> Iterator[Finding]:
    yield Finding("specs", ", ".join(map(str, [data_folder() / "models", data_folder() / "tasks", *library.include])))
    for problem in library.problems:
        yield Finding("specs", "a file that cannot be read", problem)
    for entry in library.entries():
        found = _model(entry) if entry.type == "model" else _task(entry, library.data)
        yield Finding(f"{entry.type} {entry.name}", *found)
    yield Finding("data sets", ", ".join(registry.names("data")))


def _model(entry: Entry) -> tuple[str, str | None]:
    """What a card's weights are; that weights of a hub are not here yet is no problem of this machine."""
    try:
        spec = read_model(entry.document, entry.path)
        if spec.weights is None and spec.hub is None:
            return f"adapter {spec.adapter}, no weights of its own", None
        weights.inspect(weights.folder(spec))
        return f"weights {weights.weights_identity(spec)[:12]}", None
    except MissingInput as error:
        return f"not here: {error}", None if entry.document.value.get("hub") else str(error)
    except SegbenchError as error:
        return "unusable", str(error)


def _task(entry: Entry, data: Path | None) -> tuple[str, str | None]:
    try:
        spec = read_task(entry.document, entry.path, data)
        return f"kind {spec.kind}", None
    except SpecError as error:
        return "unusable", str(error)

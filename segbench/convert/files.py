"""Files of checkpoints: read without trusting them, written whole. Weights are mapped into memory, not loaded."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError  # an exception's name; nothing is unpickled with it
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segbench.adapters import weights
from segbench.errors import MissingInput, ModelError, SpecError

LARGEST_FILE = 5_000_000_000  # bytes; weights above that are sharded
_FORMATS = (("*.safetensors", "model.safetensors.index.json"), ("pytorch_model*.bin", "pytorch_model.bin.index.json"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; MissingInput where there is none, ModelError where it cannot be read."""
    if not path.is_file():
        raise MissingInput(f"{path.parent} holds no {path.name}; name the folder of a whole checkpoint")
    return weights.read_json(path)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files with a folder's weights, safetensors rather than pytorch_model*.bin; empty where there is none.

    MissingInput if the folder's index names a file that is not there.
    """
    for pattern, index in _FORMATS:
        paths = tuple(sorted(folder.glob(pattern)))
        if paths and (folder / index).is_file():
            named = read_json(folder / index).get("weight_map")
            here = {path.name for path in paths}
            absent = sorted({str(name) for name in named.values()} - here) if isinstance(named, dict) else []
            if absent:
                raise MissingInput(f"{folder}: {', '.join(absent)} is named in {index} and not there; fetch it again")
        if paths:
            return paths
    return ()


def mapped(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of some weight files by name. They lie on disk until they are used.

    The one place of segbench that opens files in pickle's format: tensors only (`weights_only`), anything else in them
    is refused. ModelError for a file that cannot be read and for a name that two files hold.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
        except (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, EOFError) as error:
            said = str(error).strip().partition("\n")[0]
            raise ModelError(f"{path}: cannot be read as a file of tensors, fetch it again ({said})") from error
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise ModelError(f"{path}: {listed(twice)} is in another file of the folder, too; remove the stale one")
        found |= tensors
    return found


def write(tensors: Mapping[str, Tensor], made: Callable[[str], Tensor], folder: Path) -> list[str]:
    """Write one safetensors file, or shards with their index; the names of the files.

    `tensors` tells names and shapes, on the meta device; `made` one tensor when its file is written.
    """
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=LARGEST_FILE
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: made(name) for name in names}, folder / file, {"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors writes them for the owner alone
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return sorted(split.filename_to_tensors)


def sha256(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def refuse_taken(path: Path) -> None:
    """SpecError if there is anything but an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SpecError(f"--output: {path} is there already and not an empty folder; name another one")


@contextlib.contextmanager
def whole_folder(path: Path, size: int) -> Iterator[Path]:
    """A folder to write `size` bytes to, which becomes `path` when the block ends well and vanishes when it does not.

    SpecError if `path` is taken, or if there is not the room.
    """
    refuse_taken(path)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(path.parent).free) < size:
        raise SpecError(f"--output: {path} needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free there")
    part = path.with_name(f".{path.name}.writing-{os.getpid()}")
    part.mkdir()
    try:
        yield part
        for file in part.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _pickled(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(content, dict) or not all(isinstance(one, Tensor) for one in content.values()):
        raise ValueError("expected tensors by their names and nothing else")
    return {str(name): tensor for name, tensor in content.items()}

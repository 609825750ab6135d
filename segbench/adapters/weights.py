"""Checkpoint folders before anything is loaded from them: where they are, whether they are whole, what they hold.

Nothing here needs torch: plans, fingerprints and remedies are made without it. Only safetensors is read; a pickle is
refused, and so is a checkpoint that wants code of its own to run.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from segbench.errors import MissingInput, ModelError
from segbench.specs import ModelSpec

# What besides the weights can change a number: architecture, preprocessing, token ids.
SETTINGS = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LORA = "adapter_config.json"
_HEADER_LIMIT = 100_000_000  # bytes, the limit that safetensors itself sets


def folder(spec: ModelSpec) -> Path:
    """The checkpoint's folder on this machine; MissingInput, with what to do, if it is not there."""
    if remedy := missing(spec):
        raise MissingInput(f"{spec.name}: {remedy}")
    return spec.weights if spec.weights else _snapshot(spec)  # type: ignore[return-value]


def missing(spec: ModelSpec) -> str | None:
    """What has to be done before the model can be loaded, or None if its weights are there."""
    if spec.weights:
        if (spec.weights / "config.json").is_file():
            return None
        what = "holds no config.json" if spec.weights.is_dir() else "is not there"
        return f"the checkpoint folder {spec.weights} {what}; put a transformers checkpoint (safetensors) there"
    if not spec.hub:
        how = spec.obtain or "give --weights FOLDER, or `hub: ORG/NAME` with a `revision` in its card"
        return f"its weights are nowhere to be fetched; {how}"
    found = _snapshot(spec)
    if found and all((found / name).is_file() for name in shards(found)):
        return None
    revision = f" --revision {spec.revision}" if spec.revision else ""
    return f"{spec.hub} is not in the Hugging Face cache; first: hf download {spec.hub}{revision}"


def weights_identity(spec: ModelSpec) -> str:
    """Content hash of the model's weights and settings; MissingInput if they are not there."""
    return weights_hash(folder(spec))


def revision(spec: ModelSpec) -> str | None:
    """The commit of a hub model, as its spec states it or the local cache holds it; None for any other."""
    if spec.hub is None or spec.revision:
        return spec.revision
    found = _snapshot(spec)
    return found.name if found else None


def weights_hash(checkpoint: Path) -> str:
    """sha256 over names and contents of the settings and every *.safetensors file, in sorted order.

    Where the folder lies, and files that no loader reads (recipes, curves, readmes), do not matter.
    """
    paths = [checkpoint / name for name in SETTINGS if (checkpoint / name).is_file()]
    digest = hashlib.sha256()
    for path in sorted([*paths, *checkpoint.glob("*.safetensors"), *checkpoint.glob(_INDEX)]):
        with path.open("rb") as stream:
            digest.update(f"{path.name}\n{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def inspect(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's config, once its files can be trusted.

    ModelError, naming the file: pickled weights only, a missing shard, a cut-off file, a config that wants remote code.
    """
    config = read_json(checkpoint / "config.json")
    if "auto_map" in config:
        code = json.dumps(config["auto_map"])
        raise ModelError(f"{checkpoint}: its config wants code of its own to run ({code}); remote code is never run")
    if (checkpoint / _LORA).is_file():  # transformers would add it where peft is installed, and leave it out elsewhere
        raise ModelError(f"{checkpoint}: {_LORA} lies beside the weights; merge that adapter into them first")
    for name in shards(checkpoint):
        if not (checkpoint / name).is_file():
            pickles = sorted(path.name for path in [*checkpoint.glob("*.bin"), *checkpoint.glob("*.pt*")])
            if pickles and name == _WHOLE:
                raise ModelError(f"{checkpoint}: weights are pickled ({pickles[0]}); convert them to safetensors first")
            raise ModelError(f"{checkpoint}: {name} is missing; the checkpoint is incomplete, fetch it again")
        _whole(checkpoint / name)
    return config


def settings(checkpoint: Path, name: str) -> dict[str, Any]:
    """One of the JSON files beside the weights, by its stem; empty if it is not there."""
    path = checkpoint / f"{name}.json"
    return read_json(path) if path.is_file() else {}


def _snapshot(spec: ModelSpec) -> Path | None:
    """The folder of a hub model in the local cache; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.hub, "config.json", revision=spec.revision)  # type: ignore[arg-type]
    return Path(found).parent if isinstance(found, str) else None


def shards(checkpoint: Path) -> list[str]:
    """Names of the weight files that belong to a checkpoint, there or not; ModelError for an index that is none."""
    if (checkpoint / _WHOLE).is_file() or not (checkpoint / _INDEX).is_file():  # the order of transformers
        return [_WHOLE]
    shards = read_json(checkpoint / _INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelError(f"{checkpoint / _INDEX}: no weight_map")
    for name in shards.values():  # anything else would be unpickled, or read from elsewhere and not be hashed
        if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name, re.ASCII)):
            raise ModelError(f"{checkpoint / _INDEX}: {name!r} is no name of a safetensors file in the same folder")
    return sorted(set(shards.values()))


def _whole(path: Path) -> None:
    """ModelError unless a safetensors file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_LIMIT):
            raise ModelError(f"{path}: no safetensors header, or cut off within it ({size} bytes)")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ModelError(f"{path}: its safetensors header cannot be read") from error
    if size != expected:
        raise ModelError(f"{path}: {size} bytes, expected {expected}; the file is truncated or damaged, fetch it again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; ModelError, naming the file, where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return content

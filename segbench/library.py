"""Where model cards and tasks are found: beside the package, and wherever --include points."""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from segbench import registry, strict_yaml
from segbench.errors import SpecError
from segbench.specs import ModelSpec, TaskSpec, read_model, read_task, together
from segbench.strict_yaml import Document


@dataclass(frozen=True)
class Entry:
    """One YAML file that says what it is: a model has the key `adapter`, a task the key `kind`."""

    name: str
    type: Literal["model", "task"]
    path: Path
    document: Document


HUB = "hf:"  # hf:ORG/NAME or hf:ORG/NAME@COMMIT is a model of the hub without a card


class Library:
    """The model cards and tasks of the package and of `include`: YAML files, or folders of them.

    A folder is searched itself and in its models/ and tasks/. Nothing is read before it is asked for. A model without a
    card is named by its place, `hf:ORG/NAME` or a path with a slash, and is read by the adapter `auto`. `data` is the
    folder in which published data sets are looked for, if not the usual one.
    """

    def __init__(self, include: Sequence[Path] = (), data: Path | None = None) -> None:
        self.include, self.data = tuple(include), data

    def models(self, pattern: str = "all", overrides: Mapping[str, Any] | None = None) -> tuple[ModelSpec, ...]:
        """Model cards by `a,b`, `tiny-*` or `all`; SpecError tells all that is wrong with all of them."""
        chosen = self._choose(pattern, "model", {})
        calls = [lambda e=entry: read_model(e.document, e.path, overrides) for entry in chosen]
        return tuple(together(*calls))

    def tasks(self, pattern: str = "all") -> tuple[TaskSpec, ...]:
        """Tasks by name, group, `probe-*` or `all`, several with commas; SpecError tells all that is wrong."""
        groups: dict[str, list[str]] = {}
        for entry in self._entries("task").values():
            listed = entry.document.value.get("groups")
            for group in listed if isinstance(listed, list) else ():
                groups.setdefault(str(group), []).append(entry.name)
        chosen = self._choose(pattern, "task", groups)
        return tuple(together(*(lambda e=entry: read_task(e.document, e.path, self.data) for entry in chosen)))

    def model(self, name: str) -> ModelSpec:
        """One model card by its exact name."""
        entry = self._entry("model", name)
        return read_model(entry.document, entry.path)

    def task(self, name: str) -> TaskSpec:
        """One task by its exact name, never a group's."""
        entry = self._entry("task", name)
        return read_task(entry.document, entry.path, self.data)

    def folders(self, kind: Literal["models", "tasks"]) -> tuple[Path, ...]:
        """The folders that are searched for models or for tasks."""
        places = [data_folder() / kind]
        for folder in (path for path in self.include if path.is_dir()):
            places += [folder, folder / kind]
        return tuple(place for place in places if place.is_dir())

    def entries(self) -> tuple[Entry, ...]:
        """Every model and every task, by name."""
        return (*self._entries("model").values(), *self._entries("task").values())

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with files that could not be read at all."""
        return tuple(str(one) for one in self._found if isinstance(one, SpecError))

    def _entries(self, type: Literal["model", "task"]) -> dict[str, Entry]:
        named: dict[str, Entry] = {}
        for entry in (one for one in self._found if isinstance(one, Entry) and one.type == type):
            if entry.name in named:
                raise SpecError(
                    f"{type} {entry.name!r} is in {named[entry.name].path} and in {entry.path}; rename one of them"
                )
            named[entry.name] = entry
        return dict(sorted(named.items()))

    def _entry(self, type: Literal["model", "task"], name: str) -> Entry:
        entries = self._entries(type) | (_without_card(name) if type == "model" else {})
        if name not in entries:
            raise SpecError("\n".join([f"no {type} {name!r}{registry.nearest(name, entries)}", *self.problems]))
        return entries[name]

    @cached_property
    def _found(self) -> tuple[Entry | SpecError, ...]:
        paths = _files(self.folders("models")) | _files(self.folders("tasks"))
        loose = {path.resolve(): None for path in self.include if not path.is_dir()}
        found = [_entry(path, named=path in loose) for path in {**paths, **loose}]
        return tuple(one for one in found if one is not None)

    def _choose(self, pattern: str, type: Literal["model", "task"], groups: Mapping[str, list[str]]) -> list[Entry]:
        """Entries in the order of the pattern, each once."""
        entries = self._entries(type)
        chosen: dict[str, Entry] = {}
        problems: list[str] = []
        for word in filter(None, (part.strip() for part in pattern.split(","))):
            if word == "all":
                names: Iterable[str] = entries
            elif word in entries:
                names = [word]
            elif word in groups:
                names = groups[word]
            elif type == "model" and (entry := _without_card(word)):
                entries |= entry
                names = entry
            else:
                names = fnmatch.filter(entries, word) if set(word) & set("*?[") else []
            if not names and word != "all":
                problems.append(f"no {type} {word!r}{registry.nearest(word, [*entries, *groups])}")
            chosen |= {name: entries[name] for name in names}
        if problems or not chosen:
            problems = problems or [f"no {type} is named; known: {', '.join(entries) or 'none'}"]
            raise SpecError("\n".join([*problems, *self.problems]))
        return list(chosen.values())


def _without_card(place: str) -> dict[str, Entry]:
    """The model at a place, by that name, as `auto` reads it; nothing for a word that names no place.

    SpecError for a folder that holds no checkpoint.
    """
    keys: dict[str, Any] = {"adapter": "auto", "attention": "native", "dtype": "auto", "prompt": None}
    if place.startswith(HUB):
        repository, _, commit = place.removeprefix(HUB).partition("@")
        keys |= {"hub": repository} | ({"revision": commit} if commit else {})
        name = re.sub("[^A-Za-z0-9._+-]", "-", repository.replace("/", "--"))
    elif "/" in place:
        folder = Path(place).expanduser().resolve()
        if not (folder / "config.json").is_file():
            raise SpecError(f"--model {place}: {folder} holds no config.json, so it is no checkpoint of a model")
        keys |= {"weights": str(folder), "attention": _stated_attention(folder)}
        name = re.sub("[^A-Za-z0-9._+-]", "-", folder.name).lstrip("._+-") or "model"
    else:
        return {}
    return {place: Entry(name, "model", Path.cwd() / f"{name}.yaml", Document(f"--model {place}", keys, {}))}


def _stated_attention(folder: Path) -> str:
    """What a checkpoint says that it was trained with; a stock one does not say, and its own code decides."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return "native"  # loading it tells what is wrong with it
    stated = config.get("image_attention") if isinstance(config, dict) else None
    return str(stated) if stated in ("causal", "bidirectional") else "native"


def data_folder() -> Path:
    """Where the package's own models/ and tasks/ are: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent


def _files(folders: Iterable[Path]) -> dict[Path, None]:
    """The YAML files of some folders, each once however it is reached."""
    files = (path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml"))
    return {path.resolve(): None for path in files if path.is_file()}


def _entry(path: Path, named: bool) -> Entry | SpecError | None:
    """What a file is; None for some other YAML that happens to lie in a searched folder."""
    try:
        document = strict_yaml.load(path)
    except SpecError as error:
        return error
    keys = document.value if isinstance(document.value, dict) else {}
    if ("adapter" in keys) != ("kind" in keys):
        return Entry(path.stem, "model" if "adapter" in keys else "task", path, document)
    ours = named or path.parent.name in ("models", "tasks")
    problem = f"{document.where}: a model has the key 'adapter', a task the key 'kind'; this file has "
    return SpecError(problem + ("both" if "adapter" in keys else "neither")) if ours else None

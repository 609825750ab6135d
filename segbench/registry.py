"""Registries are folders: the file segbench/kinds/probe.py is the kind `probe`, `mypkg.depth` is a module of yours."""

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from segbench.errors import SpecError

_PACKAGE = Path(__file__).parent
_ENTRANCE = {"adapters": "load", "data": "load", "kinds": "run", "plots": "draw"}  # what makes a file an entry
_BESIDE = {"adapters": (), "data": ("Params",), "kinds": ("Params", "requires"), "plots": ()}  # what an entry also has


def names(package: str) -> list[str]:
    """What is registered in segbench/<package>/: the stems of its files that define the folder's entrance.

    Other files there, `base` and those with a leading underscore are what the entries stand on.
    """
    entrance = re.compile(rf"^def {_ENTRANCE[package]}\(", re.MULTILINE)
    files = [path for path in (_PACKAGE / package).glob("[!_]*.py") if path.stem != "base"]
    return sorted(path.stem for path in files if entrance.search(path.read_text(encoding="utf-8")))


def find(package: str, name: str) -> str:
    """The importable name behind a registered or dotted name, importing no more than parent packages of a dotted one.

    Raises SpecError for a name that is neither, with the nearest registered ones.
    """
    if name in names(package):
        return f"segbench.{package}.{name}"
    if "." not in name:
        raise SpecError(f"{name!r} is not in segbench/{package}{nearest(name, names(package))}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise SpecError(f"{name!r} is no module name; expected one of {_listed(names(package))} or a dotted name")
    try:
        found = importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is not there
        found = False
    except Exception as error:  # a user's package may raise anything while its __init__ is imported
        raise _broken(name, error) from error
    if not found:
        raise SpecError(f"no module {name}; name the folder that holds {name.split('.')[0]}/ with --include")
    return name


def module(package: str, name: str) -> ModuleType:
    """Import what `find` found; SpecError when a user's module cannot be imported or lacks a part of its role."""
    path = find(package, name)
    try:
        found = importlib.import_module(path)
    except Exception as error:  # as above: any error of foreign code, told by the name the user wrote
        if path != name:
            raise  # our own module: a bug, not a mistake in a spec
        raise _broken(name, error) from error
    if lacking := [part for part in (_ENTRANCE[package], *_BESIDE[package]) if part not in vars(found)]:
        raise SpecError(f"{name} has no {_listed(lacking)}; segbench/{package} shows what such a module consists of")
    return found


def source(package: str, name: str) -> Path | None:
    """The file behind a user's dotted name, whose contents are part of what was measured; None for our own modules."""
    found = importlib.util.find_spec(find(package, name)) if name not in names(package) else None
    return Path(found.origin) if found and found.origin and Path(found.origin).is_file() else None


def nearest(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: `, did you mean 'epochs'?`, or what is known."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; known: {_listed(known)}"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"


def _broken(name: str, error: Exception) -> SpecError:
    return SpecError(f"{name} cannot be imported: {type(error).__name__}: {error}")

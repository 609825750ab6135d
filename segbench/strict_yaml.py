"""YAML 1.2 as plain data with line numbers: nothing in a file can run, refer to other parts or appear twice.

The syntax is ruamel.yaml's; the values are those of the core schema (YAML 1.2.2, section 10.3), so `1e-3` is a number,
`no` a string, `010` is ten and a date is a string. Anchors, aliases, tags and repeated keys are refused.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from segbench.errors import SpecError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_DIGITS = 100

Keys = tuple[str | int, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")

_FRAME = (events.StreamStartEvent, events.StreamEndEvent, events.DocumentEndEvent, events.DocumentStartEvent)


class _Refused(Exception):
    """Well-formed YAML that a spec may not use."""


@dataclass(frozen=True)
class Document:
    """One YAML file."""

    where: str  # how messages name the file
    value: Any  # dict, list, str, int, float, bool, None
    lines: Mapping[Keys, int]  # where each key or item stands, from 1; empty for what is no file

    def at(self, keys: Keys) -> str:
        """`file:line` of a key, or of the nearest one around it that is written; `file` where no lines are known."""
        if not self.lines:
            return self.where
        while keys not in self.lines:
            keys = keys[:-1]
        return f"{self.where}:{self.lines[keys]}"


def load(path: Path) -> Document:
    """Read one file; SpecError when it cannot be read or is not strict YAML."""
    where = _shown(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{where}: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(raw) <= MAX_BYTES:
            raise SpecError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        text = ""  # cut in the middle of a character: what counts is that it is too long
    if len(raw) > MAX_BYTES:
        raise SpecError(f"{where}: longer than {MAX_BYTES // 1024} KiB, which no spec is")
    return parse(text, where)


def parse(text: str, where: str) -> Document:
    """Read YAML text; SpecError(`where:line: what is wrong`) for anything that is not strict YAML."""
    reader = _Reader(where)
    try:
        value = reader.document(YAML(typ="safe", pure=True).parse(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}: " if mark else " "
        raise SpecError(f"{where}:{line}{' '.join(str(error.problem or error.context).split())}") from error
    except YAMLError as error:
        raise SpecError(f"{where}: {' '.join(str(error).split())}") from error
    except (ValueError, AssertionError, IndexError, AttributeError, TypeError) as error:
        raise SpecError(f"{where}: not YAML ({type(error).__name__} of the parser: {error})") from error
    return Document(where, value, reader.lines)


def scalar(text: str) -> str | int | float | bool | None:
    """The value of a plain scalar: null, true, false, a number, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > MAX_DIGITS:
            raise _Refused(f"a number of {len(text)} digits is no value of a spec")
        return int(text, base=0 if text[:2] in ("0o", "0x") else 10)
    if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
        raise _Refused(f"{text} is no finite number")
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass
class _Reader:
    where: str

    def __post_init__(self) -> None:
        self.lines: dict[Keys, int] = {(): 1}

    def document(self, stream: Iterator[Any]) -> Any:
        """The one document of the stream; nothing at all is None."""
        value = None
        for number, event in enumerate(e for e in stream if not isinstance(e, _FRAME)):
            if number:
                raise self._error(event, "a second document in one file")
            value = self._value(event, stream, ())
        return value

    def _value(self, event: Any, stream: Iterator[Any], keys: Keys) -> Any:
        if isinstance(event, events.AliasEvent) or event.anchor:
            raise self._error(event, f"anchors and aliases ({event.anchor!r}) are not used in specs; write it out")
        if event.tag:
            raise self._error(event, f"tags ({str(event.tag)!r}) are not used in specs; a spec is data")
        if isinstance(event, events.ScalarEvent):
            return self._scalar(event)
        if len(keys) >= MAX_DEPTH:
            raise self._error(event, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, events.SequenceStartEvent):
            return self._list(stream, keys)
        return self._mapping(stream, keys)

    def _list(self, stream: Iterator[Any], keys: Keys) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(stream), events.SequenceEndEvent):
            here = (*keys, len(items))
            self.lines[here] = event.start_mark.line + 1
            items.append(self._value(event, stream, here))
        return items

    def _mapping(self, stream: Iterator[Any], keys: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(stream), events.MappingEndEvent):
            key = self._value(event, stream, keys) if isinstance(event, events.ScalarEvent) else None
            if not isinstance(key, str):
                raise self._error(event, f"the key {getattr(event, 'value', 'here')!r} is no text; quote it")
            if key in mapping:
                raise self._error(event, f"key {key!r} is written twice, first in line {self.lines[(*keys, key)]}")
            self.lines[(*keys, key)] = event.start_mark.line + 1
            mapping[key] = self._value(next(stream), stream, (*keys, key))
        return mapping

    def _scalar(self, event: events.ScalarEvent) -> str | int | float | bool | None:
        try:
            event.value.encode()
            return scalar(event.value) if event.implicit[0] else event.value
        except _Refused as error:
            raise self._error(event, str(error)) from error
        except UnicodeEncodeError as error:
            raise self._error(event, "half of a surrogate pair is no text") from error

    def _error(self, event: Any, problem: str) -> SpecError:
        return SpecError(f"{self.where}:{event.start_mark.line + 1}: {problem}")


def _shown(path: Path) -> str:
    """A path as a message shows it: relative to the current folder where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""Validation in this project's words: all mistakes of a file at once, each with its line, key and what is meant."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from segbench import registry
from segbench.errors import SpecError
from segbench.strict_yaml import Document

SomeSpec = TypeVar("SomeSpec", bound=BaseModel)


def validate(cls: type[SomeSpec], value: Any, context: Mapping[str, Any]) -> SomeSpec:
    """`value` as a `cls`; the messages of the ValidationError say what was expected and what was got."""
    try:  # as JSON: lists are tuples there and strings are paths, but "3" is no number
        return cls.model_validate_json(json.dumps(value, default=str), strict=True, context=dict(context))
    except ValidationError as error:
        beside = context.get("beside", ())
        raise ValidationError.from_exception_data(
            cls.__name__, [_told(cls, one, beside) for one in error.errors()], "json"
        ) from None


def bound(cls: type[SomeSpec], keys: Any, document: Document, context: Mapping[str, Any]) -> SomeSpec:
    """Validate; SpecError with one line per mistake, each with the file and line it is in."""
    try:
        return validate(cls, keys, context)
    except ValidationError as error:
        problems: dict[tuple[Any, ...], list[str]] = {}  # members of a union that all refused are one mistake
        for one in error.errors():
            written = _written(one["loc"], document.value)
            of_key = one["type"] in ("unknown_key", "missing_key")
            place = ".".join(map(str, one["loc"][:-1] if of_key else written))
            mistake = (document.lines.get(written, 0), document.at(written), place, one["loc"] if of_key else ())
            problems.setdefault(mistake, []).append(one["msg"])
        ordered = sorted(problems.items(), key=lambda item: item[0][0])
        lines = [": ".join(filter(None, (at, place, " or ".join(told)))) for (_, at, place, _), told in ordered]
        raise SpecError("\n".join(lines)) from None


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of all calls, or one SpecError with the messages of every one that failed."""
    results, problems = [], []
    for call in calls:
        try:
            results.append(call())
        except SpecError as error:
            problems += str(error).splitlines()
    if problems:
        raise SpecError("\n".join(dict.fromkeys(problems)))
    return results


def named(document: Document, stem: str) -> dict[str, Any]:
    """The mapping of a file with its name, which is the file's."""
    if not isinstance(document.value, dict):
        raise SpecError(f"{document.at(())}: expected keys and values, got {_short(document.value)}")
    if document.value.get("name", stem) != stem:
        raise SpecError(f"{document.at(('name',))}: name: a file's name is its registered name: {stem!r}, or rename it")
    return {"name": stem, **document.value}


def _written(loc: tuple[str | int, ...], value: Any) -> tuple[str | int, ...]:
    """The part of pydantic's path that is in the file; the rest names members of unions, or what is missing."""
    for depth, key in enumerate(loc):
        item = isinstance(value, list) and isinstance(key, int) and key < len(value)
        if not item and not (isinstance(value, dict) and key in value):
            return loc[:depth]
        value = value[key]  # pyright: ignore  # a list has a number here, a mapping a name
    return loc


def _told(cls: type[BaseModel], error: ErrorDetails, beside: tuple[str, ...]) -> InitErrorDetails:
    """An error of pydantic in this project's words."""
    loc, kind, got = error["loc"], error["type"], _short(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        fields = [*_fields_at(cls, loc[:-1]), *(beside if len(loc) == 1 else ())]
        kind, message = "unknown_key", f"unknown key {str(loc[-1])!r}{registry.nearest(str(loc[-1]), fields)}"
    elif kind == "missing" and isinstance(loc[-1], int):
        message = f"item {loc[-1] + 1} is missing"
    elif kind == "missing":
        kind, message = "missing_key", f"the key {str(loc[-1])!r} is missing"
    elif kind == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"]) if "ctx" in error else []
        message = f"{got} is not one of {', '.join(choices)}{_near(error['input'], choices)}"
    elif kind in _EXPECTED:
        message = f"expected {_EXPECTED[kind]}, got {got}"
    elif message.startswith("Input should be"):
        message = f"{message.replace('Input should', 'must')}, got {got}"
    details = PydanticCustomError(kind, message)  # type: ignore[arg-type]
    return InitErrorDetails(type=details, loc=loc, input=error["input"])


_EXPECTED = {
    "string_type": "text (quote it if it is meant to be)",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "keys and values",
    "model_type": "keys and values",
    "path_type": "a path",
    "none_required": "nothing",
}


def _near(word: Any, choices: list[str]) -> str:
    """`, did you mean 'x'?` where something is near, else nothing: the choices are told already."""
    tail = registry.nearest(word, choices) if isinstance(word, str) else ""
    return tail if tail.startswith(",") else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields_at(cls: Any, loc: tuple[str | int, ...]) -> list[str]:
    """The keys that the spec at a path may have."""
    for key in loc:
        if isinstance(key, int):
            continue
        if key not in cls.model_fields or not (cls := _spec_in(cls.model_fields[key].annotation)):
            return []
    return list(cls.model_fields)


def _spec_in(annotation: Any) -> type[BaseModel] | None:
    """The first spec in `tuple[Spec, ...]`, `Spec | None` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for one in get_args(annotation) if (found := _spec_in(one))), None)

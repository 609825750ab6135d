"""How a command ends and how it puts things: exit codes, columns, JSON, YAML, and a line on standard error.

Exit codes: 0 all is there, 1 a gate failed, 2 a wrong command or spec, 3 not comparable, 4 something is missing, failed
or was stopped, 130 interrupted.
"""

import io
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

OK, FAILED, WRONG, NOT_COMPARABLE, INCOMPLETE, INTERRUPTED = 0, 1, 2, 3, 4, 130


def say(line: str) -> None:
    """A line on standard error."""
    print(line, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """Text on one line, in which no name of a file and nothing that it holds can command a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def as_columns(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as aligned text under the names of their keys; lists with commas."""
    from tabulate import tabulate

    shown = [
        {k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else str(v) for k, v in row.items()} for row in rows
    ]
    return tabulate(shown, "keys", "plain", disable_numparse=True)


def as_json(value: Any) -> str:
    """Indented JSON; ValueError for NaN or infinity."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)


def as_yaml(value: Any) -> str:
    """YAML with one line per value and a line break at its end."""
    from ruamel.yaml import YAML

    writer, text = YAML(), io.StringIO()
    writer.width = 10_000
    writer.dump(value, text)
    return text.getvalue()

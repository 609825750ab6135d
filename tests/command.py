"""The command line in this process, so that torch is imported once for all tests."""

import contextlib
import io
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from segbench import cli


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


def segbench(*words: object) -> Said:
    """Run `segbench WORDS...`; what it prints and its exit code. Nothing of sys is left changed."""
    out, err = io.StringIO(), io.StringIO()
    warnings = logging.StreamHandler(err)
    logging.getLogger("segbench").addHandler(warnings)
    argv, path = ["segbench", *map(str, words)], list(sys.path)
    try:
        with (
            mock.patch.multiple(sys, argv=argv, path=path),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
        code: object = 0
    except SystemExit as left:
        code = left.code
    finally:
        logging.getLogger("segbench").removeHandler(warnings)
    return Said(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def tiny_run(lab: Path, output: Path) -> tuple[object, ...]:
    """The options of every run of the model `tiny`; pictures have tests of their own."""
    return "--include", lab, "--model", "tiny", "--output", output, "--device", "cpu", "--batch-size", 3, "--no-figures"

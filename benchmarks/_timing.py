"""Paired timing: every variant in a process of its own, one call at a time, in turn."""

import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy
import torch

# glibc gives large blocks back to the kernel at once, so that half of a plain evaluation's time is page faults.
TUNED = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=17179869184"}


class Answer(NamedTuple):
    """What a worker says of one call."""

    seconds: float
    peak: float  # MB that the call added to the process
    note: str


@dataclass(frozen=True)
class Timed:
    """What one variant took, call by call in the order of the rounds."""

    seconds: tuple[float, ...]
    peak: float  # MB that the first call added to the process; means little where freed memory is kept
    note: str  # what else the worker has to tell

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Timed") -> float:
        """Median of the rounds' ratios: what slows the machine down slows both."""
        return statistics.median(a / b for a, b in zip(other.seconds, self.seconds, strict=True))


def race(commands: Mapping[str, tuple[Sequence[str], Mapping[str, str]]], rounds: int) -> dict[str, Timed]:
    """Start a worker (`serve`) for every (command, extra environment), call them in turn, odd rounds backwards."""
    base = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | {"OMP_NUM_THREADS": "1"}
    workers = {}
    for name, (command, environ) in commands.items():
        workers[name] = subprocess.Popen(  # noqa: S603 our own words, no shell
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**base, **environ},
        )
        _answer(workers[name])
    answers: dict[str, list[Answer]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, worker in [*workers.items()][:: -1 if number % 2 else 1]:
            answers[name].append(_ask(worker, number))
    for worker in workers.values():
        worker.communicate()
    return {
        name: Timed(tuple(row.seconds for row in rows[1:]), rows[0].peak, rows[0].note)
        for name, rows in answers.items()
    }


def print_rows(what: str, variants: Mapping[str, Sequence[str]], rounds: int) -> None:
    """A row of Markdown per variant, by the command that serves it; the first two are the naive way, untuned and tuned.

    Columns: `what`, variant, ms, times faster than either of the two, peak MB, the variant's note.
    """
    timed = race({name: (words, TUNED if "tuned" in name else {}) for name, words in variants.items()}, rounds)
    first, second = list(timed.values())[:2]
    for name, one in timed.items():
        ratios = f"{one.times_faster_than(first):.1f} | {one.times_faster_than(second):.1f}"
        peak = "kept" if "tuned" in name else f"{one.peak:.1f}"
        print(f"| {what} | {name} | {one.median * 1e3:.2f} | {ratios} | {peak} | {one.note} |", flush=True)


def serve(call: Callable[[int], None], note: Callable[[], str]) -> None:
    """Answer every line of the standard input with time and memory of one call; the first with the note, too."""
    torch.set_num_threads(1)
    print(json.dumps(Answer(0.0, 0.0, "ready")), flush=True)
    for line in sys.stdin:
        gc.collect()
        before = _peak_from_here()
        start = time.perf_counter()
        call(int(line))
        seconds = time.perf_counter() - start
        peak = (_memory("VmHWM") - before) / 1e6
        print(json.dumps(Answer(seconds, peak, note() if int(line) == 0 else "")), flush=True)


def machine() -> str:
    """Processor, versions and how busy it is."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = cpu[1] if cpu else platform.machine()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{name}, {os.cpu_count()} cores, one thread; {platform.system()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, numpy {numpy.__version__}; load {load} (1, 5 and 15 minutes)"
    )


def _ask(worker: subprocess.Popen[str], number: int) -> Answer:
    print(number, file=worker.stdin, flush=True)
    return _answer(worker)


def _answer(worker: subprocess.Popen[str]) -> Answer:
    line = next(worker.stdout or iter(()), None)
    if line is None:
        raise SystemExit(f"{worker.args} stopped; what it wrote stands above")
    return Answer(*json.loads(line))


def _peak_from_here() -> int:
    """Let the kernel's peak start anew; the bytes in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

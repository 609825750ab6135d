"""Small probe cells that are killed at a certain call, in a process forked from one that has imported torch."""

import itertools
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_runs
from command import segbench, tiny_run

from segbench.features.estimate import SHARES
from segbench.probes import Trainer

SITES = ["encoder", "llm.1", "llm.2"]
EPOCHS = 3  # of two steps each
PROBE = tiny_runs.PROBE.replace("epochs: 4", f"epochs: {EPOCHS}, norm: standardize")
TASKS = {
    policy: f"{PROBE}sites: [{', '.join(SITES)}]\nfeatures: {policy}\nshuffled: {str(shuffled).lower()}\n"
    for policy, shuffled in {"memory": True, "stream": False, "sweep": True, "groups": False, "disk": False}.items()
}
LITTLE = 1e-12  # of the host's memory: every group is one site

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["segbench.kinds.probe", "segbench.probes", "segbench.adapters.llava"])


def killed(lab: Path, task: str, output: Path, place: str, call: int) -> None:
    """`segbench run` up to the so-many-th call of `package.module.Class.function`, and no instruction more."""
    words = ("run", *tiny_run(lab, output), "--tasks", task)
    child = _forked.Process(target=_run, args=(tuple(map(str, words)), place, call))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL, f"{place} was not called {call} times: exit code {child.exitcode}"
    assert not list(output.rglob("cell.json"))


def _run(words: tuple[str, ...], place: str, call: int) -> None:
    owner, _, name = place.rpartition(".")
    original, calls = pkgutil.resolve_name(place), itertools.count(1)

    def counted(*given, **named):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    setattr(pkgutil.resolve_name(owner), name, counted)
    SHARES["host"] = LITTLE
    segbench(*words)


@contextmanager
def training(host: float = LITTLE) -> Iterator[list[tuple[str, int]]]:
    """Sites and number of every epoch that is trained meanwhile on the true labels; `host` is the share of memory."""
    trained, epoch = [], Trainer.epoch

    def listed(self, number, progress):
        if type(self.source).__name__ != "Shuffled":
            trained.append((",".join(map(str, self.bank.sites)), number))
        epoch(self, number, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "epoch", listed)
        patch.setitem(SHARES, "host", host)
        yield trained


def epochs(*banks: str, first: int = 0) -> list[tuple[str, int]]:
    """All epochs of some banks, one after the other, the first bank's from `first` on."""
    starts = [first] + [0] * (len(banks) - 1)
    return [(bank, number) for bank, start in zip(banks, starts, strict=True) for number in range(start, EPOCHS)]


def differing(output: Path, expected: Mapping[str, bytes]) -> list[str]:
    """Names of files in a store that others have not, or not with these bytes; what is set aside does not count."""
    found = {name: data for name, data in tiny_runs.contents(output).items() if ".damaged" not in name}
    return [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]

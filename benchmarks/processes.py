"""How much sooner is a cell measured by several processes, and are the numbers the same?

    python benchmarks/processes.py [ROUNDS] [PROCESSES]

Prints Markdown: one probe task on a shipped reference model, by one process and by PROCESSES (2) that torchrun starts
on this machine (gloo), one thread each, in turn; seconds are medians over the rounds of what a cell took, from its
first image to the written files (`provenance.json`): a small one goes before it in the same run, so that libraries and
model are loaded. The last times are those of one process with as many threads.

Speed-up is the median over the rounds of one process's seconds divided by the team's. It has limits of its own: images
that rest in memory belong to the process that read them, so that a batch of 64 seldom falls into equal parts (of two:
29 and 35, one step in two); optimiser, checkpoints and intervals are every process's or the first one's; and two busy
cores may be slower than one. `alone beside another` is one process while a second one does the same: what the machine
itself allows.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from _timing import machine

from segbench import kernels
from segbench.store import Result, Store

MODEL, POLICIES = "tiny-clip-bidir", ("stream", "memory", "sweep")
TRAIN, VAL, EPOCHS = 480, 240, {"stream": 3, "memory": 9, "sweep": 9}


def lab(folder: Path) -> None:
    """A task per policy, and one to begin with."""
    (folder / "tasks").mkdir()
    (folder / "tasks/warm.yaml").write_text(
        "kind: probe\ndata: {name: scenes, train: 8, val: 4}\nprotocol: {epochs: 1}\n"
    )
    for policy in POLICIES:
        (folder / f"tasks/{policy}.yaml").write_text(
            f"kind: probe\nfeatures: {policy}\n"
            f"data: {{name: scenes, train: {TRAIN}, val: {VAL}}}\n"
            f"protocol: {{epochs: {EPOCHS[policy]}, lr: 5e-3}}\n"
        )


def start(folder: Path, policy: str, processes: int, threads: int, output: Path) -> "subprocess.Popen[str]":
    """A small cell, then the one that counts."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = ["-m", "segbench", "run", "--include", str(folder), "--model", MODEL, "--tasks", f"warm,{policy}"]
    command += ["--output", str(output), "--device", "cpu", "--no-figures", "--examples", "0"]
    command += ["--share", "images"]
    return subprocess.Popen(  # noqa: S603 our own words, no shell
        [sys.executable, *(torchrun if processes > 1 else []), *command],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def measured(run: "subprocess.Popen[str]", policy: str, output: Path) -> tuple[float, Result]:
    """Seconds of the cell, and what it holds."""
    _, said = run.communicate()
    if run.returncode:
        raise SystemExit(said)
    result = next(one for one in Store(output).results() if one.task == policy)
    return json.loads((result.path / "provenance.json").read_text())["seconds"], result


def differences(one: Result, other: Result) -> str:
    """Largest, of weights and of pixels per image and class."""
    found = []
    for name in ("probes", "counts"):
        pairs = zip(one.arrays(name).values(), other.arrays(name).values(), strict=True)
        found.append(max(float(np.abs(a.astype(float) - b.astype(float)).max()) for a, b in pairs))
    return f"{found[0]:.1e} / {found[1]:.0f}"


def main(rounds: int, processes: int) -> None:
    print(f"# One probe task by {processes} processes\n\n{machine()}; {kernels.making()}; {rounds} rounds\n")
    print(f"`{MODEL}`, {TRAIN} + {VAL} drawn images.\n")
    heads = ("one process (s)", "alone beside another", f"{processes} processes", "speed-up", f"{processes} threads")
    print(f"| features | epochs | {' | '.join(heads)} | differences: weights / pixels |\n|---|{'---:|' * 6}---|")
    for policy in POLICIES:
        seconds: dict[str, list[float]] = {name: [] for name in ("alone", "beside", "team", "threads")}
        told = ""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            lab(folder)
            for number in range(rounds):
                places = {name: folder / f"{name}-{number}" for name in (*seconds, "other")}
                took, one = measured(start(folder, policy, 1, 1, places["alone"]), policy, places["alone"])
                seconds["alone"].append(took)
                both = [start(folder, policy, 1, 1, places[name]) for name in ("beside", "other")]
                pair = [
                    measured(run, policy, places[name])[0] for run, name in zip(both, ("beside", "other"), strict=True)
                ]
                seconds["beside"].append(max(pair))
                took, team = measured(start(folder, policy, processes, 1, places["team"]), policy, places["team"])
                seconds["team"].append(took)
                took, _ = measured(start(folder, policy, 1, processes, places["threads"]), policy, places["threads"])
                seconds["threads"].append(took)
                told = differences(one, team)
        ratio = statistics.median(a / b for a, b in zip(seconds["alone"], seconds["team"], strict=True))
        times = {name: f"{statistics.median(some):.1f}" for name, some in seconds.items()}
        cells = [policy, EPOCHS[policy], times["alone"], times["beside"], times["team"], f"{ratio:.2f}"]
        print(f"| {' | '.join(map(str, [*cells, times['threads'], told]))} |", flush=True)
    print(f"\nAt the end: {machine().rpartition('; ')[2]}.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, int(sys.argv[2]) if len(sys.argv) > 2 else 2)

"""How much sooner is a cell measured by several processes, and are the numbers the same?

    python benchmarks/processes.py [ROUNDS] [PROCESSES]

Prints Markdown: one probe task on a shipped reference model, by one process and by PROCESSES (2) that torchrun starts
on this machine (gloo), one thread each, in turn; seconds are medians over the rounds of what the cell took, from
loading the model to the written files (`provenance.json`), without the processes' start. The last times are those of
one process with as many threads.

Speed-up is the median over the rounds of one process's seconds divided by the team's. It has limits of its own: every
process loads the model, tries its attention and looks at all masks of val; images that rest in memory belong to the
process that read them, so that a batch of 64 seldom falls into equal parts (of two: 29 and 35, one step in two).
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
TRAIN, VAL, EPOCHS = 480, 240, {"stream": 4, "memory": 12, "sweep": 12}


def lab(folder: Path) -> None:
    """A task per policy."""
    (folder / "tasks").mkdir()
    for policy in POLICIES:
        (folder / f"tasks/{policy}.yaml").write_text(
            f"kind: probe\nfeatures: {policy}\n"
            f"data: {{name: scenes, train: {TRAIN}, val: {VAL}}}\n"
            f"protocol: {{epochs: {EPOCHS[policy]}, lr: 5e-3}}\n"
        )


def measured(folder: Path, policy: str, processes: int, threads: int, output: Path) -> tuple[float, Result]:
    """Seconds of the cell, and what it holds."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = ["-m", "segbench", "run", "--include", str(folder), "--model", MODEL, "--tasks", policy]
    command += ["--output", str(output), "--device", "cpu", "--no-figures", "--examples", "0"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, *(torchrun if processes > 1 else []), *command],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    (result,) = Store(output).results()
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
    heads = f"one process (s) | {processes} processes (s) | speed-up | one with {processes} threads (s)"
    print(f"| features | epochs | {heads} | differences: weights / pixels |\n|---|---:|---:|---:|---:|---:|---|")
    for policy in POLICIES:
        alone, team, threaded = [], [], []
        told = ""
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            lab(folder)
            for number in range(rounds):
                seconds, one = measured(folder, policy, 1, 1, folder / f"alone-{number}")
                alone.append(seconds)
                seconds, other = measured(folder, policy, processes, 1, folder / f"team-{number}")
                team.append(seconds)
                told = differences(one, other)
                threaded.append(measured(folder, policy, 1, processes, folder / f"threads-{number}")[0])
        ratio = statistics.median(a / b for a, b in zip(alone, team, strict=True))
        times = [f"{statistics.median(some):.1f}" for some in (alone, team, threaded)]
        cells = [policy, EPOCHS[policy], *times[:2], f"{ratio:.2f}", times[2], told]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\nAt the end: {machine().rpartition('; ')[2]}.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, int(sys.argv[2]) if len(sys.argv) > 2 else 2)

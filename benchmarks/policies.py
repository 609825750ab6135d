"""What does it cost to probe a model under every feature policy, and does the estimate know it beforehand?

    python benchmarks/policies.py [ROUNDS]

Linux. Prints Markdown: one probe task, from loading the model to the written cell, on a shipped reference model and on
a wider random LLaVA that is made here, whose forward pass costs something. Every policy runs in a process of its own on
one thread, the policies take turns, odd rounds backwards; seconds are medians. A first round, which is not timed, tells
peaks: MB that the cell adds to the process, and of its feature files on disk. `groups` is told of so little memory
that it needs several; the other policies see what there is.

The estimate is of the features alone. Its seconds, less those it gives `memory`, stand beside the measured ones, less
those of `memory`; its bytes beside what the process holds above `stream`, or on disk. Numbers of all policies should be
the same: the largest differences from `stream` stand below each table.
"""

import json
import logging
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch
from _timing import Timed, machine, race, serve
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from segbench import features, kernels, planning, runner
from segbench.adapters import llava
from segbench.features import estimate, policy
from segbench.features.estimate import SHARES, Chosen, Costs, Estimate, Load, Room
from segbench.library import Library
from segbench.store import Result, Store, read_result
from segbench.training import tokens

POLICIES: tuple[Chosen, ...] = get_args(Chosen)
IMAGE, PATCH = 96, 8  # pixels of the wide model's images
GROUPS = 3  # that the memory is cut for; they come out as one more where sites do not fill them


@dataclass(frozen=True)
class Case:
    """A model and what its probes are trained on."""

    model: str
    train: int  # images
    val: int
    epochs: int

    @property
    def reads(self) -> int:
        return self.epochs * (self.train + self.val)


CASES = (Case("tiny-clip-bidir", 120, 60, 5), Case("wide", 24, 8, 3))


class Silent:
    """A watcher that says nothing."""

    def started(self, item: planning.Item) -> None: ...
    def progress(self, images: int, total: int, what: str) -> None: ...
    def ended(self, outcome: runner.Outcome) -> None: ...


def lab(folder: Path) -> None:
    """The wide model, and a task per case and policy."""
    for name in ("models", "tasks"):
        (folder / name).mkdir()
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=12,
            num_attention_heads=8,
            vocab_size=len(tokens.VOCABULARY),
        ),
        image_token_index=tokens.IMAGE,
        image_seq_length=(IMAGE // PATCH) ** 2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder / "models/wide")
    tokens.processor(IMAGE, PATCH).save_pretrained(folder / "models/wide")
    (folder / "models/wide.yaml").write_text("adapter: llava\nweights: ./wide\n")
    for case in CASES:
        for name in POLICIES:
            (folder / f"tasks/{case.model}-{name}.yaml").write_text(
                f"kind: probe\nfeatures: {name}\n"
                f"data: {{name: scenes, train: {case.train}, val: {case.val}}}\n"
                f"protocol: {{epochs: {case.epochs}, batch: 16, lr: 5e-3}}\n"
            )


def measure(folder: Path, case: Case, name: Chosen, output: Path) -> None:
    """One cell, as `segbench run` makes it."""
    library, options = Library([folder]), planning.Options(device="cpu", batch_size=16, examples=0)
    tasks = library.tasks(f"{case.model}-{name}")
    for outcome in runner.run(
        planning.plan(library, library.models(case.model), tasks, Store(output), options), options, Silent()
    ):
        if outcome.status != "ran":
            raise SystemExit(f"{case.model}, {name}: {outcome.status}, {outcome.note}")


def tight(load: Load, costs: Costs, room: Room) -> Room:
    """As much memory as a few groups of sites take, and no more."""
    most = load.images * (sum(costs.sites[site] for site in load.sites) / GROUPS + costs.labels)
    return replace(room, memory={"host": int(most / SHARES["host"])})


def work(folder: Path, case: Case, name: Chosen, output: Path) -> None:
    """One policy's process."""
    logging.disable(logging.WARNING)
    largest = 0
    llava.load(Library().models("tiny-clip-bidir")[0], "cpu")  # libraries wake up
    if name == "groups":
        policy.estimated = lambda load, costs, room, refused="": estimate.estimated(
            load, costs, tight(load, costs, room), refused
        )

    def call(number: int) -> None:
        nonlocal largest
        if number:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                measure(folder, case, name, Path(scratch))
        else:
            with _watched(output) as sizes:
                measure(folder, case, name, output)
            largest = max(sizes)

    serve(call, lambda: str(largest))


def main(rounds: int) -> None:
    print(f"# One probe task under every feature policy\n\n{machine()}; {kernels.making()}; {rounds} rounds")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lab(folder)
        for case in CASES:
            outputs = {name: folder / "cells" / case.model / name for name in POLICIES}
            timed = race({name: ((__file__, str(folder), case.model, name), {}) for name in POLICIES}, rounds)
            cells = {name: next(output.rglob("provenance.json")).parent for name, output in outputs.items()}
            _table(case, timed, {name: _estimated(case, name, cells[name]) for name in POLICIES})
            _differences({name: read_result(cell) for name, cell in cells.items()})
    print(f"\nAt the end: {machine().rpartition('; ')[2]}.")


def _table(case: Case, timed: Mapping[str, Timed], estimates: Mapping[str, Estimate]) -> None:
    print(f"\n## {case.model}: {case.train} + {case.val} images, {case.epochs} epochs\n")
    print("| policy | how | s | x stream | s above memory | estimated | peak MB | above stream | on disk | estimated |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    stream, memory, least = timed["stream"], timed["memory"], estimates["memory"].seconds or 0.0
    for name, one in timed.items():
        expected = estimates[name]
        row = [name, expected.how, f"{one.median:.2f}", f"{one.times_faster_than(stream):.2f}"]
        row += [f"{one.median - memory.median:+.2f}", f"{(expected.seconds or 0.0) - least:+.2f}"]
        row += [f"{one.peak:.0f}", f"{one.peak - stream.peak:+.0f}", f"{int(one.note) / 1e6:.1f}"]
        print(f"| {' | '.join(row)} | {expected.bytes / 1e6:.1f} |", flush=True)


def _estimated(case: Case, name: Chosen, cell: Path) -> Estimate:
    """What the estimate gave the policy, from the costs that this very cell measured."""
    facts: dict[str, Any] = json.loads((cell / "provenance.json").read_text())["features"]
    if facts["policy"] != name:
        raise SystemExit(f"{case.model}: {facts['policy']} instead of {name} ({facts['refused']})")
    costs = Costs.of(facts["costs"])
    load, room = Load(tuple(costs.sites), case.train + case.val, case.reads), features.room("cpu", cell)
    room = tight(load, costs, room) if name == "groups" else room
    return next(one for one in estimate.estimated(load, costs, room, facts["refused"]) if one.policy == name)


def _differences(results: Mapping[str, Result]) -> None:
    """The largest ones from `stream`: of any number that is reported, and of any weight of a probe."""
    first = results["stream"]
    ours, probes = {(one.metric, one.site): one.value for one in first.records()}, first.arrays("probes")
    print()
    for name, result in results.items():
        if result is not first:
            numbers = max(abs(one.value - ours[one.metric, one.site]) for one in result.records())
            theirs = result.arrays("probes")
            weights = max(float(np.abs(theirs[key] - probes[key]).max()) for key in probes)
            print(f"{name} against stream: numbers differ by {numbers:.2g} at most, probes' weights by {weights:.1e}.")


@contextmanager
def _watched(folder: Path) -> Iterator[list[int]]:
    """Bytes of the feature files below a folder, seen every few milliseconds."""
    sizes, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            sizes.append(sum(map(_size, folder.rglob("*.raw"))))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # dropped since it was listed
        return 0


if __name__ == "__main__":
    if len(sys.argv) > 2:
        chosen = {case.model: case for case in CASES}[sys.argv[2]]
        wanted = cast("Chosen", sys.argv[3])
        work(Path(sys.argv[1]), chosen, wanted, Path(sys.argv[1]) / "cells" / chosen.model / wanted)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)

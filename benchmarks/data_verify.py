"""What `segbench data verify` and the planning of a run cost on a complete tree in the layout of ADE20K.

    python benchmarks/data_verify.py FOLDER [--size 64]

Draws 20,210 + 2,000 images once into FOLDER, and a tenth of them beside; prints Markdown. Every figure is of a process
of its own; peak memory is what the system counts for it (ru_maxrss). A plan asks for the manifests of both splits;
it is cold where no checksum is remembered.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from segbench.data import ade20k, checksums, there, verify

WHOLE = {"train": 20_210, "val": 2_000}
FOLDERS = {"train": "training", "val": "validation"}


def draw(root: Path, counts: dict[str, int], side: int) -> None:
    """Pictures of noise that packs as photographs do, and masks of a few large areas, unless they are there."""
    for split, count in counts.items():
        for kind in ("images", "annotations"):
            (root / kind / FOLDERS[split]).mkdir(parents=True, exist_ok=True)
        there = {path.stem for path in (root / "annotations" / FOLDERS[split]).iterdir()}
        names = [f"ADE_{split}_{number:08d}" for number in range(1, count + 1)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name, split=split: one(root, FOLDERS[split], name, side), set(names) - there))


def one(root: Path, folder: str, name: str, side: int) -> None:
    random = np.random.default_rng(int(name[-8:]))
    blocks = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side))
    areas = Image.fromarray(random.integers(0, 151, (4, 4), np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    values = np.array(areas)
    values[0, 0] = 0
    blocks.save(root / "images" / folder / f"{name}.jpg", quality=90)
    Image.fromarray(values).save(root / "annotations" / folder / f"{name}.png")


def measured(what: str, root: Path, counts: dict[str, int]) -> None:
    """One figure, in the process that this is."""
    known = ade20k.Params.known
    ade20k.Params.known = replace(known, images=counts, facts={**known.facts, "labels": {}})
    begun = time.perf_counter()
    if what == "verify":
        report = verify.verify("ade20k", root, root, False, lambda *_: None)
        if report.problems:
            raise SystemExit(report.problems[0])
        said = report.digest[:12]
    elif what == "where":
        said = str(there.there("ade20k", root, root).changed)
    else:
        said = ade20k.load(ade20k.Params(path=root), "train").manifest[:12]
        ade20k.load(ade20k.Params(path=root), "val").manifest  # noqa: B018  # what a plan asks for
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak": peak, "said": said}))


def in_a_process(what: str, root: Path, counts: dict[str, int], cache: Path) -> dict[str, float]:
    command = [sys.executable, __file__, str(root), "--measure", what, "--counts", json.dumps(counts)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: S603  # this file
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64, help="pixels along the sides of every image")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measured(given.measure, given.folder, given.counts)
        return
    rows = []
    for name, divided in (("tenth", 10), ("whole", 1)):
        counts = {split: count // divided for split, count in WHOLE.items()}
        root, cache = given.folder / name, given.folder / f"cache-{name}"
        draw(root, counts, given.size)
        for what, how in (("plan", "plan, cold"), ("plan", "plan, warm"), ("verify", "verify"), ("where", "where")):
            if how != "plan, warm" and what == "plan":
                for path in cache.rglob("*.json"):
                    path.unlink()
            found = in_a_process(what, root, counts, cache)
            files = 2 * sum(counts.values())
            seconds, peak = found["seconds"], found["peak"]
            rows.append(f"| {how} | {files:,} | {seconds:.1f} | {files / seconds:,.0f} | {peak:.0f} |")
    cores = len(os.sched_getaffinity(0))
    print(f"{given.size} x {given.size} pixels, {cores} cores, {checksums.WORKERS} threads\n")
    print("| what | files | seconds | files/s | peak MiB |\n|---|---:|---:|---:|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

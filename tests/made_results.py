"""Cells as the kinds would leave them, made up from a few curves and kept in a real store.

The numbers are drawn, not measured; only their shape is that of a small model: a drop at the adapter, a recovery in the
LLM, more of it with bidirectional attention, and a gap at the first patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segbench import stats
from segbench.data import scenes
from segbench.records import digest
from segbench.store import Result, Store
from segbench.types import Measure

LAYERS = 8
SITES = ("encoder", "adapter", *(f"llm.{layer}" for layer in range(1, LAYERS + 1)), "llm.norm")
CONDITIONS = ("none", "incorrect", "correct", "random")
GRID = (12, 12)
PIXELS = 96 * 96


@dataclass(frozen=True)
class Made:
    """A model to make results for: share of right pixels at encoder, adapter, first and last LLM layer."""

    name: str
    attention: str
    baseline: str | None
    skill: tuple[float, float, float, float]
    left: tuple[float, float, float, float]  # of the wrong patches at the last layer, by condition
    early: float  # accuracy of the first row of patches


CAUSAL = Made("tiny-clip-causal", "causal", None, (0.72, 0.66, 0.70, 0.75), (0.66, 0.52, 0.75, 0.67), 0.58)
BIDIR = Made("tiny-clip-bidir", "bidirectional", CAUSAL.name, (0.72, 0.65, 0.74, 0.82), (0.42, 0.37, 0.45, 0.44), 0.81)
RANDOM = Made("tiny-clip-random", "causal", None, (0.72, 0.63, 0.64, 0.655), (0.93, 0.9, 0.94, 0.93), 0.6)


def make(
    root: Path,
    models: Sequence[Made] = (CAUSAL, BIDIR, RANDOM),
    kinds: Sequence[str] = ("probe", "knockout", "starvation"),
    images: int = 60,
    examples: int = 2,
    seed: int = 0,
    limit: int | None = None,
    classes: Sequence[str] = scenes.CLASSES,
    task: str = "scenes",
) -> list[Result]:
    """Finished cells of every model and kind, read back from the store."""
    results = []
    for model in models:
        for kind in kinds:
            arrays, about, measures = _CELLS[kind](model, images, examples, seed, classes)
            results.append(keep(root, model, kind, arrays, about, measures, task, seed, limit))
    return results


def keep(
    root: Path,
    model: Made,
    kind: str,
    arrays: Mapping[str, Mapping[str, np.ndarray]],
    about: dict[str, Any],
    measures: Sequence[Measure] = (),
    task: str = "scenes",
    seed: int = 0,
    limit: int | None = None,
) -> Result:
    """One finished cell of given arrays, read back from the store."""
    inputs = _inputs(model, kind, task, seed, limit)
    name = f"{kind}-{task}"
    header = {
        "model": model.name,
        "revision": f"{_seed(model.name):08x}" * 5,
        "task": name,
        "kind": kind,
        "seed": seed,
        "limit": limit,
        "model_card": {"name": model.name, "attention": model.attention, "baseline": model.baseline},
        "task_spec": {"name": name, "kind": kind, "groups": ["demo"], "description": ""} | _params(kind, task),
        "inputs": inputs,
    }
    cell = Store(root).cell(model.name, name, digest(inputs))
    for array, content in arrays.items():
        cell.save_arrays(array, content)
    cell.about(about)
    cell.finish(header, measures)
    return cell.result()


def _params(kind: str, task: str) -> dict[str, Any]:
    return {"data": {"name": "scenes", "seed": 1}} if kind == "probe" else {"probes": f"probe-{task}"}


def _inputs(model: Made, kind: str, task: str, seed: int, limit: int | None) -> dict[str, Any]:
    """What the fingerprint is made of, with the probe cell's own in it where the kind reads probes."""
    read = {} if kind == "probe" else {f"probe-{task}": digest(_inputs(model, "probe", task, seed, limit))}
    shared = {"task": {"kind": kind, "params": _params(kind, task)}, "data": {}, "protocol": 1}
    return shared | {"model": model.name, "requires": read, "seed": seed, "limit": limit}


Cell = tuple[Mapping[str, Mapping[str, np.ndarray]], dict[str, Any], list[Measure]]


def _probe(model: Made, images: int, examples: int, seed: int, classes: Sequence[str]) -> Cell:
    random = np.random.default_rng(_seed("probe", str(seed)))  # the same images for every model
    k = len(classes)
    mixed = random.dirichlet(np.full(k, 0.3), images)
    truth = np.floor(mixed * PIXELS).astype(np.int32)
    hard, image = random.normal(0, 0.12, k), random.normal(0, 0.08, (images, 1))
    own = np.random.default_rng(_seed(model.name, str(seed)))
    counts = np.zeros((len(SITES), images, k, 3), np.int32)
    for row, skill in enumerate(_along(model.skill)):
        right = np.clip(skill + hard + image + own.normal(0, 0.02, (images, k)), 0.02, 0.98)
        hit = np.round(truth * right).astype(np.int32)
        wrong = truth - hit
        twin = np.arange(k) ^ 1
        twin = np.where(twin < k, twin, 0)
        counts[row] = np.stack([hit, truth, hit + wrong[:, twin]], -1)
    shown: dict[str, np.ndarray] = {}
    for example in range(examples):
        scene = scenes.draw(1, scenes.HELD_OUT + 40 + example)
        shown |= {f"{example}.image": scene.image, f"{example}.truth": scene.mask}
        for site, skill in zip(SITES, _along(model.skill), strict=True):
            shown[f"{example}.{site}"] = _predicted(scene.mask, skill, own)
    about = {
        "sites": list(SITES),
        "classes": list(classes),
        "images": [f"scene-{index}" for index in range(images)],
        "grid": list(GRID),
        "selection": "val_best",
        "best_epochs": dict.fromkeys(SITES, 20),
        "train_images": 480,
    }
    found = stats.sampled(stats.miou, counts, stats.Units.among(images))
    measures = [Measure("coverage", 100.0, "%", images)]
    measures += [Measure("classes_present", float(stats.present(counts[0]).sum()), "count", images)]
    measures += [Measure("oracle_miou", 88.4, "%", images)]
    measures += [
        Measure("miou", one.value, "%", images, site, None, one.interval)
        for site, one in zip(SITES, (sampled.estimate() for sampled in found), strict=True)
        if one
    ]
    return {"counts": {"best": counts, "last": counts}, "examples": shown}, about, measures


def _knockout(model: Made, images: int, examples: int, seed: int, classes: Sequence[str]) -> Cell:
    random = np.random.default_rng(_seed(model.name, "knockout", str(seed)))
    sites = SITES[1:-1]
    shown = list(classes[: 2 * (len(classes) // 4)])
    chosen = np.sort(random.permutation(images * len(shown))[: 2 * images])  # no image has a class twice
    image, confused = (chosen // len(shown)).astype(np.int32), (chosen % len(shown)).astype(np.int32)
    n0 = random.integers(8, 40, 2 * images).astype(np.int32)
    n = np.zeros((2 * images, len(CONDITIONS), len(sites)), np.int32)
    for column, left in enumerate(model.left):
        for row in range(len(sites)):
            share = 1 - (1 - left) * min(1.0, (row / LAYERS) ** 0.6) if row else 1.0
            n[:, column, row] = random.binomial(n0, share) if row else n0
    about = {
        "classes": shown,
        "all_classes": list(classes),
        "conditions": list(CONDITIONS),
        "sites": list(sites),
        "layers": "all",
        "least": 8,
        "left_out": dict.fromkeys(shown, 3),
    }
    patches = {"n": n, "n0": n0, "image": image, "class": confused}
    value = float((100 * n[:, 0, -1] / n0).mean())
    return {"patches": patches}, about, [Measure("persistence", value, "%", images, "llm.8", "all/none")]


def _starvation(model: Made, images: int, examples: int, seed: int, classes: Sequence[str]) -> Cell:
    random = np.random.default_rng(_seed(model.name, "starvation", str(seed)))
    h, w = GRID
    rows = np.linspace(0, 1, h)[:, None] ** 0.4
    share = np.clip(model.early + (0.8 - model.early) * np.broadcast_to(rows, (h, w)), 0, 1).ravel()
    count = np.full((images, h * w), PIXELS // (h * w), np.int32)
    count[0, :4] = 0  # an image whose first patches are not labelled
    right = np.clip(share + random.normal(0, 0.15, (images, h * w)), 0, 1)
    hit = np.round(count * right).astype(np.int32)
    about = {
        "site": "llm.4",
        "chosen": "peak",
        "grid": [h, w],
        "images": [f"scene-{index}" for index in range(images)],
    }
    found = [sampled.estimate() for sampled in stats.sampled_ratio(hit, count, stats.Units.among(images))]
    measures = [
        Measure("patch_accuracy", one.value, "%", images, "llm.4", str(t), one.interval)
        for t, one in enumerate(found)
        if one
    ]
    return {"positions": {"hit": hit, "count": count}}, about, measures


_CELLS = {"probe": _probe, "knockout": _knockout, "starvation": _starvation}


def _along(skill: tuple[float, float, float, float]) -> list[float]:
    """Skill at every site: a saturating rise through the LLM that bends down a little at its end."""
    encoder, adapter, first, last = skill
    steps = np.linspace(0, 1, LAYERS)
    layers = first + (last - first) * (1 - (1 - steps) ** 2) - 0.02 * np.maximum(steps - 0.7, 0)
    return [encoder, adapter, *layers.tolist(), float(layers[-1]) - 0.004]


def _predicted(mask: np.ndarray, skill: float, random: np.random.Generator) -> np.ndarray:
    """A label map of patches, some of which carry the class that looks the same."""
    h, w = GRID
    patches = mask[4::8, 4::8].copy()
    swapped = (random.random((h, w)) > skill) & (patches < 8)
    patches[swapped] ^= 1
    stray = random.random((h, w)) > 0.97
    patches[stray] = random.integers(0, len(scenes.CLASSES), stray.sum())
    return np.kron(patches, np.ones((8, 8), np.uint8)).astype(np.uint8)


def _seed(*words: str) -> int:
    """The same number in every process, unlike hash()."""
    number = 0
    for word in words:
        for letter in word.encode():
            number = (number * 131 + letter) % 0xFFFFFFFB
    return number

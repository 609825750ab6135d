"""How long does it take to count one probe's predictions on one image at full resolution?

    python benchmarks/evaluation.py [ROUNDS]

Linux. Prints Markdown: every variant runs in a process of its own on one thread, one call at a time in turn; times are
medians, ratios are medians over the rounds. The naive way is torch's `interpolate`, `argmax` and `bincount`, also with
an allocator that keeps its memory (so that its peak means little). Pixels unlike float64's argmax are counted.

The scenes are wavy patchworks with classes as unequal as ADE20K's, the features are planted: class means mixed by the
true area of every patch, in groups of ten that are hard to tell apart, under smooth and independent noise. Three kinds
of logits: of a probe trained on them with the up-sampled cross-entropy, of the same probe before training, and
independent normal ones, which leave more classes to a cell than any probe.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _timing import machine, print_rows, serve
from jaxtyping import Float, Int64, Integer, UInt8
from torch import Tensor

from segbench import geometry, kernels, stats
from segbench.kernels import Target, compiled, plain, upsampled_cross_entropy
from segbench.types import IGNORE, GridMap

GRID, WIDTH = (24, 24), 256  # patches; channels of the planted features
TRAIN, VAL, EPOCHS = 96, 4, 12
VARIANTS = ("naive", "naive, tuned allocator", "in chunks of 16 rows, tuned", "segbench, plain", "segbench, compiled")
KINDS = ("trained", "untrained", "independent normal")


@dataclass(frozen=True)
class Case:
    """The shape of a data set."""

    name: str
    classes: int
    image: tuple[int, int]


CASES = (Case("ADE20K", 150, (512, 683)), Case("Cityscapes", 19, (1024, 2048)))


def scene(case: Case, number: int, shrink: int = 1) -> UInt8[np.ndarray, "H W"]:
    """Regions around random centres with wavy borders, a tenth of the pixels unlabelled; 1 / shrink of the size."""
    random = np.random.default_rng([case.classes, number])
    (height, width), regions = case.image, int(random.integers(6, 26))
    share = 1 / np.arange(1, case.classes + 1)
    labels = random.choice(case.classes, regions, p=share / share.sum())
    y, x = np.mgrid[: height // shrink, : width // shrink] * float(shrink)
    y, x = y + 12 * np.sin(x / 37), x + 9 * np.sin(y / 23)
    centres = random.random((regions, 2)) * case.image
    away = np.stack([np.hypot(y - cy, x - cx) for cy, cx in centres])
    near, next_to = np.partition(away, 1, 0)[:2]
    border = next_to - near < np.quantile(next_to - near, 0.1)
    return np.where(border, IGNORE, labels[away.argmin(0)]).astype(np.uint8)


def target_of(mask: UInt8[np.ndarray, "H W"]) -> Target:
    """The ground truth under a grid that covers exactly the whole image."""
    return Target.of(GridMap.squash(GRID, mask.shape), mask)


def features(case: Case, number: int) -> Float[Tensor, "t d"]:
    """What an encoder might say of the patches of a scene."""
    draw = torch.Generator().manual_seed(case.classes)
    means = torch.randn(case.classes, WIDTH, generator=draw)
    means = F.normalize(means + means[torch.arange(case.classes) // 10 * 10]) * WIDTH**0.5 * 0.3
    draw.manual_seed(number)
    mask = scene(case, number, shrink=4)
    areas = torch.from_numpy(geometry.area_fractions(mask, GridMap.squash(GRID, mask.shape), case.classes)).float()
    smooth = F.interpolate(torch.randn(1, WIDTH, 6, 6, generator=draw), GRID, mode="bicubic")[0].flatten(1).T
    return areas @ means + 0.7 * smooth + 0.9 * torch.randn(len(areas), WIDTH, generator=draw)


def train(case: Case) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """A probe before and after training on scenes of a quarter of the size."""
    torch.manual_seed(0)
    before, probe = (torch.nn.Linear(WIDTH, case.classes) for _ in range(2))
    probe.load_state_dict(before.state_dict())
    known = []
    for number in range(VAL, VAL + TRAIN):
        mask = scene(case, number, shrink=4)
        known.append((features(case, number), target_of(mask)))
    optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0)
    for _ in range(EPOCHS):
        for start in range(0, TRAIN, 8):
            batch = known[start : start + 8]
            loss = upsampled_cross_entropy(probe(torch.stack([x for x, _ in batch]))[None], [y for _, y in batch]).sum()
            optimiser.zero_grad()
            (loss / sum(target.pixels for _, target in batch)).backward()
            optimiser.step()
    return before, probe


def draw_logits(case: Case, folder: Path) -> str:
    """Write [image, t, k] for every kind, with float64's argmax; what the trained probe is worth."""
    before, probe = train(case)
    tokens = torch.stack([features(case, number) for number in range(VAL)])
    normal = torch.randn(VAL, GRID[0] * GRID[1], case.classes, generator=torch.Generator().manual_seed(0))
    made = (probe(tokens).detach(), before(tokens).detach(), normal)
    targets = [target_of(scene(case, number)) for number in range(VAL)]
    for kind, logits in zip(KINDS, made, strict=True):
        np.save(folder / f"{case.name} {kind}.npy", logits.numpy())
        right = torch.stack([exact(one, target) for one, target in zip(logits, targets, strict=True)])
        np.save(folder / f"{case.name} {kind} exact.npy", right.numpy().astype(np.uint8))
    total = kernels.upsampled_counts(made[0][None], targets).sum((0, 1))
    accuracy, miou = stats.pixel_accuracy(total.numpy()), stats.miou(total.numpy())
    classes = np.count_nonzero(stats.present(total.numpy()))
    return f"{accuracy:.1f} % of the pixels, mIoU {float(miou):.1f} % over {classes} classes"


def predict(variant: str, logits: Float[Tensor, "t k"], target: Target) -> Integer[Tensor, "H W"]:
    """Class of every pixel, as the variant finds it."""
    if variant == "segbench, compiled":
        return compiled_kernels().argmax(logits[None], target)[0]
    if variant == "segbench, plain":
        return plain.upsampled_argmax(logits[None], target)[0]
    grid = logits.unflatten(0, GRID)
    if variant.startswith("naive"):
        picture = grid.permute(2, 0, 1)[None]
        return F.interpolate(picture, target.grid_map.image, mode="bilinear", align_corners=False)[0].argmax(0)
    chunks = []
    for rows in target.rows.split(16):
        across = (rows @ grid.flatten(1)).unflatten(1, (GRID[1], -1))
        chunks.append((target.columns @ across).argmax(-1))
    return torch.cat(chunks)


def count(variant: str, logits: Float[Tensor, "t k"], target: Target) -> Int64[Tensor, "k k"]:
    """Pixels by [truth, prediction]."""
    classes = logits.shape[1]
    if variant.startswith("segbench"):
        pairs = torch.zeros(1, classes, classes, dtype=torch.int64)
        (plain.upsampled_counts if variant.endswith("plain") else compiled_kernels().counts)(
            logits[None, None], [target], pairs
        )
        return pairs[0]
    predicted = predict(variant, logits, target)
    pairs = target.labels[target.valid].long() * classes + predicted[target.valid]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def exact(logits: Float[Tensor, "t k"], target: Target) -> Int64[Tensor, "H W"]:
    """float64's argmax."""
    grid = logits.double().unflatten(0, GRID)
    rows, columns = (torch.from_numpy(geometry.upsampling(target.grid_map, axis)) for axis in (0, 1))
    return torch.cat([torch.einsum("yh,hwk,xw->yxk", some, grid, columns).argmax(-1) for some in rows.split(16)])


def work(variant: str, case: Case, kind: str, folder: Path) -> None:
    """One variant's process."""
    logits = torch.from_numpy(np.load(folder / f"{case.name} {kind}.npy"))
    right = torch.from_numpy(np.load(folder / f"{case.name} {kind} exact.npy"))
    masks = [scene(case, number) for number in range(VAL)]
    targets = [target_of(mask) for mask in masks]
    count(variant, logits[0], target_of(masks[0][:32, :32]))  # libraries wake up

    def call(number: int) -> None:
        count(variant, logits[number % VAL], targets[number % VAL])

    def note() -> str:
        other = torch.stack([predict(variant, x, y) for x, y in zip(logits, targets, strict=True)]) != right
        return f"{int(other.sum())} of {other.numel():,}"

    serve(call, note)


def main(rounds: int) -> None:
    print(f"# Evaluation of one probe on one image\n\n{machine()}; {kernels.making()}; {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            worth = draw_logits(case, Path(scratch))
            size = f"{GRID[0]} x {GRID[1]} to {case.image[0]} x {case.image[1]}"
            print(f"## {case.name}-shaped: {case.classes} classes, {size}\n\nThe trained probe hits {worth}.\n")
            print("| logits | variant | ms | x naive | x naive, tuned | peak MB | pixels unlike float64's |")
            print("|---|---|---|---|---|---|---|")
            for kind in KINDS:
                print_rows(kind, {name: (__file__, name, case.name, kind, scratch) for name in VARIANTS}, rounds)
            print()
    print(f"At the end: {machine().rpartition('; ')[2]}.")


def compiled_kernels() -> compiled.Kernels:
    """What this machine compiled; the script ends, saying why, where it did not."""
    made = compiled.making()
    if made.kernels is None:
        raise SystemExit(f"nothing to compare: {made.says}")
    return made.kernels


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        chosen = {case.name: case for case in CASES}[sys.argv[2]]
        work(sys.argv[1], chosen, sys.argv[3], Path(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)

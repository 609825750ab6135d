"""How long do one probe's loss on one image at full resolution, and its gradient, take?

    python benchmarks/loss.py [ROUNDS]

Linux. Prints Markdown: every variant runs in a process of its own on one thread, one call at a time in turn; times are
medians, ratios are medians over the rounds. The naive way is torch's `interpolate` and `cross_entropy`, also with an
allocator that keeps its memory (so that its peak means little), and in chunks of 16 rows.

Loss: from the logits of the patches to their gradient. Step: from 4096-wide features of one image over the logits to
the gradient of the probe's weights; no gradient reaches the features. What the kernels make once for an image (`plan`)
is made before and timed apart. Errors are distances from float64's gradient, relative to its length.

Peak: by how much the process's resident memory grows in the first call on the image (VmHWM after, less VmRSS before),
in MB, after free memory went back to the kernel: working space and the gradient, not the logits, the ground truth or
its plan. Segbench's loss is to stay below 4 MB.

Scenes as in evaluation.py. The logits know a part of the truth: 6 times the share of every class in the patch, under
normal noise of 1.6; "far apart" has 40 and 12.
"""

import ctypes
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from _timing import machine, print_rows, serve
from evaluation import CASES, GRID, Case, compiled_kernels, scene, target_of
from jaxtyping import Float
from torch import Tensor

from segbench import geometry, kernels
from segbench.kernels import Target, progression
from segbench.kernels.linear import linear
from segbench.types import IGNORE, GridMap

WIDTH = 4096  # channels of the features in a step
VARIANTS = ("naive", "naive, tuned allocator", "in chunks of 16 rows, tuned", "segbench, plain", "segbench, compiled")
KINDS = ("loss", "loss, far apart", "step")


def logits_of(case: Case, far: bool) -> Float[Tensor, "t k"]:
    """What a partly right probe might say of the first scene."""
    mask = scene(case, 0, shrink=4)
    areas = torch.from_numpy(geometry.area_fractions(mask, GridMap.squash(GRID, mask.shape), case.classes)).float()
    noise = torch.randn(areas.shape, generator=torch.Generator().manual_seed(0))
    return areas * 40 + noise * 12 if far else areas * 6 + noise * 1.6


def features_of(case: Case) -> tuple[Float[Tensor, "t d"], Float[Tensor, "k d"]]:
    """Features, and the weights of a probe whose logits are those of `logits_of` for them."""
    tokens = torch.randn(GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(1))
    return tokens, torch.linalg.lstsq(tokens, logits_of(case, False)).solution.T.contiguous()


def full(logits: Float[Tensor, "t k"], target: Target, rows: int) -> Float[Tensor, "t k"]:
    """Gradient of the summed loss through full-resolution logits, `rows` of the image at a time."""
    leaf = logits.detach().requires_grad_()
    truth = torch.where(target.valid, target.labels, IGNORE).long()
    if rows >= len(truth):
        picture = leaf.unflatten(0, GRID).permute(2, 0, 1)[None]
        pixels = F.interpolate(picture, target.grid_map.image, mode="bilinear", align_corners=False)
        F.cross_entropy(pixels, truth[None], ignore_index=IGNORE, reduction="sum").backward()
    else:
        grid = leaf.unflatten(0, GRID).flatten(1)
        weights = (target.rows.to(leaf.dtype).split(rows), truth.split(rows))
        for down, some in zip(*weights, strict=True):
            across = (down @ grid).unflatten(1, (GRID[1], -1))  # r w k
            pixels = target.columns.to(leaf.dtype) @ across
            F.cross_entropy(pixels.flatten(0, 1), some.flatten(), ignore_index=IGNORE, reduction="sum").backward()
    if leaf.grad is None:
        raise SystemExit("no gradient")
    return leaf.grad


def gradient(variant: str, logits: Float[Tensor, "t k"], target: Target) -> Float[Tensor, "t k"]:
    """Gradient of the summed loss with respect to the logits, as the variant finds it."""
    if variant == "segbench, compiled":
        return compiled_kernels().losses_and_gradients(logits[None, None], [target])[1][0, 0]
    if variant == "segbench, plain":
        return progression.loss_and_gradient(logits[None], target)[1][0]
    return full(logits, target, 16 if "chunks" in variant else len(target.valid))


def step(
    variant: str, tokens: Float[Tensor, "t d"], weights: Float[Tensor, "k d"], target: Target
) -> Float[Tensor, "k d"]:
    """Gradient of the summed loss with respect to the weights; both products are torch's, or those of the trainer."""
    if not variant.startswith("segbench"):
        return gradient(variant, tokens @ weights.T, target).T @ tokens
    logits = linear(tokens, weights.requires_grad_(), torch.zeros(len(weights)))
    return torch.autograd.grad(logits, weights, gradient(variant, logits.detach(), target))[0]


def exact(case: Case, target: Target, kind: str) -> Float[Tensor, "..."]:
    """float64's gradient, of the logits or of the weights."""
    if kind != "step":
        return full(logits_of(case, kind != "loss").double(), target, 16)
    tokens, weights = (part.double() for part in features_of(case))
    return full(tokens @ weights.T, target, 16).T @ tokens


def work(variant: str, case: Case, kind: str, folder: Path) -> None:
    """One variant's process."""
    target, right = target_of(scene(case, 0)), torch.from_numpy(np.load(folder / f"{case.name} {kind}.npy"))
    logits = logits_of(case, kind == "loss, far apart")
    tokens, weights = features_of(case) if kind == "step" else (logits[:, :1], logits[:1, :1])
    small = target_of(np.zeros((32, 32), np.uint8))
    gradient(variant, logits, small)  # libraries wake up and take their own memory
    if kind == "step":
        step(variant, tokens, weights, small)
    if variant == "segbench, compiled":
        target.kept["plan"] = compiled_kernels().plan(target)
    if variant == "segbench, plain":
        target.kept["mass"] = progression.mass(target)

    def found() -> Tensor:
        if kind != "step":
            return gradient(variant, logits, target)
        return step(variant, tokens, weights, target)

    def note() -> str:
        return f"{((found().double() - right).norm() / right.norm()).item():.1e}"

    def call(number: int) -> None:
        found()

    ctypes.CDLL(None).malloc_trim(0)  # or the peak would fill what making the scene left behind
    serve(call, note)


def plan_times(case: Case) -> str:
    """What is made once for an image, in ms, by either making; and its size."""
    target = target_of(scene(case, 0))
    plan = compiled_kernels().plan(target)
    found = []
    for make in (compiled_kernels().plan, progression.mass):
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            make(target)
            seconds.append(time.perf_counter() - start)
        found.append(f"{statistics.median(seconds) * 1e3:.2f} ms")
    size = sum(part.nbytes for part in plan) / 1e3
    ours = sum(part.nbytes for part in (target.labels, target.valid)) / 1e3
    return (
        f"Once per image: {found[0]} compiled ({size:.0f} kB beside the {ours:.0f} kB of the labels), {found[1]} plain."
    )


def main(rounds: int) -> None:
    print(f"# Loss and gradient of one probe on one image\n\n{machine()}; {kernels.making()}; {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            size = f"{GRID[0]} x {GRID[1]} to {case.image[0]} x {case.image[1]}"
            print(f"## {case.name}-shaped: {case.classes} classes, {size}\n\n{plan_times(case)}\n")
            print("| what | variant | ms | x naive | x naive, tuned | peak MB (limit 4) | gradient's error |")
            print("|---|---|---|---|---|---|---|")
            for kind in KINDS:
                np.save(Path(scratch) / f"{case.name} {kind}.npy", exact(case, target_of(scene(case, 0)), kind).numpy())
                print_rows(kind, {name: (__file__, name, case.name, kind, scratch) for name in VARIANTS}, rounds)
            print()
    print(f"At the end: {machine().rpartition('; ')[2]}.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        chosen = {case.name: case for case in CASES}[sys.argv[2]]
        work(sys.argv[1], chosen, sys.argv[3], Path(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)

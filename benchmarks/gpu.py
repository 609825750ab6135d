"""How near to what a GPU can do do the fused loss and the argmax come?

    python benchmarks/gpu.py [ROUNDS]      on a machine with a GPU
    python benchmarks/gpu.py --offline     compile for sm_90, anywhere that triton is installed, and read the code

Prints Markdown. With a GPU: microseconds per image and probe of torch's `interpolate` + `cross_entropy` with backward
(`interpolate` + `argmax` + `bincount`) and of the kernels, in turn, medians over the rounds, beside limits that follow
from the device's own figures: FP32 at four instructions per pixel and class, one exponential per pixel and class, and
for the naive way the memory traffic of eight passes over full-resolution logits. Errors are against float64 on the same
device. Offline: registers, stack, and instructions in each innermost loop, disassembled with triton's own tools, and
how long issuing the loops over rows takes at least. No time is measured offline.
"""

import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segbench.geometry import upsampling
from segbench.kernels import Target, cuda
from segbench.kernels.tiles import COLUMNS, ROWS, Tiles
from segbench.types import IGNORE, GridMap

GRID = (24, 24)
LANES, EXPONENTIALS, SCHEDULERS = 128, 16, 4  # per multiprocessor and clock, compute capability 9.0
H100 = (132, 1.98e9)  # multiprocessors, clocks a second at most: of the limits offline
KINDS = {"START": "*fp32", "STEP": "*fp32", "ROWS": "*i32", "COLUMNS": "*i32", "SHARES": "*fp32", "IMAGES": "*i64"}
KINDS |= {"VALID": "*u8", "LSE": "*fp32", "FAR": "*i8", "SUMS": "*fp32", "PARTS": "*fp32", "FIRST": "*i32"}
KINDS |= {"WINNERS": "*i16", "LABELS": "*i16", "BLOCKS": "*i64"}
OUT = {"collect": "*fp32", "winners": "*i16", "tally": "*i32"}
TALLY = {"BINS": 256, "BLOCK": cuda.TALLIED}


@dataclass(frozen=True)
class Case:
    """The shape of a data set."""

    name: str
    classes: int
    image: tuple[int, int]

    def limits(self, processors: int, clock: float) -> tuple[float, float]:
        """Seconds per image and probe: FP32 at four instructions per pixel and class; one exponential for each."""
        work = self.image[0] * self.image[1] * self.classes / (processors * clock)
        return 4 * work / LANES, work / EXPONENTIALS

    def traffic(self) -> int:
        """Bytes of eight passes over full-resolution logits."""
        return 8 * 4 * self.image[0] * self.image[1] * self.classes


CASES = (Case("ADE20K", 150, (512, 683)), Case("Cityscapes", 19, (1024, 2048)))


class Loop(NamedTuple):
    """A loop of a compiled kernel."""

    at: int
    instructions: Counter[str]
    inner: bool  # holds no other loop


def main(rounds: int) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here; --offline compiles the kernels and counts their instructions")
    if not cuda.available():
        raise SystemExit("triton is not installed; it comes with torch's builds for CUDA")
    device = torch.cuda.get_device_properties(0)
    clock, copied = _clock(), _copy_rate()
    print(f"# Fused loss and argmax on a GPU\n\n{device.name}, {device.multi_processor_count} multiprocessors, at most")
    print(f"{clock / 1e9:.2f} GHz, {copied / 1e12:.2f} TB/s copied; torch {torch.__version__}; {rounds} rounds\n")
    for case in CASES:
        limits = (*case.limits(device.multi_processor_count, clock), case.traffic() / copied)
        says = ", ".join(f"{limit * 1e6:.1f}" for limit in limits)
        print(f"- {case.name}: limits {says} us per image and probe (FP32, exponentials, the naive way's memory)")
    print()
    print("| case | images x probes | what | us per image and probe | FP32 limit / time | exponentials' limit / time |")
    print("|---|---|---|---|---|---|")
    for case in CASES:
        limits = case.limits(device.multi_processor_count, clock)
        for images, probes in ((1, 1), (16, 1), (1, 34), (8, 34)):
            targets, logits = _scenes(case, images, probes)
            calls: dict[str, Callable[[], Any]] = {}
            calls["fused loss and gradient"] = lambda t=targets, x=logits: cuda.losses_and_gradients(x, t)
            calls["fused counts"] = lambda t=targets, x=logits: cuda.upsampled_counts(x, t)
            if images * probes == 1:
                calls["naive loss and gradient"] = lambda t=targets, x=logits: _naive(t[0], x[0, 0])
                calls["naive counts"] = lambda t=targets, x=logits: _naive_counts(t[0], x[0, 0])
            for name, seconds in _race(calls, rounds).items():
                each = seconds / images / probes
                shares = " | ".join(f"{limit / each:.1%}" for limit in limits)
                print(f"| {case.name} | {images} x {probes} | {name} | {each * 1e6:.1f} | {shares} |", flush=True)
    print()
    for case in CASES:
        (target,), logits = _scenes(case, 1, 1)
        right, slope = _exact(target, logits[0, 0])
        made = {"fused": cuda.losses_and_gradients(logits, [target]), "naive": _naive(target, logits[0, 0])}
        for name, (loss, gradient) in made.items():
            off = abs(loss.double().sum() / right - 1), (gradient.reshape_as(slope) - slope).norm() / slope.norm()
            print(f"{case.name}, {name}: loss off by {off[0]:.1e}, gradient by {off[1]:.1e} of float64's", flush=True)
        bits = {tuple(x.double().sum().item() for x in cuda.losses_and_gradients(logits, [target])) for _ in range(5)}
        print(f"{case.name}: five calls gave {len(bits)} result{'s' * (len(bits) > 1)}")


def offline() -> None:
    if not cuda.available():
        raise SystemExit("triton is not installed; it comes with torch's builds for CUDA")
    import triton  # pyright: ignore[reportMissingImports]

    from segbench.kernels import cuda_kernels as all_kernels

    print(f"# The kernels for sm_90, compiled and not run\n\ntriton {triton.__version__}\n")
    print("| kernel | registers | bytes of stack | instructions | innermost loops: instructions (the commonest) |")
    print("|---|---|---|---|---|")
    inner = {}
    tiled = [{"BK": block, "BX": COLUMNS, "BY": ROWS} for block in (16, 32)]
    work: list[tuple[Any, dict[str, int]]] = [
        (kernel, sizes) for sizes in tiled for kernel in (all_kernels.log_sums, all_kernels.gradients)
    ]
    work += [(all_kernels.collect, tiled[1]), (all_kernels.winners, tiled[1]), (all_kernels.tally, TALLY)]
    for kernel, all_sizes in work:
        sizes = {name: size for name, size in all_sizes.items() if name in kernel.arg_names}
        usage, code = _disassembled(kernel, sizes)
        loops = inner[kernel.__name__] = [one for one in _loops(code) if one.inner]
        text = "; ".join(
            f"{one.instructions.total()} ({', '.join(f'{n} {op}' for op, n in one.instructions.most_common(3))})"
            for one in loops
        )
        registers, stack = (usage.partition(f"{word}:")[2].partition(" ")[0] for word in ("REG", "STACK"))
        name = ", ".join([kernel.__name__, *(f"{name} {size}" for name, size in sizes.items())])
        print(f"| {name} | {registers} | {stack} | {len(code)} | {text} |", flush=True)
    # the loops that multiply by the ratio, and those of Horner's rule
    forward = [one for one in inner["log_sums"] if one.instructions["FMUL"] >= 32]
    backward = [
        one for one in inner["gradients"] if one.instructions["MUFU"] < 32 <= one.instructions["FFMA"]
    ]  # Horner
    total = sum(min(one.instructions.total() for one in some) for some in (forward, backward))
    print(
        f"\nLoops over rows: {total} instructions per pixel row and 32 classes, {total / 32:.1f} per pixel and class."
    )
    print("what comes before and after them, memory and launches take their time, too. Times: not run.\n")
    for case in CASES:
        tiles = Tiles.of([GridMap.squash(GRID, case.image)], False, "cpu")
        warps = tiles.rows[0, :, 1].sum().item() * tiles.shape[1] * -(-case.classes // 32)
        least = warps * total / (H100[0] * SCHEDULERS * H100[1])
        count = tiles.shape[0] * tiles.shape[1]
        print(f"- {case.name}: {count} tiles, {least * 1e6:.1f} us per image and probe to issue these loops alone on")
        print(
            f"  {H100[0]} multiprocessors at {H100[1] / 1e9:.2f} GHz: {least / case.limits(*H100)[0]:.2f} FP32 limits"
        )


def _scenes(case: Case, images: int, probes: int) -> tuple[list[Target], Float[Tensor, "l b t k"]]:
    targets = [_target(case, number, "cuda") for number in range(images)]
    draw = torch.Generator("cuda").manual_seed(0)
    shape = (probes, images, GRID[0] * GRID[1], case.classes)
    return targets, torch.randn(shape, generator=draw, device="cuda") * 3


def _target(case: Case, number: int, device: str) -> Target:
    """Random blocks of 16 x 16 pixels, a tenth of them unlabelled."""
    random, (height, width) = np.random.default_rng(number), case.image
    blocks = random.integers(0, case.classes, (height // 16 + 1, width // 16 + 1)).astype(np.uint8)
    blocks[random.random(blocks.shape) < 0.1] = IGNORE
    mask = np.ascontiguousarray(blocks.repeat(16, 0).repeat(16, 1)[:height, :width])
    return Target.of(GridMap.squash(GRID, case.image), mask, device)


def _full(target: Target, logits: Float[Tensor, "t k"]) -> Float[Tensor, "k H W"]:
    picture = logits.unflatten(0, GRID).permute(2, 0, 1)[None]
    return F.interpolate(picture, target.grid_map.image, mode="bilinear", align_corners=False)[0]


def _naive(target: Target, logits: Float[Tensor, "t k"]) -> tuple[Tensor, Tensor]:
    leaf, truth = logits.detach().requires_grad_(), torch.where(target.valid, target.labels.long(), IGNORE)[None]
    loss = F.cross_entropy(_full(target, leaf)[None], truth, ignore_index=IGNORE, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def _naive_counts(target: Target, logits: Float[Tensor, "t k"]) -> Tensor:
    predicted, classes = _full(target, logits).argmax(0), logits.shape[1]
    return torch.bincount(target.labels[target.valid].long() * classes + predicted[target.valid], minlength=classes**2)


def _exact(target: Target, logits: Float[Tensor, "t k"]) -> tuple[Tensor, Tensor]:
    """float64, a few rows at a time."""
    leaf = logits.double().requires_grad_()
    total, gradient = leaf.new_zeros(()), torch.zeros_like(leaf)
    rows, columns = (torch.from_numpy(upsampling(target.grid_map, axis)).to(logits.device) for axis in (0, 1))
    truth = torch.where(target.valid, target.labels.long(), IGNORE)
    for some, labels in zip(rows.split(32), truth.split(32), strict=True):
        strip = torch.einsum("yh,hwk,xw->yxk", some, leaf.unflatten(0, GRID), columns).flatten(0, 1)
        loss = F.cross_entropy(strip, labels.flatten(), ignore_index=IGNORE, reduction="sum")
        gradient += torch.autograd.grad(loss, leaf)[0]
        total += loss.detach()
    return total, gradient


def _race(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, one after the other in every round."""
    for call in calls.values():
        call()  # compiles
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(row) for name, row in times.items()}


def _clock() -> float:
    """Clocks a second at most."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", "--id=0"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * 1e6  # noqa: S603


def _copy_rate() -> float:
    """Bytes read and written in a second."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() / _race({"copy": lambda: b.copy_(a)}, 11)["copy"]


def _disassembled(kernel: Any, sizes: dict[str, int]) -> tuple[str, list[tuple[int, str, str]]]:
    """What the kernel uses, and its instructions: address, operation, operands."""
    import triton  # pyright: ignore[reportMissingImports]
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports]
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports]

    kinds = KINDS | {"OUT": OUT.get(kernel.__name__, "")}
    signature = {name: "constexpr" if name in sizes else kinds.get(name, "i32") for name in kernel.arg_names}
    multiples = [name for name in kernel.arg_names if name in kinds or (name == "classes" and "BK" in sizes)]
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source = ASTSource(fn=kernel, signature=signature, constexprs=sizes, attrs=aligned)
    options = {"num_warps": 1 if "BK" in sizes else 4, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = Path(str(triton.__file__)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.cubin"
        path.write_bytes(made.asm["cubin"])
        usage, code = (
            subprocess.run([tool, option, path], capture_output=True, text=True, check=True).stdout  # noqa: S603
            for option in ("-res-usage", "-sass")
        )
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)([^;]*);", code)
    return usage, [(int(at, 16), operation.partition(".")[0], rest) for at, operation, rest in lines]


def _loops(code: list[tuple[int, str, str]]) -> list[Loop]:
    """Backward branches, by where they begin; not the one on which a kernel's end rests, nor a collective's call."""
    spans = []
    for at, operation, rest in code:
        to = re.search(r"0x([0-9a-f]+)", rest)
        if operation == "BRA" and to and int(to[1], 16) < at:
            spans.append((int(to[1], 16), at))
    loops = []
    for begin, end in sorted(spans):
        body = Counter(operation for at, operation, _ in code if begin <= at <= end)
        inner = not any(a > begin and b < end for a, b in spans)
        if not body["WARPSYNC"]:
            loops.append(Loop(begin, body, inner))
    return loops


if __name__ == "__main__":
    if sys.argv[1:] == ["--offline"]:
        offline()
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 21)

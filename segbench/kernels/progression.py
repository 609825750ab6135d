"""Up-sampled cross-entropy in plain PyTorch, on any device, without full-resolution logits.

Along a row of pixels between two patch centres a class's logit is linear, so its exponential is a geometric
progression: two exponentials per row, cell and class, then one multiplication per pixel and class. The gradient's sums
over the pixels of a run, sum s(x) r^x and sum s(x) x r^x, are Horner's scheme. The ground truth enters linearly:
cross-entropy = sum over pixels of log sum exp - <mass, logits>, where mass is the transposed up-sampling of the one-hot
mask. Rows of the grid between whose patches logits move too far for that are walked pixel by pixel.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from segbench.errors import CellError
from segbench.geometry import upsampling
from segbench.kernels import tables
from segbench.kernels.plain import LIMIT
from segbench.kernels.target import Target

BAND = {"cpu": 1 << 16}  # terms of the progression at a time: in float32 four such fit in a core's cache
BAND_ELSEWHERE = 1 << 24
FAR = 20.0  # most that a logit may move from patch to patch: see `_far_rows`


def loss_and_gradient(
    logits: Float[Tensor, "l t k"], target: Target
) -> tuple[Float64[Tensor, " l"], Float32[Tensor, "l t k"]]:
    """Summed cross-entropy over the valid pixels of one image for each of l probes, and its gradient.

    NaN for a probe with a logit that is infinite, NaN or beyond 1e37. CellError for a ground truth beyond the classes.
    """
    fits(target, logits.shape[2])
    logits = logits.detach().float()
    sound = logits.abs().amax((1, 2)) <= LIMIT  # nor is NaN
    grids = torch.where(sound[:, None, None], logits, 0)
    grids = grids - grids.amax(2, keepdim=True)  # changes nothing, as every pixel's weights sum to 1, but the rounding
    if "mass" not in target.kept:
        target.kept["mass"] = mass(target)
    pull = torch.zeros_like(logits)
    token, label, pixels = target.kept["mass"]
    pull[:, token, label] = -pixels.float()
    losses = -(grids[:, token, label].double() * pixels).sum(1)
    walk = _Walk.over(target)
    if walk is not None:
        for probe, grid in enumerate(grids):
            total, gradient = walk.log_sum_exp(grid.unflatten(0, target.grid_map.grid))
            losses[probe] += total
            pull[probe] += gradient
    bad = torch.where(sound, 0.0, torch.nan)
    return losses + bad, pull + bad[:, None, None]


def fits(target: Target, classes: int) -> None:
    """CellError unless the probe knows all classes of the ground truth."""
    if target.classes > classes:
        raise CellError(f"the ground truth holds class {target.classes - 1}, beyond the probe's {classes}")


def mass(target: Target) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Patch, class and the class's number of pixels, weighted by the up-sampling from the patch, where there are any.

    One class at a time: two matrix products are deterministic on every device.
    """
    rows, columns = (torch.from_numpy(upsampling(target.grid_map, axis)).to(target.rows.device) for axis in (0, 1))
    found = []
    for label in target.labels[target.valid].unique().tolist():
        pixels = ((target.labels == label) & target.valid).to(rows.dtype)
        around = (rows.T @ pixels @ columns).flatten()
        token = around.nonzero()[:, 0]
        found.append((token, torch.full_like(token, label), around[token]))
    nothing = torch.zeros(0, dtype=torch.int64, device=target.rows.device)
    parts = zip(*found, strict=True) if found else ((nothing,), (nothing,), (nothing.double(),))
    token, label, pixels = (torch.cat(part) for part in parts)
    return token, label, pixels


class _Pull(NamedTuple):
    """What a band of rows adds: to the loss, and at every run the weights of its pixels, plainly and by position."""

    loss: Float64[Tensor, ""]
    weight: Float[Tensor, "k c r"]
    moment: Float[Tensor, "k c r"]  # weight times the number of the pixel in its run


@dataclass(frozen=True)
class _Walk:
    """log sum exp over the valid pixels of one image; c runs of up to n pixel columns each (`tables.Runs`)."""

    target: Target
    left: Float[Tensor, "w c"]  # 1 where the grid column is left, or right, of the run
    right: Float[Tensor, "w c"]
    start: Float[Tensor, " c"]  # where its first pixel lies between them, and the step per pixel
    step: Float[Tensor, " c"]
    down: Float[Tensor, "H h 2"]  # a pixel row is the grid row before it plus a share of the difference to the next
    valid: Float[Tensor, "n c H"]  # 1 or 0; 0 behind the end of a run

    @classmethod
    def over(cls, target: Target) -> "_Walk | None":
        """None where no pixel was seen."""
        runs, rows, device = tables.runs(target.grid_map), tables.axis(target.grid_map, 0), target.rows.device
        (h, w), (height, width) = target.grid_map.grid, target.grid_map.image
        if not len(runs.cell) or not target.pixels:
            return None
        cell, first, low = (torch.from_numpy(part).to(device).long() for part in (runs.cell, runs.start, rows.low))
        start, step = torch.from_numpy(runs.way).to(device).unbind(1)
        left, right = (F.one_hot(column, w).T.float() for column in (cell, (cell + 1).clamp(max=w - 1)))
        lengths = first.diff()
        pixel = torch.arange(int(lengths.max()), device=device)[:, None]
        at = (first[:-1] + pixel).clamp(max=width - 1).flatten()
        valid = target.valid.T[at].unflatten(0, (-1, len(cell))) & (pixel < lengths)[..., None]
        way = torch.from_numpy(rows.way32[:height]).to(device)
        down = F.one_hot(low, h)[..., None] * torch.stack([torch.ones_like(way), way], 1)[:, None]
        return cls(target, left, right, start, step, down, valid.float())

    def log_sum_exp(self, grid: Float[Tensor, "h w k"]) -> tuple[Float64[Tensor, ""], Float[Tensor, "t k"]]:
        """The sum, and its gradient."""
        (h, _, classes), runs = grid.shape, len(self.start)
        columns = grid.permute(2, 0, 1)
        left, right = columns @ self.left, columns @ self.right  # k h c
        logarithms = left + self.start * (right - left), self.step * (right - left)
        lines = [_down(line).transpose(1, 2).flatten(2).flatten(0, 1) for line in logarithms]  # (k c) (h 2)
        near = torch.zeros(2, classes * runs, h, device=grid.device)
        total = torch.zeros((), dtype=torch.float64, device=grid.device)
        far = _far_rows(grid)
        rows_at_once = max(1, BAND.get(grid.device.type, BAND_ELSEWHERE) // (classes * runs))
        low = tables.axis(self.target.grid_map, 0).low
        top, _, bottom, _ = self.target.grid_map.seen
        for begin in range(top, bottom, rows_at_once):
            rows = slice(begin, min(begin + rows_at_once, bottom))
            cells = slice(int(low[rows][0]), min(int(low[rows][-1]) + 2, h))
            down = self.down[rows, cells].flatten(1).T
            first, ratio = (line[:, 2 * cells.start : 2 * cells.stop] @ down for line in lines)
            walk = _pixel_by_pixel if any(far[cells]) else _progression
            shape = (classes, runs, -1)
            pull = walk(first.view(shape), ratio.view(shape), self.valid[..., rows])
            total += pull.loss
            for side, part in zip(near, (pull.weight, pull.moment), strict=True):
                side[:, cells].addmm_(part.flatten(0, 1), self.target.rows[rows, cells])
        weight, moment = near.view(2, classes, runs, h).transpose(2, 3)
        share = self.start * weight + self.step * moment
        gradient = (weight - share) @ self.left.T + share @ self.right.T  # k h w
        return total, gradient.flatten(1).T


def _down(line: Float[Tensor, "k h c"]) -> Float[Tensor, "k h c 2"]:
    """Every grid row, and its difference to the next; the last has none."""
    return torch.stack([line, F.pad(line.diff(dim=1), (0, 0, 0, 1))], 3)


def _far_rows(grid: Float[Tensor, "h w k"]) -> list[bool]:
    """Whether a logit below its patch's largest moves by more than FAR to the next patch of the row or the next row.

    Otherwise the sum over the classes stays above exp(-FAR) between the patches, and a term that float32 holds as 0,
    below exp(-87), rises to no more than exp(-87 + FAR) on its way along a run.
    """
    move = torch.zeros(len(grid), device=grid.device)
    if grid.shape[1] > 1:
        move = torch.maximum(move, grid.diff(dim=1).abs().amax((1, 2)))
    if len(grid) > 1:
        move[:-1] = torch.maximum(move[:-1], grid.diff(dim=0).abs().amax((1, 2)))
    return (move > FAR).tolist()


def _progression(first: Float[Tensor, "k c r"], ratio: Float[Tensor, "k c r"], valid: Float[Tensor, "n c r"]) -> _Pull:
    first, ratio = first.exp_(), ratio.exp_()
    term, totals = first.clone(), torch.empty_like(valid)
    torch.sum(term, 0, out=totals[0])
    for total in totals[1:]:
        torch.sum(term.mul_(ratio), 0, out=total)
    weights = valid / totals
    loss = totals.log_().mul_(valid).sum(dtype=torch.float64)
    weight = term.copy_(weights[-1].expand_as(term))
    moment = weight.clone()
    for pixels in weights[:-1].flip(0):  # sum s r^x and, up to the end, sum s (x + 1) r^x
        torch.addcmul(pixels, weight, ratio, out=weight)
        torch.addcmul(weight, moment, ratio, out=moment)
    return _Pull(loss, weight.mul_(first), moment.mul_(first).sub_(weight))


def _pixel_by_pixel(
    first: Float[Tensor, "k c r"], ratio: Float[Tensor, "k c r"], valid: Float[Tensor, "n c r"]
) -> _Pull:
    loss = torch.zeros((), dtype=torch.float64, device=first.device)
    weight, moment = torch.zeros_like(first), torch.zeros_like(first)
    for pixel, counts in enumerate(valid):
        logits = torch.add(first, ratio, alpha=pixel)
        top = logits.amax(0)
        terms = logits.sub_(top).exp_()
        total = terms.sum(0)
        loss += ((total.log() + top) * counts).sum(dtype=torch.float64)
        weight.add_(terms.mul_(counts / total))
        moment.add_(terms, alpha=pixel)
    return _Pull(loss, weight, moment)

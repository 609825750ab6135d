"""Up-sampled cross-entropy in plain PyTorch, on any device, without full-resolution logits.

Along a run of pixels of a row between two patch centres a class's logit is linear, its exponential a sum of a few
powers (powers.py): one exponential per row, cell and class, the powers' sums over the classes, and from those the sums
at the pixels; the gradient's sums over the pixels are Horner's scheme. The ground truth enters linearly: cross-entropy
= sum over pixels of log sum exp - <mass, logits>, where mass is the transposed up-sampling of the one-hot mask. Bands
of rows between whose patches logits move too far for that are walked pixel by pixel.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from segbench.errors import CellError
from segbench.geometry import upsampling
from segbench.kernels import powers, tables
from segbench.kernels.plain import LIMIT
from segbench.kernels.target import Target
from segbench.types import GridMap

BAND = {"cpu": 3 << 15}  # logits of runs at a time: with fewer torch's calls cost more than their work
BAND_ELSEWHERE = 1 << 24


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
    moment: Float[Tensor, "k c r"]  # weight times z, where the pixel lies from -1 to 1 in its run


@dataclass(frozen=True)
class _Walk:
    """log sum exp over the valid pixels of one image; c runs of up to n pixel columns each (`tables.Runs`)."""

    target: Target
    left: Float[Tensor, "w c"]  # 1 where the grid column is left, or right, of the run
    right: Float[Tensor, "w c"]
    middle: Float[Tensor, " c"]  # where the run's middle lies between them, and how far its ends are from it
    half: Float[Tensor, " c"]
    down: Float[Tensor, "H h 2"]  # a pixel row is the grid row before it plus a share of the difference to the next
    z: Float[Tensor, "c n 1"]  # where a pixel lies from -1 to 1 in its run; 0 behind its end
    valid: Bool[Tensor, "c n H"]  # False behind the end of a run

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
        half = step * (lengths - 1) / 2
        z = torch.from_numpy(_places(target.grid_map)).float().to(device)
        pixel = torch.arange(z.shape[1], device=device)
        at = (first[:-1, None] + pixel).clamp(max=width - 1)
        valid = target.valid.T[at].logical_and_((pixel < lengths[:, None])[..., None])
        way = torch.from_numpy(rows.way32[:height]).to(device)
        down = F.one_hot(low, h)[..., None] * torch.stack([torch.ones_like(way), way], 1)[:, None]
        return cls(target, left, right, start + half, half, down, z[..., None], valid)

    def log_sum_exp(self, grid: Float[Tensor, "h w k"]) -> tuple[Float64[Tensor, ""], Float[Tensor, "t k"]]:
        """The sum, and its gradient."""
        (h, _, classes), runs = grid.shape, len(self.half)
        columns = grid.permute(2, 0, 1)
        across = self.left + self.middle * (self.right - self.left), self.half * (self.right - self.left)
        lines = [_down(columns @ weights).permute(1, 3, 0, 2).flatten(2) for weights in across]  # h 2 (k c)
        near = torch.zeros(2, h, classes * runs, device=grid.device)
        total = torch.zeros((), dtype=torch.float64, device=grid.device)
        rows_at_once = max(1, BAND.get(grid.device.type, BAND_ELSEWHERE) // (classes * runs))
        low = tables.axis(self.target.grid_map, 0).low
        top, _, bottom, _ = self.target.grid_map.seen
        for begin in range(top, bottom, rows_at_once):
            rows = slice(begin, min(begin + rows_at_once, bottom))
            cells = slice(int(low[rows][0]), min(int(low[rows][-1]) + 2, h))
            down = self.down[rows, cells].flatten(1).T
            middle, rise = ((line[cells].flatten(0, 1).T @ down).view(classes, runs, -1) for line in lines)
            pull = self.band(middle, rise, self.valid[..., rows].float())
            total += pull.loss
            for side, part in zip(near, (pull.weight, pull.moment), strict=True):
                side[cells].addmm_(self.target.rows[rows, cells].T, part.flatten(0, 1).T)
        weight, moment = near.view(2, h, classes, runs).transpose(1, 2)  # k h c
        share = self.middle * weight + self.half * moment
        gradient = (weight - share) @ self.left.T + share @ self.right.T  # k h w
        return total, gradient.flatten(1).T

    def band(
        self, middle: Float[Tensor, "k c r"], rise: Float[Tensor, "k c r"], valid: Float[Tensor, "c n r"]
    ) -> _Pull:
        """Some rows' runs, by every class's logit in their middle and its rise from there to the end; both are used up.

        Logits are taken relative to the chord between the largest at a run's two ends: none is above it.
        """
        spare = torch.sub(middle, rise)
        start = spare.amax(0)
        end = torch.add(middle, rise, out=spare).amax(0)
        height, tilt = (start + end) / 2, (end - start) / 2
        middle.sub_(height)
        rise.sub_(tilt)
        low, high = (part.item() for part in rise.aminmax())
        count = powers.terms(max(-low, high))
        pixels, along = valid.sum(1), (valid * self.z).sum(1)
        under = (height.double() * pixels).sum() + (tilt.double() * along).sum()
        if count is None or count > 4 * self.z.shape[1]:
            pull = _pixel_by_pixel(middle, rise, valid, self.z, spare)
        else:
            q = torch.from_numpy(_coefficients(self.target.grid_map, count)).to(rise.device)
            pull = _by_powers(middle, rise, valid, self.z, q, spare)
        return pull._replace(loss=pull.loss + under)


@lru_cache(maxsize=1024)
def _places(grid_map: GridMap) -> Float64[np.ndarray, "c n"]:
    lengths = np.diff(tables.runs(grid_map).start)[:, None]
    pixel = np.arange(lengths.max())
    return np.where(pixel < lengths, 2 * pixel - (lengths - 1.0), 0) / np.maximum(lengths - 1, 1)


@lru_cache(maxsize=64)
def _coefficients(grid_map: GridMap, count: int) -> Float32[np.ndarray, "c m n"]:
    return np.ascontiguousarray(powers.coefficients(count, _places(grid_map)).transpose(1, 0, 2))


def _down(line: Float[Tensor, "k h c"]) -> Float[Tensor, "k h c 2"]:
    """Every grid row, and its difference to the next; the last has none."""
    return torch.stack([line, F.pad(line.diff(dim=1), (0, 0, 0, 1))], 3)


def _by_powers(
    middle: Float[Tensor, "k c r"],
    rise: Float[Tensor, "k c r"],
    valid: Float[Tensor, "c n r"],
    z: Float[Tensor, "c n 1"],
    q: Float[Tensor, "c m n"],
    spare: Float[Tensor, "k c r"],
) -> _Pull:
    first = middle.exp_()
    sums = first.new_empty(q.shape[1], *first.shape[1:])
    torch.sum(first, 0, out=sums[0])
    term = torch.mul(first, rise, out=spare)
    torch.sum(term, 0, out=sums[1])
    for total in sums[2:]:
        torch.sum(term.mul_(rise), 0, out=total)
    totals = q.mT @ sums.transpose(0, 1)  # c n r
    weights = valid / totals
    loss = totals.log_().mul_(valid).sum(dtype=torch.float64)
    pulls = [(q @ part).transpose(0, 1).contiguous() for part in (weights, weights * z)]  # m c r
    pull = []
    for (*rest, last), out in zip(pulls, (spare, torch.empty_like(spare)), strict=True):
        torch.addcmul(rest.pop(), last, rise, out=out)
        for part in reversed(rest):
            torch.addcmul(part, out, rise, out=out)
        pull.append(out.mul_(first))
    return _Pull(loss, *pull)


def _pixel_by_pixel(
    middle: Float[Tensor, "k c r"],
    rise: Float[Tensor, "k c r"],
    valid: Float[Tensor, "c n r"],
    z: Float[Tensor, "c n 1"],
    spare: Float[Tensor, "k c r"],
) -> _Pull:
    loss = torch.zeros((), dtype=torch.float64, device=middle.device)
    weight, moment = torch.zeros_like(middle), torch.zeros_like(middle)
    for place, counts in zip(z.unbind(1), valid.unbind(1), strict=True):
        logits = torch.addcmul(middle, rise, place, out=spare)
        top = logits.amax(0)
        terms = logits.sub_(top).exp_()
        total = terms.sum(0)
        loss += ((total.log() + top) * counts).sum(dtype=torch.float64)
        weight.add_(terms.mul_(counts / total))
        moment.addcmul_(terms, place)
    return _Pull(loss, weight, moment)

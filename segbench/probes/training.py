"""The training of a bank: every probe takes the same steps on the same images in the same order (paper A.2)."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from segbench.features import FeatureSource, Indices
from segbench.kernels import upsampled_cross_entropy
from segbench.probes.bank import Arrays, Diverged, ProbeBank, refuse_divergence

EXACT = 1 << 12  # numbers of pixels are summed as two float32, each exact up to 2^24


@dataclass(frozen=True)
class Schedule:
    """How a bank is trained; the fields of the probe task's `protocol` that the optimiser needs."""

    epochs: int
    batch: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    power: float  # polynomial decay of the learning rate, per step
    seed: int


class Trainer:
    """Trains a bank epoch by epoch; its state goes to a checkpoint and back without a trace in the result."""

    def __init__(self, bank: ProbeBank, source: FeatureSource, indices: Indices, schedule: Schedule) -> None:
        self.bank, self.source, self.schedule = bank, source, schedule
        self.indices = np.asarray(indices)
        self.steps = schedule.epochs * -(-len(self.indices) // schedule.batch)
        self.step = 0
        self.optimiser = torch.optim.AdamW(
            list(bank.linears.parameters()),
            lr=schedule.lr,
            betas=schedule.betas,
            weight_decay=schedule.weight_decay,
            fused=True,
        )

    def epoch(self, number: int, progress: Callable[[int], None]) -> None:
        """One pass over the images, in an order decided by (seed, epoch) alone."""
        order = np.random.default_rng([self.schedule.seed, number]).permutation(self.indices)
        for start in range(0, len(order), self.schedule.batch):
            chosen = order[start : start + self.schedule.batch]
            self._update(chosen)
            progress(len(chosen))

    def state(self) -> Arrays:
        """By site: weights, standardisation and optimiser moments; a bank of fewer sites can go on with them."""
        arrays = {"step": np.asarray(self.step)}
        for name, tensor in self._tensors():
            arrays[name] = tensor.detach().cpu().numpy()
        for name, parameter in self._trained():
            for moment, value in self.optimiser.state.get(parameter, {}).items():
                arrays[f"{name}/{moment}"] = value.cpu().numpy()
        return arrays

    @torch.no_grad()
    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on where `state` was taken, of this bank or of one with more sites."""
        for name, tensor in self._tensors():
            tensor.copy_(torch.from_numpy(np.array(arrays[name])))
        moments: dict[int, dict[str, Tensor]] = {}
        for index, (name, _) in enumerate(self._trained()):
            found = [key for key in arrays if key.rpartition("/")[0] == name]
            if found:
                moments[index] = {key.rpartition("/")[2]: torch.from_numpy(np.array(arrays[key])) for key in found}
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
        self.step = int(arrays["step"])

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimiser moves, in its order."""
        for site, linear in zip(self.bank.sites, self.bank.linears, strict=True):
            yield from ((f"{site}/{name}", parameter) for name, parameter in linear.named_parameters())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._trained()
        for site, mean, deviation in zip(self.bank.sites, self.bank.means, self.bank.deviations, strict=True):
            yield from ((f"{site}/mean", mean), (f"{site}/deviation", deviation))

    def _update(self, chosen: Int[np.ndarray, " n"]) -> None:
        """One optimiser step on the mean loss over the valid pixels of all chosen images; micro-batches only add up."""
        pixels, diverged = 0, None
        try:
            pixels = self.source.micro_batch.whole(self.source.own(chosen), self._accumulate)
        except Diverged as error:
            diverged = error
        pixels = self._summed(pixels, diverged)
        if pixels:  # images without one labelled pixel teach nothing
            for parameter in self.bank.linears.parameters():
                assert parameter.grad is not None
                parameter.grad /= pixels
            share = (1 - self.step / self.steps) ** self.schedule.power
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule.lr * share
            self.optimiser.step()
        self.step += 1

    def _accumulate(self, parts: Iterator[Sequence[int]]) -> int:
        """The gradient of the summed loss, from nothing; the number of valid pixels."""
        pixels = 0
        self.optimiser.zero_grad()
        for features, targets in itertools.chain.from_iterable(map(self.source.read, parts)):
            logits = self.bank(features)
            loss = upsampled_cross_entropy(logits, targets).sum(1)
            self._refuse_divergence(loss, logits)
            loss.sum().backward()
            pixels += sum(target.pixels for target in targets)
        return pixels

    def _summed(self, pixels: int, diverged: Diverged | None) -> int:
        """The gradients and the number of valid pixels of the whole team, in one transfer; Diverged if one probe did.

        The sums of sums are divided once: a mean of the processes' means would weigh their pixels unequally.
        """
        parameters = list(self.bank.linears.parameters())
        for parameter in parameters:
            if parameter.grad is None:  # none of these images is this process's
                parameter.grad = torch.zeros_like(parameter)
        high, low = divmod(pixels, EXACT)
        beside = torch.tensor([float(high), float(low), float(diverged is not None)], device=parameters[0].device)
        self.source.team.sum([*(parameter.grad for parameter in parameters if parameter.grad is not None), beside])
        high, low, trouble = map(int, beside.tolist())
        if trouble:
            refuse_divergence(self.source.team, self.bank.sites, diverged)
        return high * EXACT + low

    def _refuse_divergence(self, loss: Float[Tensor, " l"], logits: Float[Tensor, "l b t k"]) -> None:
        if not loss.isfinite().all():
            row = int((~loss.isfinite()).nonzero()[0])
            epoch = self.step * self.schedule.epochs // self.steps + 1
            largest = logits[row].abs().max().item()
            raise Diverged(self.bank.sites[row], largest, f" in epoch {epoch} (step {self.step})")

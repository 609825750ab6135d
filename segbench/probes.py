"""The bank of linear probes: one Linear(d, k) per site, all trained together on the same features (paper A.2)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int32, Int64, Integer
from torch import Tensor, nn

from segbench.adapters.base import Features
from segbench.errors import CellError
from segbench.features import FeatureSource, Indices
from segbench.kernels import LIMIT, Target, upsampled_argmax, upsampled_counts, upsampled_cross_entropy
from segbench.types import Site

Arrays = dict[str, np.ndarray]


class Diverged(CellError):
    """The probe of one site has no finite loss or logits any more; those of other sites are as they were."""

    def __init__(self, site: Site, message: str) -> None:
        super().__init__(message)
        self.site = site


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


class ProbeBank(nn.Module):
    """Linear probes by site: logits on the patch grid from features [b, t, d].

    `mean` and `deviation` standardise the features of a site (zeros and ones when the protocol says `norm: none`);
    `export` folds them into weight and bias, so that a saved probe is a plain linear map.
    """

    def __init__(
        self, widths: Mapping[Site, int], classes: int, bias: bool = True, init: str = "uniform", seed: int = 0
    ) -> None:
        super().__init__()
        self.sites = tuple(widths)
        self.classes = classes
        self.linears = nn.ModuleList(nn.Linear(width, classes, bias=bias) for width in widths.values())
        self.means = nn.ParameterList(nn.Parameter(torch.zeros(d), requires_grad=False) for d in widths.values())
        self.deviations = nn.ParameterList(nn.Parameter(torch.ones(d), requires_grad=False) for d in widths.values())
        draw = torch.Generator().manual_seed(seed)
        for linear in self._linears():
            bound = 0.0 if init == "zeros" else linear.in_features**-0.5  # nn.Linear's own bound
            for parameter in linear.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=draw)

    @torch.no_grad()
    def only(self, sites: Sequence[Site]) -> "ProbeBank":
        """The probes of these sites in a bank of their own, with the weights that they have here."""
        rows = {site: row for row, site in enumerate(self.sites)}
        linears = self._linears()
        widths = {site: linears[rows[site]].in_features for site in sites}
        bank = ProbeBank(widths, self.classes, linears[0].bias is not None).to(self.means[0].device)
        for mine, site in enumerate(sites):
            bank._linears()[mine].load_state_dict(linears[rows[site]].state_dict())
            bank.means[mine].copy_(self.means[rows[site]])
            bank.deviations[mine].copy_(self.deviations[rows[site]])
        return bank

    def forward(self, features: Features) -> Float[Tensor, "l b t k"]:
        """Logits of every site, in the order of `sites`."""
        rows = zip(self.sites, self.linears, self.means, self.deviations, strict=True)
        return torch.stack([linear((features[site].float() - mean) / dev) for site, linear, mean, dev in rows])

    @torch.no_grad()
    def patches(self, features: Features) -> Int[Tensor, "l b t"]:
        """Predicted class of every patch."""
        return self(features).argmax(-1)

    @torch.no_grad()
    def standardise(self, source: FeatureSource, indices: Indices) -> None:
        """Take mean and deviation of every channel over the image tokens of these images."""
        count = 0
        sums = [torch.zeros_like(mean, dtype=torch.float64) for mean in self.means]
        squares = [torch.zeros_like(one) for one in sums]
        for features, _ in source.read(indices):
            count += features[self.sites[0]].shape[:2].numel()
            for row, site in enumerate(self.sites):
                tokens = features[site].double().flatten(0, 1)
                sums[row] += tokens.sum(0)
                squares[row] += tokens.square().sum(0)
        for row in range(len(self.sites)):
            mean = sums[row] / count
            self.means[row].copy_(mean)
            self.deviations[row].copy_((squares[row] / count - mean.square()).clamp_min(1e-12).sqrt())

    @torch.no_grad()
    def export(self) -> Arrays:
        """`<site>.weight` [k, d] and `<site>.bias` [k], the standardisation folded in."""
        arrays = {}
        for site, linear, mean, deviation in zip(self.sites, self._linears(), self.means, self.deviations, strict=True):
            weight = linear.weight / deviation
            bias = linear.bias if linear.bias is not None else torch.zeros(self.classes, device=weight.device)
            arrays[f"{site}.weight"] = weight.float().cpu().numpy()
            arrays[f"{site}.bias"] = (bias - weight @ mean).float().cpu().numpy()
        return arrays

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray], sites: Sequence[Site], device: torch.device | str) -> "ProbeBank":
        """The bank that `export` wrote."""
        bank = cls({site: arrays[f"{site}.weight"].shape[1] for site in sites}, len(arrays[f"{sites[0]}.bias"]))
        for site, linear in zip(sites, bank._linears(), strict=True):
            linear.weight.data = torch.from_numpy(arrays[f"{site}.weight"].copy())
            linear.bias.data = torch.from_numpy(arrays[f"{site}.bias"].copy())
        return bank.to(device)

    def _linears(self) -> list[nn.Linear]:
        return list(self.linears)  # type: ignore[arg-type]


class Trainer:
    """Trains a bank epoch by epoch; its state goes to a checkpoint and back without a trace in the result."""

    def __init__(self, bank: ProbeBank, source: FeatureSource, indices: Indices, schedule: Schedule) -> None:
        self.bank, self.source, self.schedule = bank, source, schedule
        self.indices = np.asarray(indices)
        self.steps = schedule.epochs * -(-len(self.indices) // schedule.batch)
        self.step = 0
        self.optimiser = torch.optim.AdamW(
            list(bank.linears.parameters()), lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay
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
        pixels = 0
        self.optimiser.zero_grad()
        for features, targets in self.source.read(chosen):
            logits = self.bank(features)
            losses = [upsampled_cross_entropy(logits[:, row], target) for row, target in enumerate(targets)]
            loss = torch.stack(losses).sum(0)
            self._refuse_divergence(loss, logits)
            loss.sum().backward()
            pixels += sum(target.pixels for target in targets)
        if pixels:  # images without one labelled pixel teach nothing
            for parameter in self.bank.linears.parameters():
                assert parameter.grad is not None
                parameter.grad /= pixels
            share = (1 - self.step / self.steps) ** self.schedule.power
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule.lr * share
            self.optimiser.step()
        self.step += 1

    def _refuse_divergence(self, loss: Float[Tensor, " l"], logits: Float[Tensor, "l b t k"]) -> None:
        if not loss.isfinite().all():
            row = int((~loss.isfinite()).nonzero()[0])
            epoch = self.step * self.schedule.epochs // self.steps + 1
            site, largest = self.bank.sites[row], logits[row].abs().max().item()
            raise Diverged(
                site,
                f"the probe at {site} diverged in epoch {epoch} (step {self.step}, largest logit {largest:.3g}); "
                "try a smaller protocol.lr or protocol.norm: standardize",
            )


class Best:
    """For every site the epoch with the highest mIoU on the deciding images, its weights and its counts on val."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}  # "epoch" [l], "score" [l], "counts" [l, n, k, 3], "probe.<site>.weight", ...

    def offer(
        self, epoch: int, score: Float[np.ndarray, " l"], counts: Int[np.ndarray, "l n k 3"], probes: Arrays
    ) -> None:
        """Take the sites whose score (mIoU, %) beats that of every earlier epoch."""
        if not self.arrays:
            self.arrays = {"epoch": np.full(len(score), epoch), "score": score, "counts": counts}
            self.arrays |= {f"probe.{name}": array for name, array in probes.items()}
            return
        better = score > self.arrays["score"]
        names = list(dict.fromkeys(name.rpartition(".")[0] for name in probes))  # sites, in the order of the bank
        for key, value in (("epoch", epoch), ("score", score), ("counts", counts)):
            shape = (-1,) + (1,) * (self.arrays[key].ndim - 1)
            self.arrays[key] = np.where(better.reshape(shape), value, self.arrays[key])
        for name, array in probes.items():
            if better[names.index(name.rpartition(".")[0])]:
                self.arrays[f"probe.{name}"] = array

    @property
    def probes(self) -> Arrays:
        """Weights and biases by name, as `ProbeBank.export` gives them."""
        return {name.removeprefix("probe."): a for name, a in self.arrays.items() if name.startswith("probe.")}


class Counted(NamedTuple):
    """What a bank says of a split, in pixels."""

    images: Int32[np.ndarray, "l n k 3"]  # hit, truth and predicted, per site, image and class
    confusion: Int64[np.ndarray, "l k k"]  # by [truth, prediction], over all images


@torch.no_grad()
def evaluate(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Counted:
    """Every probe's predictions at original resolution, counted; Diverged, naming the site, for one that did."""
    sites, classes, device = len(bank.sites), bank.classes, bank.means[0].device
    confusion = torch.zeros(sites, classes, classes, dtype=torch.int64, device=device)
    images = []
    for logits, target in _logits(bank, source, indices):
        images.append(upsampled_counts(logits, target, confusion).int())
    counted = Counted(torch.stack(images, 1).cpu().numpy(), confusion.cpu().numpy())
    assert (counted.confusion.sum(2) == counted.images[..., 1].sum(1)).all()
    assert (counted.confusion.sum(1) == counted.images[..., 2].sum(1)).all()
    return counted


def count(bank: ProbeBank, source: FeatureSource, indices: Indices) -> Int32[np.ndarray, "l n k 3"]:
    """Pixels as (hit, truth, predicted) per site, image and class."""
    return evaluate(bank, source, indices).images


def predictions(
    bank: ProbeBank, source: FeatureSource, indices: Indices
) -> Iterator[tuple[Integer[Tensor, "l H W"], Target]]:
    """Predicted class of every pixel at original resolution, for each site and image in turn."""
    for logits, target in _logits(bank, source, indices):
        yield upsampled_argmax(logits, target), target


@torch.no_grad()
def _logits(
    bank: ProbeBank, source: FeatureSource, indices: Indices
) -> Iterator[tuple[Float[Tensor, "l t k"], Target]]:
    """Logits on the patch grid, image by image; Diverged where they have no argmax."""
    for features, targets in source.read(indices):
        logits = bank(features)
        for site, largest in zip(bank.sites, logits.abs().amax((1, 2, 3)).tolist(), strict=True):
            if not largest <= LIMIT:  # nor is NaN
                raise Diverged(
                    site,
                    f"the probe at {site} diverged: its largest logit is {largest:.3g}; "
                    "try a smaller protocol.lr or protocol.norm: standardize",
                )
        for row, target in enumerate(targets):
            yield logits[:, row], target

"""The bank of linear probes: one Linear(d, k) per site, all trained together on the same features (paper A.2)."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor, nn

from segbench.adapters.base import Features
from segbench.errors import CellError
from segbench.features import FeatureSource, Indices
from segbench.kernels.linear import linear
from segbench.team import Team
from segbench.types import Site

Arrays = dict[str, np.ndarray]
Moments = list[tuple[Float64[Tensor, "_d"], Float64[Tensor, "_d"]]]


class Diverged(CellError):
    """The probe of one site has no finite loss or logits any more; those of other sites are as they were."""

    def __init__(self, site: Site, largest: float, when: str = "") -> None:
        super().__init__(
            f"the probe at {site} diverged{when}: its largest logit is {largest:.3g}; "
            "try a smaller protocol.lr or protocol.norm: standardize"
        )
        self.site, self.largest, self.when = site, largest, when


def refuse_divergence(team: Team, sites: Sequence[Site], found: Diverged | None) -> None:
    """Raise in every process of the team what one of them found; of several, the first one's."""
    own = [sites.index(found.site), found.largest, found.when] if found else None
    for row, *told in filter(None, map(json.loads, team.exchange(json.dumps(own).encode()))):
        raise Diverged(sites[row], *told) from found


class ProbeBank(nn.Module):
    """Linear probes by site: logits on the patch grid from features [b, t, d].

    `mean` and `deviation` standardise the features of a site (zeros and ones when the protocol says `norm: none`);
    they are folded into weight and bias, so that a probe at work, and a saved one, is a plain linear map.
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
        for probe in self._linears():
            bound = 0.0 if init == "zeros" else probe.in_features**-0.5  # nn.Linear's own bound
            for parameter in probe.parameters():
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
        logits = []
        for (weight, bias), site in zip(self._folded(), self.sites, strict=True):
            tokens = features[site]
            logits.append(linear(tokens.flatten(0, 1), weight, bias).unflatten(0, tokens.shape[:2]))
        return torch.stack(logits)

    @torch.no_grad()
    def patches(self, features: Features) -> Int[Tensor, "l b t"]:
        """Predicted class of every patch."""
        return self(features).argmax(-1)

    @torch.no_grad()
    def standardise(self, source: FeatureSource, indices: Indices) -> None:
        """Take mean and deviation of every channel over the image tokens of these images, shared out over the team."""
        count = self.means[0].new_zeros(1, dtype=torch.float64)
        sums = [torch.zeros_like(mean, dtype=torch.float64) for mean in self.means]
        squares = [torch.zeros_like(one) for one in sums]

        def moments(part: Sequence[int]) -> list[tuple[int, Moments]]:
            return [self._moments(features) for features, _ in source.read(part)]

        for batches in source.micro_batch.each(source.own(indices), moments):
            for tokens, found in batches:
                count += tokens
                for row, (first, second) in enumerate(found):
                    sums[row] += first
                    squares[row] += second
        source.team.sum([count, *sums, *squares])
        for row in range(len(self.sites)):
            mean = sums[row] / count
            self.means[row].copy_(mean)
            self.deviations[row].copy_((squares[row] / count - mean.square()).clamp_min(1e-12).sqrt())

    @torch.no_grad()
    def export(self) -> Arrays:
        """`<site>.weight` [k, d] and `<site>.bias` [k], the standardisation folded in."""
        arrays = {}
        for site, (weight, bias) in zip(self.sites, self._folded(), strict=True):
            arrays[f"{site}.weight"] = weight.cpu().numpy()
            arrays[f"{site}.bias"] = bias.cpu().numpy()
        return arrays

    @classmethod
    def load(cls, arrays: Mapping[str, np.ndarray], sites: Sequence[Site], device: torch.device | str) -> "ProbeBank":
        """The bank that `export` wrote."""
        bank = cls({site: arrays[f"{site}.weight"].shape[1] for site in sites}, len(arrays[f"{sites[0]}.bias"]))
        for site, probe in zip(sites, bank._linears(), strict=True):
            probe.weight.data = torch.from_numpy(arrays[f"{site}.weight"].copy())
            probe.bias.data = torch.from_numpy(arrays[f"{site}.bias"].copy())
        return bank.to(device)

    def _folded(self) -> Iterator[tuple[Float32[Tensor, "k d"], Float32[Tensor, " k"]]]:
        """Weight and bias of every probe for features as they are; the trained ones get their gradient through these.

        Features in half precision stay in it, and no feature is standardised twice.
        """
        for probe, mean, deviation in zip(self._linears(), self.means, self.deviations, strict=True):
            weight = probe.weight / deviation
            shift = weight @ mean
            yield weight, -shift if probe.bias is None else probe.bias - shift

    def _moments(self, features: Features) -> tuple[int, Moments]:
        """Number of tokens; by site their sum and the sum of their squares."""
        tokens = (features[site].double().flatten(0, 1) for site in self.sites)
        return features[self.sites[0]].shape[:2].numel(), [(one.sum(0), one.square().sum(0)) for one in tokens]

    def _linears(self) -> list[nn.Linear]:
        return list(self.linears)  # type: ignore[arg-type]

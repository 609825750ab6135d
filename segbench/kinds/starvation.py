"""Context starvation: how well is each patch position read at one layer? (paper 5.1, Table 3, Fig. 7)

Under causal attention the first image tokens see almost no other; the gap to the bidirectional twin is made by the
leaderboard from two models' cells of this kind.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from segbench import stats
from segbench.errors import CellError
from segbench.geometry import patch_index
from segbench.kinds.base import Job, SiteName, inherited, peak_site, probed
from segbench.specs import Spec, TaskSpec
from segbench.types import Measure, Site


class Params(Spec):
    """Keys of a starvation task."""

    probes: str = Field(description="the probe task whose probes and val images are used")
    site: Literal["peak"] | SiteName = Field(
        default="peak", description="peak (the model's own best LLM layer) or a site such as llm.4"
    )


def requires(params: Params) -> tuple[str, ...]:
    """The probes come from a probe task."""
    return (params.probes,)


def check(params: Params, required: Mapping[str, TaskSpec]) -> None:
    """SpecError if the task that is read is no probe task."""
    probed(params.probes, required)


def run(job: Job) -> Iterator[Measure]:
    """Yield pixel accuracy in % at each patch position (raster order) over the val split, at one site.

    Arrays `positions`: `hit` and `count` int32 [n, t], rightly predicted and labelled pixels inside each patch.
    Raises CellError when the site was not probed.
    """
    from segbench import features, probes

    params: Params = job.params
    source = job.required[params.probes]
    val = source.params.data.load("val", job.limit)
    site = peak_site(source.result) if params.site == "peak" else Site.parse(params.site)
    if str(site) not in source.result.about["sites"]:
        raise CellError(f"{params.probes} has no probe at {site}; it has {', '.join(source.result.about['sites'])}")
    bank = probes.ProbeBank.load(source.result.arrays("probes"), [site], job.adapter.device)
    if "grid" not in source.result.about:
        raise CellError("the images of this model have grids of their own each; use `preprocess: squash`")
    grid = tuple(source.result.about["grid"])

    own = job.team.part(len(val))
    hit, counted = np.zeros((2, len(own), grid[0] * grid[1]), np.int32)
    micro_batch = features.MicroBatch(job.batch_size)
    stream = features.Streamed(job.adapter, val, [site], micro_batch)
    for row, (pixels, target) in enumerate(probes.predictions(bank, stream, own)):
        patch = patch_index(target.grid_map)
        labelled = target.valid.cpu().numpy() & (patch >= 0)
        right = (pixels[0] == target.labels).cpu().numpy() & labelled
        counted[row] = np.bincount(patch[labelled], minlength=hit.shape[1])
        hit[row] = np.bincount(patch[right], minlength=hit.shape[1])
        job.progress(row + 1, len(own), "starvation")
    job.cell.provenance["micro_batch"] = micro_batch.smallest(job.team)
    parts = job.team.gather({"hit": hit, "count": counted})
    hit, counted = (np.concatenate([part[name] for part in parts]) for name in ("hit", "count"))
    job.cell.save_arrays("positions", {"hit": hit, "count": counted})
    job.cell.about(
        {
            "site": str(site),
            "chosen": "peak" if params.site == "peak" else "spec",
            "grid": list(grid),
            "images": source.result.about["images"],
        }
        | inherited(source.result)
    )
    units = stats.Units.among(len(val), source.result.about.get("clusters"))
    for position, sampled in enumerate(stats.sampled_ratio(hit, counted, units)):
        if estimate := sampled.estimate():
            images = int((counted[:, position] > 0).sum())
            yield Measure("patch_accuracy", estimate.value, "%", images, str(site), str(position), estimate.interval)

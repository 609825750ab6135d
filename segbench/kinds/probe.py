"""Layerwise probing: how well can a linear map read the classes at each site? (paper A.2, Table 2)"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Int
from pydantic import Field

from segbench import stats
from segbench.errors import CellError, DataError, SpecError
from segbench.geometry import coverage
from segbench.kinds._expected import configured, recorded
from segbench.kinds._fitting import Fitting, Protocol, fit
from segbench.kinds._stages import Wanted, probe
from segbench.kinds.base import Job, SiteName
from segbench.metrics import oracle
from segbench.specs import MUTE, DataSpec, ModelSpec, Spec, Split
from segbench.types import Dataset, Measure, Site

METRICS = {  # mean IoUs of counts that are kept beside those of the chosen epoch
    "last": "miou_last",
    "val_best": "miou_val_best",
    "at_model": "miou@model",
    "shuffled": "shuffled_miou",
    "position": "position_miou",
}

if TYPE_CHECKING:
    from segbench.adapters.base import Adapter
    from segbench.features import FeatureSource


class Params(Spec):
    """Keys of a probe task."""

    data: DataSpec
    protocol: Protocol = Protocol()
    sites: tuple[SiteName, ...] | None = Field(default=None, description="all residuals of the model when left out")
    features: Literal["auto", "stream", "memory", "sweep", "disk", "groups"] = Field(
        default="auto",
        description="where features live while probes are trained; changes no number",
        json_schema_extra=MUTE,
    )
    shuffled: bool = Field(default=False, description="also probe every site for the labels of other images: chance")
    position: bool = Field(default=False, description="also probe the places of patches alone, without the model")
    at_model: bool = Field(default=False, description="also count at the model's own resolution: miou@model")


def requires(params: Params) -> tuple[str, ...]:
    """A probe task stands on no other task."""
    return ()


def run(job: Job) -> Iterator[Measure]:
    """Train one probe per site on the training split, evaluate after each epoch, yield the numbers of the chosen epoch.

    Arrays: `counts` (int32 [l, n, k, 3]: hit, truth and predicted pixels, at the chosen epoch, the last and the best
    on val, and of the controls), `confusion` (int64 [l, k, k]: pixels by truth and prediction, summed over val),
    `probes` (weights and biases of the chosen and of the last epoch), `examples` (label maps at original resolution).
    Raises CellError when a probe diverges or when no pixel can be counted.
    """
    from segbench import features

    params: Params = job.params
    train, val = params.data.load("train", job.limit), params.data.load("val", job.limit)
    if train.classes != val.classes:
        raise DataError(f"{params.data.name}: train has the classes {train.classes}, val {val.classes}")
    sites = _sites(job.adapter, params.sites)
    ceiling = _ceiling(job, val)
    if not ceiling.seen:
        raise CellError("no labelled pixel of the val split is seen by the model")
    fitting = params.protocol.epochs * (len(train) + len(val))
    reads = _reads(params, len(train), len(val))
    own = f"-{job.team.rank}-of-{job.team.size}" if job.team.size > 1 else ""
    folder = job.cell.path / f"features{own}"
    micro_batch = features.MicroBatch(job.batch_size)
    work = features.Work(job.adapter, train, val, sites, micro_batch, reads, folder, job.team)
    plan = features.choose(work, params.features)
    job.cell.provenance["features"] = plan.facts()
    whole = fitting * len(plan.chosen.groups)
    tallies = {what: _Tally(job, whole, what) for what in ("training", "control: shuffled")}
    tallies["reading"] = _Tally(job, work.own, "reading")
    wanted = Wanted(params.protocol, params.shuffled, params.at_model, _spread(len(val), job.examples))
    done, stage = probe(job, plan, wanted, tallies)
    shutil.rmtree(folder, ignore_errors=True)  # files of the policy `disk`

    names = ["best", "last", "val_best", *(["shuffled"] if params.shuffled else [])]
    names += ["at_model"] if params.at_model else []
    counts = {name: np.stack([done[site][f"counts/{name}"] for site in sites]) for name in names}
    if params.position:
        counts["position"] = _position(job, (stage.train, stage.val) if stage else work.streamed(sites), ceiling.grids)
    probes = {f"{site}.{name}": done[site][name] for site in sites for name in ("weight", "bias")}
    probes |= {f"last/{site}.{name}": done[site][f"last/{name}"] for site in sites for name in ("weight", "bias")}
    job.cell.provenance["micro_batch"] = micro_batch.smallest(job.team)  # below batch_size: memory ran out
    job.cell.save_arrays("counts", counts)
    job.cell.save_arrays("confusion", {"best": np.stack([done[site]["confusion"] for site in sites])})
    job.cell.save_arrays("probes", probes)
    job.cell.save_arrays("examples", _examples(done, val, wanted.examples))
    job.cell.about(
        {
            "sites": [str(site) for site in sites],
            "classes": list(train.classes),
            "images": ceiling.names,
            "selection": params.protocol.selection,
            "best_epochs": {str(site): int(done[site]["epoch"]) + 1 for site in sites},
            "train_images": len(train),
        }
        | ({"grid": list(ceiling.grids[0])} if len(ceiling.grids) == 1 else {})
        | ({"clusters": list(val.clusters)} if val.clusters else {})
        | _partial(params.data)
    )
    yield Measure("coverage", 100 * ceiling.seen / ceiling.labelled, "%", len(val))
    yield Measure("classes_present", int((counts["best"][0, ..., 1].sum(0) > 0).sum()), "count", len(val))
    yield Measure("oracle_miou", float(stats.miou(ceiling.counts)), "%", len(val))
    yield from _measures(sites, counts, stats.Units.among(len(val), val.clusters), val.subsets)


def estimates(params: Params, model: ModelSpec, images: Mapping[str, int], root: Path, device: str) -> list[str]:
    """What the cell takes under every feature policy, in words; `root` is the store, which may know the model.

    Seconds are told where an earlier cell timed the model's forward pass.
    """
    from segbench import features
    from segbench.features.estimate import Load, estimated

    wanted = None if params.sites is None else {Site.parse(text) for text in params.sites}
    known = [*recorded(root, model)]
    if by_config := None if known else configured(model, params.data):
        known = [(by_config, "")]
    known = [(costs, refused) for costs, refused in known if wanted is None or wanted <= set(costs.sites)]
    if not known:
        return ["not known before a cell of this model has run"]
    costs, refused = known[0]
    sites = tuple(site for site in costs.sites if wanted is None or site in wanted)
    load = Load(sites, images["train"] + images["val"], _reads(params, images["train"], images["val"]))
    return [str(one) for one in estimated(load, costs, features.room(device, root), refused)]


def _reads(params: Params, train: int, val: int) -> int:
    """How often the features of an image are asked for, over all images and epochs."""
    standardising = train if params.protocol.norm == "standardize" else 0
    fitting = params.protocol.epochs * (train + val) + standardising
    return (1 + params.shuffled) * fitting + (1 + params.at_model) * val


def _position(
    job: Job, splits: "tuple[FeatureSource, FeatureSource]", grids: Sequence[tuple[int, int]]
) -> Int[np.ndarray, "1 n k 3"]:
    """Counts of the probe of places, trained in the same way on the ground truth alone; CellError for several grids."""
    from segbench import controls

    params: Params = job.params
    if len(grids) > 1:
        raise CellError("position: the images of this model have grids of their own; use `preprocess: squash`")
    train, val = (controls.Position(one, grids[0], job.adapter.device) for one in splits)
    widths, place = {controls.PLACE: grids[0][0] * grids[0][1]}, (controls.PLACE,)
    this = Fitting(widths, place, train, val, params.protocol, job.seed, job.adapter.device, job.cell, "position")
    fitted = fit(this, _Tally(job, this.work, "control: position"))
    if fitted.diverged:
        raise CellError(f"position: {fitted.diverged[controls.PLACE]}")
    return fitted.rows(params.protocol.selection, "counts", place)


def _partial(data: DataSpec) -> dict[str, Any]:
    """How much of a published data set there is, where it is not all of it."""
    parts = {}
    for split in get_args(Split):
        whole = data.load(split)
        if whole.published:
            parts[split] = {"images": len(whole), "published": whole.published}
    return {"partial": parts} if parts else {}


@dataclass(frozen=True)
class _Ceiling:
    """What the geometry alone decides about the val split."""

    names: list[str]
    grids: list[tuple[int, int]]  # one, unless the model gives images grids of their own
    seen: int  # labelled pixels that the model saw
    labelled: int
    counts: Int[np.ndarray, "k 3"]  # of the oracle: the best that patches of this size could do


def _ceiling(job: Job, val: Dataset) -> _Ceiling:
    """One look at every val image, before anything is trained; the model does not run."""
    from segbench.features import checked

    names, seen, labelled, grids = [], 0, 0, set()
    total = np.zeros((len(val.classes), 3), np.int64)
    for index in job.team.part(len(val)):
        sample = checked(val, index)
        grid_map = job.adapter.grid_map((sample.image.height, sample.image.width))
        covered = coverage(sample.mask, grid_map)
        names.append(sample.name)
        seen, labelled = seen + covered.seen, labelled + covered.labelled
        grids.add(grid_map.grid)
        total += oracle.counts(sample.mask, grid_map, len(val.classes))
    found = [names, seen, labelled, sorted(grids), total.tolist()]
    parts = [json.loads(part) for part in job.team.exchange(json.dumps(found).encode())]
    return _Ceiling(
        names=[name for part in parts for name in part[0]],
        grids=sorted({tuple(grid) for part in parts for grid in part[3]}),
        seen=sum(part[1] for part in parts),
        labelled=sum(part[2] for part in parts),
        counts=np.sum([part[4] for part in parts], 0),
    )


class _Tally:
    """Adds up images of one stretch of work and passes them on."""

    def __init__(self, job: Job, total: int, what: str) -> None:
        self.job, self.total, self.what, self.done = job, total, what, 0

    def __call__(self, images: int) -> None:
        self.done += images
        self.job.progress(self.done, self.total, self.what)


def _sites(adapter: "Adapter", wanted: tuple[str, ...] | None) -> tuple[Site, ...]:
    """The sites to probe, in the order of the model: all residuals, unless some are named."""
    if wanted is None:
        return adapter.sites()
    known = adapter.known_sites()
    asked = {Site.parse(text) for text in wanted}
    if strange := asked - set(known):
        raise SpecError(
            f"no site {', '.join(map(str, strange))}; this model has "
            f"{', '.join(map(str, adapter.sites()))} and llm.L.key, llm.L.value"
        )
    return tuple(site for site in known if site in asked)


def _spread(images: int, most: int) -> Sequence[int]:
    """A few val images, spread over the split."""
    count = min(most, images)
    return np.unique(np.linspace(0, images - 1, count).astype(int)).tolist() if count else []


def _examples(
    done: Mapping[Site, Mapping[str, np.ndarray]], val: Dataset, images: Sequence[int]
) -> dict[str, np.ndarray]:
    """`<e>.image`, `<e>.truth` and `<e>.<site>`: pictures and label maps of a few val images."""
    arrays: dict[str, np.ndarray] = {}
    for row, index in enumerate(images):
        sample = val[index]
        arrays |= {f"{row}.image": np.asarray(sample.image), f"{row}.truth": sample.mask}
        arrays |= {f"{row}.{site}": known[f"example/{row}"] for site, known in done.items()}
    return arrays


def _measures(
    sites: Sequence[Site],
    counts: Mapping[str, Int[np.ndarray, "l n k 3"]],
    units: stats.Units,
    subsets: Mapping[str, tuple[int, ...]],
) -> Iterator[Measure]:
    """mIoU and accuracies per site, with 95 % intervals over images."""
    best = counts["best"]
    columns = {"miou": (stats.miou, best), "pixel_accuracy": (stats.pixel_accuracy, best)}
    columns |= {"mean_accuracy": (stats.mean_accuracy, best)}
    columns |= {f"miou_{name}": (stats.miou, best[:, :, list(classes)]) for name, classes in subsets.items()}
    columns |= {METRICS[name]: (stats.miou, one) for name, one in counts.items() if name in METRICS}
    for metric, (summary, one) in columns.items():
        places = [None] if metric == METRICS["position"] else map(str, sites)
        for site, sampled in zip(places, stats.sampled(summary, one, units), strict=True):
            if estimate := sampled.estimate():
                yield Measure(metric, estimate.value, "%", one.shape[1], site, interval=estimate.interval)

"""One stage of probing after the other: the sites whose features are at hand are trained, counted, and kept by site."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from segbench.errors import CellError
from segbench.kinds._fitting import Fitting, Protocol, fit
from segbench.kinds.base import Job
from segbench.types import Site

if TYPE_CHECKING:
    from segbench.features import Plan, Stage

Arrays = dict[str, np.ndarray]
DONE = "done-"  # begins the names of the checkpoints that hold a finished site

Progress = Mapping[str, Callable[[int], None]]  # by what is being done, who hears of images


@dataclass(frozen=True)
class Wanted:
    """What is kept of every site beside its probe; the fields of the task that decide it."""

    protocol: Protocol
    shuffled: bool
    at_model: bool
    examples: Sequence[int]  # val images


def probe(job: Job, plan: "Plan", wanted: Wanted, progress: Progress) -> "tuple[dict[Site, Arrays], Stage | None]":
    """What is known of every site of the plan, by name: `counts/best`, `weight`, `example/0` ...; and the last stage.

    A site that is finished stays finished when the run is killed. CellError, naming every probe that diverged, once
    all others are finished.
    """
    done: dict[Site, Arrays] = {}
    for site in plan.work.sites:
        if checkpoint := job.cell.load_checkpoint(f"{DONE}{site}"):
            done[site] = checkpoint[0]
    several = len(plan.chosen.groups) > 1
    problems: list[str] = []
    widths = {site: job.adapter.widths[site] for site in plan.work.sites}
    stage = None
    for stage in plan.stages(tuple(done), progress["reading"]):
        part, device = str(stage.sites[0]) if several else "", job.adapter.device
        splits = stage.train, stage.val
        main = Fitting(widths, stage.sites, *splits, wanted.protocol, job.seed, device, job.cell, stage=part)
        found, diverged = _finished(main, wanted, job, progress)
        done |= found
        problems += diverged
        if several or diverged:
            for site, arrays in found.items():
                job.cell.save_checkpoint(arrays, {}, f"{DONE}{site}")
    if problems:
        raise CellError("; ".join(problems))
    return done, stage


def _finished(main: Fitting, wanted: Wanted, job: Job, progress: Progress) -> tuple[dict[Site, Arrays], list[str]]:
    """The sites of one stage, and what is told of those whose probe diverged."""
    from segbench import probes
    from segbench.controls import Shuffled
    from segbench.features import AtModel

    fitted = fit(main, progress["training"])
    sites, problems = fitted.sites, [*fitted.diverged.values()]
    counts = {name: fitted.rows(name, "counts", sites) for name in ("last", "val_best")}
    if wanted.shuffled and sites:
        chance = replace(main, sites=sites, train=Shuffled(main.train, job.seed), what="shuffled")
        beside = fit(chance, progress["control: shuffled"])
        problems += (f"shuffled: {text}" for text in beside.diverged.values())
        counts["shuffled"] = beside.rows(wanted.protocol.selection, "counts", sites := beside.sites)
        counts |= {name: fitted.rows(name, "counts", sites) for name in ("last", "val_best")}
    if not sites:
        return {}, problems
    chosen, last = fitted.kept[wanted.protocol.selection], fitted.kept["last"]
    counts["best"] = fitted.rows(wanted.protocol.selection, "counts", sites)
    bank = probes.ProbeBank.load(chosen.probes, sites, main.device)
    everything = range(len(main.val.dataset))
    if wanted.at_model:
        counts["at_model"] = probes.count(bank, AtModel(main.val, job.adapter), everything)
    confusion = probes.evaluate(bank, main.val, everything).confusion
    epochs = fitted.rows(wanted.protocol.selection, "epoch", sites)
    labels = probes.label_maps(bank, main.val, wanted.examples)
    found: dict[Site, Arrays] = {}
    for row, site in enumerate(sites):
        found[site] = {f"counts/{name}": array[row] for name, array in counts.items()}
        found[site] |= {"confusion": confusion[row], "epoch": epochs[row]}
        found[site] |= {f"example/{number}": pixels[row] for number, pixels in enumerate(labels)}
        for name in ("weight", "bias"):
            found[site] |= {name: chosen.probes[f"{site}.{name}"], f"last/{name}": last.probes[f"{site}.{name}"]}
    return found, problems

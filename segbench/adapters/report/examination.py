"""A model is loaded, every self-test is run and an image is looked at; whatever goes wrong is a check that failed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from segbench import registry
from segbench.adapters import _generation, _selftest, weights
from segbench.adapters.base import Adapter, Batch
from segbench.adapters.checkpoint import KEYS, Unfit
from segbench.adapters.report import anatomy, grid, sizes
from segbench.adapters.report.checks import (
    ABOUT,
    ATTENTION,
    GENERATION,
    KNOCKOUT,
    LAYOUT,
    collected,
    failed,
    not_tested,
    tried,
)
from segbench.adapters.report.findings import Check, Parts, Report, Tokens, View
from segbench.specs import ModelSpec
from segbench.types import Sample


def examine(spec: ModelSpec, device: str, image: Sample | None, tell: Callable[[str], object]) -> Report:
    """Load a model, run every self-test and look at an image (None: a drawn one); `tell` hears what is being done.

    MissingInput where the weights are not there, SpecError for an adapter that cannot be imported; whatever else is
    wrong is a check that failed.
    """
    folder = weights.folder(spec) if spec.weights or spec.hub else None
    report = Report(anatomy.stated(spec, device, folder), (), anatomy.files(folder) if folder else None)
    tell(f"{spec.name}: loading {folder or spec.adapter}")
    adapter, problem = tried(lambda: registry.module("adapters", spec.adapter).load(spec, device))
    if adapter is None:
        keys = problem.keys if isinstance(problem, Unfit) else None
        return replace(_with_keys(report, keys), checks=(failed("load", problem),))
    report = _with_keys(replace(report, model=anatomy.loaded(report.model, adapter)), dict.fromkeys(KEYS, ()))
    tell(f"{spec.name}: looking where patches are and what attention does")
    checks = [Check("load", ABOUT["load"], True)]
    checks += collected(adapter, LAYOUT, lambda: iter(_selftest.distances(adapter).items()))
    tests = ATTENTION if adapter.declared.no_knockout else ATTENTION + KNOCKOUT
    checks += collected(adapter, tests, lambda: _selftest.differences(adapter))
    checks += not_tested([name for name in KNOCKOUT if name not in tests], adapter.declared.no_knockout)
    return _with_example(replace(report, checks=tuple(checks)), adapter, image or grid.example(), tell)


def _with_keys(report: Report, keys: Mapping[str, Sequence[str]] | None) -> Report:
    return replace(report, checkpoint=replace(report.checkpoint, keys=keys)) if report.checkpoint else report


def _with_example(report: Report, adapter: Adapter, sample: Sample, tell: Callable[[str], object]) -> Report:
    """The report, and what an image shows: parts, the token grid, sites, memory, and generation."""
    looked, problem = tried(lambda: _looked(adapter, sample))
    if looked is None:
        rest = not_tested(("sites", *GENERATION), "there is no image to try it with")
        return replace(report, checks=(*report.checks, failed("example", problem), *rest))
    batch, parts, tokens, views = looked
    checks = [*report.checks, Check("example", ABOUT["example"], True, float(tokens.tokens), "as the layout says")]
    widths, problem = tried(lambda: _selftest.widths(adapter))
    if widths is None:
        checks.append(failed("sites", problem))
    else:
        report = replace(report, sites=sizes.sites(adapter, batch, widths), memory=sizes.memory(adapter, batch, widths))
        checks.append(Check("sites", ABOUT["sites"], True, float(len(widths)), "all"))
    if adapter.model.can_generate():
        tell(f"{adapter.spec.name}: generating")
        names = GENERATION[:1] if adapter.declared.no_knockout else GENERATION
        checks += collected(adapter, names, lambda: _generation.differences(adapter, sample.image))
        checks += not_tested(GENERATION[len(names) :], adapter.declared.no_knockout)
    else:
        checks += not_tested(GENERATION, f"{type(adapter.model).__name__} has no generate()")
    return replace(report, checks=tuple(checks), parts=parts, tokens=tokens, views=views)


def _looked(adapter: Adapter, sample: Sample) -> tuple[Batch, Parts, Tokens, tuple[View, ...]]:
    batch = adapter.prepare([sample])
    size = (sample.image.height, sample.image.width)
    parts, tokens = anatomy.parts(adapter, batch), grid.tokens(adapter, batch, sample.name, size)
    return batch, parts, tokens, grid.views(adapter, sample)

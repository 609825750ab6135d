"""Which results belong together: the cells of one model that read the same probes, and a model with its baseline."""

from collections.abc import Iterable, Sequence
from typing import Any

from segbench.store import Result

_SAME = ("protocol", "task", "data", "seed", "limit")  # of a cell's inputs: what two models must share to be compared


def of_kind(results: Iterable[Result], kind: str) -> list[Result]:
    """Results of one task kind, in an order that does not depend on how they were found."""
    return sorted((one for one in results if one.kind == kind), key=order)


def order(result: Result) -> tuple[str, str, int, int, str]:
    """Sorting key: task, model, seed, limited runs last, fingerprint."""
    return result.task, result.model, result.seed, result.limit or 0, result.fingerprint


def data_name(result: Result) -> str | None:
    """Name of the data set that the task reads; None where the task takes it over from its probe task."""
    data = result.task_spec.get("data")
    return data["name"] if isinstance(data, dict) else data


def read_by(results: Iterable[Result], result: Result) -> list[Result]:
    """The cells that a cell read: the probes of a knockout."""
    wanted = _inputs(result).get("requires", {}).values()
    return [one for one in results if one.fingerprint in wanted]


def partial(result: Result, results: Iterable[Result] = ()) -> str | None:
    """`5 of 2000 val images` where only that part of a data set was there, for a cell or for one that it reads."""
    for one in (result, *read_by(results, result)):
        if splits := one.about.get("partial"):
            return ", ".join(f"{part['images']} of {part['published']} {name} images" for name, part in splits.items())
    return None


def incomplete(result: Result, results: Iterable[Result] = ()) -> str | None:
    """Why a cell is no result that counts: a limited run, or a part of the data set. None where it is whole."""
    limited = [f"limited to {result.limit} images"] if result.limit else []
    part = partial(result, results)
    return ", ".join([*limited, *([f"partial data: {part}"] if part else [])]) or None


def reading(results: Sequence[Result], kind: str, probe: Result) -> Result | None:
    """The cell of that kind which read the probes of `probe`, these and no others; None where there is none.

    Several tasks may read the same probes: then the first by name counts.
    """
    found = [one for one in of_kind(results, kind) if _reads(one, probe)]
    return found[0] if found else None


def baseline(results: Sequence[Result], result: Result) -> Result | None:
    """The cell of the causal twin that the model card names, measured in the same way; None where there is none."""
    twin = result.model_card.get("baseline")
    found = [
        one
        for one in of_kind(results, result.kind)
        if (one.model, one.task) == (twin, result.task)
        and all(_inputs(one).get(key) == _inputs(result).get(key) for key in _SAME)
    ]
    return found[0] if found else None


def sides(probes: Sequence[Result], model: str, baseline: str) -> tuple[list[Result], list[Result]]:
    """The cells of two models on one task, one per seed: their whole runs, or the least limited that both have.

    All of them where the two share no limit, which `compare` then refuses.
    """
    ours, theirs = ([one for one in probes if one.model == name] for name in (model, baseline))
    shared = {one.limit for one in ours} & {one.limit for one in theirs}
    if not shared:
        return ours, theirs
    limit = None if None in shared else max(one for one in shared if one)
    return [one for one in ours if one.limit == limit], [one for one in theirs if one.limit == limit]


def starved(results: Sequence[Result], probe: Result) -> tuple[Result, Result] | None:
    """The starvation cells of a model and of its baseline, each reading its own probes; None unless both are there."""
    twin, ours = baseline(results, probe), reading(results, "starvation", probe)
    theirs = baseline(results, ours) if ours else None
    if ours is None or theirs is None or twin is None or not _reads(theirs, twin):
        return None
    return ours, theirs


def _reads(result: Result, probe: Result) -> bool:
    return _inputs(result).get("requires", {}).get(probe.task) == probe.fingerprint


def _inputs(result: Result) -> dict[str, Any]:
    return result.inputs or {}

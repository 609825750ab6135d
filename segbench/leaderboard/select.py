"""Which results belong together: the cells of one model that read the same probes, and a model with its baseline."""

from collections.abc import Iterable, Sequence

from segbench.store import Result


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


def reading(results: Sequence[Result], kind: str, probe: Result) -> Result | None:
    """The cell of that kind which reads the probes of `probe`; None where there is none.

    A task says whose probes it reads by naming the probe task in its spec. Several tasks may read the same probes: then
    the first by name counts.
    """
    found = [
        one
        for one in of_kind(results, kind)
        if (one.model, one.revision, one.seed, one.limit) == (probe.model, probe.revision, probe.seed, probe.limit)
        and probe.task in one.task_spec.values()
    ]
    return found[0] if found else None


def baseline(results: Sequence[Result], result: Result) -> Result | None:
    """The same cell of the causal twin that the model card names; None where it names none or was not run."""
    twin = result.model_card.get("baseline")
    found = [
        one
        for one in of_kind(results, result.kind)
        if (one.model, one.task, one.seed, one.limit) == (twin, result.task, result.seed, result.limit)
    ]
    return found[0] if found else None

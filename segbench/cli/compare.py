"""`segbench compare`: a model against another, or what was measured against what a paper prints."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segbench import registry
from segbench.cli import board
from segbench.cli.options import RUNS, Json, Output, chosen
from segbench.cli.say import INCOMPLETE, OK, as_columns, as_json, say
from segbench.errors import MissingInput, NotComparable, SpecError

if TYPE_CHECKING:
    from segbench.leaderboard.against_reported import Beside
    from segbench.leaderboard.compare import Comparison
    from segbench.store import Result

BETWEEN = """\
differences are model - baseline in points, in brackets their 95 % intervals over {drawn}; means over probe seeds.
better, worse: beyond the interval and beyond {margin:g} points; same: the interval lies within them. Each layer by
itself: of 20 layers that do not differ, one interval leaves zero out."""
ONE_SEED = """\
One probe seed each: how far another training of the probes would have gone is not known and not in the intervals.
withstands: the standard deviation over seeds (points) up to which a difference is beyond its interval; better and worse
suppose that it is no more than the margin. What it is, several seeds tell: segbench run --seed 0,1,2 ..."""
PRINTED = """\
reported numbers are a paper's own, with its weights, preprocessing and code; derived: not printed, but computed from
printed ones. inside: whether the reported number lies in the measured 95 % interval."""


def compare(
    model: Annotated[str | None, typer.Argument(help="a measured model, by its full name")] = None,
    baseline: Annotated[str | None, typer.Argument(help="the measured model to compare it with")] = None,
    reported: Annotated[
        bool, typer.Option("--reported", help="set measurements beside the numbers that papers print")
    ] = False,
    only: Annotated[str | None, typer.Option("--model", help="with --reported: this model card alone")] = None,
    tasks: Annotated[str | None, typer.Option("--task", help="names or patterns with commas; left out: all")] = None,
    margin: Annotated[float, typer.Option(min=0, help="points of mIoU that do not matter")] = 0.5,
    output: Output = RUNS,
    json: Json = False,
) -> None:
    """Tell whether a model is better than another beyond chance, or how it compares with what a paper reports."""
    if reported:
        if model or baseline:
            raise SpecError("--reported takes no MODEL and BASELINE; one model alone: --reported --model NAME")
        raise typer.Exit(_reported(output, only, tasks, json))
    if not model or not baseline or only:
        raise SpecError("expected: segbench compare MODEL BASELINE, or segbench compare --reported [--model NAME]")
    raise typer.Exit(_models(model, baseline, tasks, margin, output, json))


def _models(model: str, baseline: str, tasks: str | None, margin: float, output: Path, json: bool) -> int:
    """Every task that both were measured on; 4 where one of the two was not, 3 where they cannot be compared."""
    from segbench.leaderboard import compare, select

    probes = [one for one in select.of_kind(board.results(output), "probe") if chosen(one.task, tasks)]
    for name in (model, baseline):
        _known(name, probes, output)
    compared, missing, refused = [], [], []
    for task in sorted({one.task for one in probes if one.model in (model, baseline)}):
        ours, theirs = select.sides([one for one in probes if one.task == task], model, baseline)
        if not ours or not theirs:
            missing.append({"task": task, "model": baseline if ours else model, "verdict": "missing"})
            continue
        try:
            compared.append(compare.compare(ours, theirs, margin))
        except NotComparable as error:
            refused.append(str(error))
    if json:
        print(as_json([*map(_facts, compared), *missing]))
    else:
        print("\n\n".join(map(_text, compared)), end="\n" if compared else "")
    for one in missing:
        say(f"missing: {one['task']}: {one['model']} was not measured; first: segbench run --model {one['model']} ...")
    if refused:
        raise NotComparable("\n".join(refused))
    return INCOMPLETE if missing else OK


def _known(name: str, probes: "Sequence[Result]", output: Path) -> None:
    measured = {one.model for one in probes}
    if name not in measured:
        raise MissingInput(
            f"{output} holds no finished probe cell of {name!r}{registry.nearest(name, measured)}; "
            f"first: segbench run --model {name} --output {output} --tasks ..."
        )


def _facts(one: "Comparison") -> dict[str, Any]:
    """A comparison as JSON; what is absent is left out."""
    rows = []
    for row in one.rows:
        told: dict[str, Any] = {"quantity": row.quantity, "model": row.ours, "baseline": row.theirs}
        if row.difference:
            found = row.difference
            told |= {"difference": found.value, "standard_error_images": found.images}
            told |= {"standard_error_seeds": found.seeds, "withstands": found.withstands()}
            if found.interval:
                told |= {"low": found.interval.low, "high": found.interval.high}
        rows.append(_numbers(told | {"verdict": row.verdict}))
    head = {"task": one.task, "model": one.model, "baseline": one.baseline, "images": one.images}
    head |= {"clusters": one.clusters, "margin": one.margin}
    head |= {"seeds": {"model": one.seeds[0], "baseline": one.seeds[1]}, "incomplete": one.incomplete}
    return _numbers(head) | {"rows": rows}


def _text(one: "Comparison") -> str:
    """A comparison for a reader."""
    single = one.rows[0].difference is not None and all(len(seeds) == 1 for seeds in one.seeds)
    rows = []
    for row in one.rows:
        shown = {"quantity": row.quantity, one.model: _number(row.ours), one.baseline: _number(row.theirs)}
        found = row.difference
        shown["difference"] = _number(found.value, sign=True) if found else ""
        bounds = found.interval if found else None
        shown["interval"] = f"[{bounds.low:+.2f}, {bounds.high:+.2f}]" if bounds else ""
        if single:
            shown["withstands"] = _number(found.withstands()) if found else ""
        rows.append(shown | {"verdict": row.verdict})
    seeds = " and ".join(",".join(map(str, side)) for side in one.seeds)
    images = f"{one.images} images" + (f" in {one.clusters} clusters" if one.clusters else "")
    head = f"{one.task}: {images}, probe seeds {seeds}"
    if one.incomplete:
        head += f"\nNO RESULT, only a pilot: {one.incomplete}"
    units = "clusters of images" if one.clusters else "images"
    notes = BETWEEN.format(margin=one.margin, drawn=units if single else f"{units} and probe seeds") + (
        f"\n{ONE_SEED}" if single else ""
    )
    return f"{head}\n\n{as_columns(rows)}\n\n{notes}"


def _reported(output: Path, model: str | None, tasks: str | None, json: bool) -> int:
    """Every reported number, measured or not."""
    from segbench.leaderboard import against_reported, reported

    papers = reported.papers()
    rows = [row for paper in papers for row in reported.rows(paper)]
    if model is not None:
        known = {row.model for row in rows if row.model}
        if model not in known:
            raise SpecError(f"--model: no paper reports {model!r}{registry.nearest(model, known)}")
        rows = [row for row in rows if row.model == model]
    measured = [one for one in board.results(output) if chosen(one.task, tasks)]
    found = against_reported.beside(rows, measured)
    if json:
        print(as_json([_row(one) for one in found]))
        return OK
    lines = [_line(one) for one in found]
    filled = [name for name in lines[0] if any(line[name] for line in lines)] if lines else []
    print(as_columns({name: line[name] for name in filled} for line in lines))
    print(f"\n{PRINTED}")
    for paper in papers:
        for one in paper.findings:
            print(f"{one.place} says: {one.says}")
    return OK


def _row(one: "Beside") -> dict[str, Any]:
    """One reported number as JSON, with its measurement where there is one; what is absent is left out."""
    told = {"reported": _numbers(asdict(one.reported))}
    if one.measured is None:
        return told | {"measured": None}
    bounds = one.measured.interval
    measured = {"model": one.model, "task": one.task, "seed": one.seed, "mark": one.mark, "value": one.measured.value}
    measured |= {"low": bounds.low, "high": bounds.high} if bounds else {}
    return told | {"measured": _numbers(measured | {"difference": one.difference, "inside": one.inside})}


def _line(one: "Beside") -> dict[str, str]:
    """One reported number for a reader, beside its measurement."""
    row, found = one.reported, one.measured
    digits = row.digits
    bounds = found.interval if found else None
    return {
        "source": f"{row.source} {row.place}",
        "model": row.model or "not stated",
        "data": row.data,
        "quantity": f"{row.quantity} {row.key}" if row.key else row.quantity,
        "unit": row.unit,
        "reported": f"{row.value:.{digits}f}" + (" (derived)" if row.derived else ""),
        "measured": f"{found.value:.{digits}f}" if found else "not measured",
        "interval": f"[{bounds.low:.{digits}f}, {bounds.high:.{digits}f}]" if bounds else "",
        "difference": f"{one.difference:+.{digits}f}" if one.difference is not None else "",
        "inside": {True: "yes", False: "no", None: ""}[one.inside],
        "of": f"{one.model}, {one.task}, seed {one.seed}" if found else "",
        "mark": one.mark or "",
    }


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.2f}" if sign else f"{value:.2f}"


def _numbers(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what is absent, and with numbers of four decimals."""
    return {key: round(one, 4) if isinstance(one, float) else one for key, one in facts.items() if one is not None}

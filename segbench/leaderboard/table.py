"""One row per model, probe task and seed: what is lost, what is won back, and what attention has to do with it."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd

from segbench.errors import CellError
from segbench.leaderboard import select
from segbench.leaderboard.drop_recovery import drop_recovery, gain
from segbench.leaderboard.knockout_summary import persistence
from segbench.leaderboard.starvation_gap import starvation_gap
from segbench.metrics.persistence import Metric
from segbench.stats import Estimate
from segbench.store import Result

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard; `interval` ones are followed by their _low and _high."""

    name: str
    title: str  # in Markdown, with the unit
    type: Literal["text", "whole", "number", "interval"]
    digits: int = 1


TABLES: Mapping[str, tuple[Column, ...]] = {
    "Lost and won back": (
        Column("encoder", "encoder (mIoU %)", "interval"),
        Column("adapter", "adapter (mIoU %)", "interval"),
        Column("drop", "drop (pp)", "interval"),
        Column("peak", "peak LLM (mIoU %)", "interval"),
        Column("peak_layer", "peak layer", "interval", 0),
        Column("recovery", "recovery (pp)", "interval"),
        Column("delta_enc", "peak - encoder (pp)", "interval"),
        Column("norm", "final norm (mIoU %)", "interval"),
        Column("miou_fg20", "peak layer, 20 foreground classes (mIoU %)", "interval"),
    ),
    "What attention does": (
        Column("gain", "peak - baseline's peak (pp)", "interval"),
        Column("starvation_gap", "accuracy gap, patches 0-2 (pp)", "interval"),
        Column("starvation_early", "accuracy gap, patches 0-49 (pp)", "interval"),
        Column("knockout_none", "left, none blocked (%)", "interval"),
        Column("knockout_incorrect", "left, incorrect blocked (%)", "interval"),
        Column("knockout_correct", "left, correct blocked (%)", "interval"),
        Column("knockout_random", "left, random blocked (%)", "interval"),
        Column("effect_incorrect", "incorrect - random (pp)", "interval"),
        Column("effect_correct", "correct - random (pp)", "interval"),
        Column("knockout_order", "order of the knockouts", "text"),
    ),
    "What is left of confusions, by other summaries": tuple(
        Column(f"knockout_{condition}_{short}", f"{told}, {condition} blocked (%)", "interval")
        for short, told in {"sums": "ratio of sums", "median": "median"}.items()
        for condition in ("none", "incorrect", "correct", "random")
    ),
    "What was measured": (
        Column("data", "data", "text"),
        Column("images", "images", "whole"),
        Column("classes", "classes", "whole"),
        Column("coverage", "coverage (%)", "number"),
        Column("oracle", "oracle (mIoU %)", "number"),
        Column("position", "control: places alone (mIoU %)", "interval"),
        Column("shuffled", "control: labels of other images, highest site (mIoU %)", "interval"),
        Column("revision", "revision", "text"),
        Column("fingerprint", "fingerprint", "text"),
    ),
}
LABELS = (
    Column("model", "model", "text"),
    Column("attention", "attention", "text"),
    Column("task", "task", "text"),
    Column("seed", "seed", "whole"),
    Column("limit", "limit", "whole"),
    Column("partial", "part of the data", "text"),
)
RECORD = ("model", "revision", "task", "kind", "seed", "limit", "partial", "metric", "site", "key")
RECORD += ("value", "low", "high", "unit", "count", "fingerprint")
SPREAD = {"model": "text", "attention": "text", "task": "text", "revision": "text", "limit": "whole", "partial": "text"}
SPREAD |= {"column": "text", "seeds": "whole", "mean": "number", "lowest": "number", "highest": "number"}
COLUMNS = LABELS + tuple(column for columns in TABLES.values() for column in columns)

OTHERS: Mapping[str, Metric] = {"sums": "persistence_of_sums", "median": "persistence_median"}

_SAME = ("task", "model", "attention", "revision", "limit", "partial")  # of rows that differ by their seed
_FORMULA = re.compile(r"\s*[=+\-@]")
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def build(results: Sequence[Result], limited: bool = False) -> pd.DataFrame:
    """The leaderboard: rows by task, then by peak, the highest first. Missing is absent (an empty cell).

    Runs on a few images (`--limit`) and on a part of a published data set are no leaderboard rows: they are left out,
    and named in `frame.attrs["left_out"]`, unless `limited` asks for them. Numbers are %, differences points, knockouts
    % of the initially wrong patches.
    """
    probes = select.of_kind(results, "probe")
    rows = [_row(results, probe) for probe in probes if limited or not select.incomplete(probe)]
    rows.sort(key=lambda row: (row["task"], -row.get("peak", -1.0), row["model"], row["seed"], row["fingerprint"]))
    frame = pd.DataFrame({name: _typed(name, kind, rows) for name, kind in _flat(COLUMNS)})
    frame.attrs["left_out"] = [
        f"{one.model} on {one.task} ({reason})" for one in probes if not limited and (reason := select.incomplete(one))
    ]
    return frame


def spread(frame: pd.DataFrame) -> pd.DataFrame:
    """What several probe seeds say: one row per model, task and number, with its mean, lowest and highest over seeds.

    This is the spread of the probes' training, apart from the intervals over images. One seed has none.
    """
    seeds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows(frame):
        seeds.setdefault(tuple(row.get(name) for name in _SAME), []).append(row)
    found = []
    for names, of_seeds in seeds.items():
        for column in (column for column in COLUMNS if column.type == "interval"):
            values = [row[column.name] for row in of_seeds if column.name in row]
            if len(values) > 1:
                numbers = {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
                told = {"column": column.name, "seeds": len(values)}
                found.append(dict(zip(_SAME, names, strict=True)) | told | numbers)
    return pd.DataFrame({name: _typed(name, kind, found) for name, kind in SPREAD.items()})


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as JSON holds them: four decimals, what is missing left out."""
    return [
        {name: round(one, 4) if isinstance(one, float) else one for name, one in row.items() if not _absent(one)}
        for row in frame.astype(object).to_dict("records")
    ]


def markdown(frame: pd.DataFrame, intervals: bool = True) -> str:
    """The leaderboard as Markdown tables, one per question; columns that hold nothing are left out."""
    parts = []
    for title, columns in TABLES.items():
        filled = [column for column in columns if len(frame[column.name].dropna())]
        if filled:
            shown = [column for column in LABELS if len(frame[column.name].dropna())] + filled
            parts.append(f"### {title}\n\n{_table(frame, shown, intervals)}\n")
    over: dict[str, list[dict[str, Any]]] = {}
    for row in rows(spread(frame)):
        over.setdefault(row["task"], []).append(row)
    parts += [f"### Over probe seeds: {_plain(task)}\n\n{_over_seeds(numbers)}\n" for task, numbers in over.items()]
    if not parts:
        parts.append("No finished probe cell.\n")
    if frame.attrs.get("left_out"):
        parts.append("Left out: " + "; ".join(_plain(name) for name in frame.attrs["left_out"]) + ".\n")
    return "\n".join(parts)


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV: four decimals, empty where missing; text that a spreadsheet would run as a formula is quoted."""
    safe = frame.copy()
    for name in safe.columns[[pd.api.types.is_string_dtype(kind) for kind in safe.dtypes]]:
        safe[name] = safe[name].map(_harmless, na_action="ignore")
    return safe.to_csv(index=False, float_format="%.4f", lineterminator="\n")


def records(results: Iterable[Result]) -> pd.DataFrame:
    """Every record of every result, one per row; limited and partial ones too, each with what makes it so."""
    ordered = sorted(results, key=select.order)
    facts = [{"kind": one.kind, "partial": select.partial(one, ordered)} for one in ordered]
    rows = [told | asdict(row) for one, told in zip(ordered, facts, strict=True) for row in one.records()]
    kinds = {"seed": "whole", "limit": "whole", "count": "whole", "value": "number", "low": "number", "high": "number"}
    return pd.DataFrame({name: _typed(name, kinds.get(name, "text"), rows) for name in RECORD})


def _table(frame: pd.DataFrame, columns: Sequence[Column], intervals: bool) -> str:
    from tabulate import tabulate

    return tabulate(
        [[_cell(row, column, intervals) for column in columns] for row in frame.to_dict("records")],
        [column.title for column in columns],
        "github",
        disable_numparse=True,
        colalign=["left" if column.type == "text" else "right" for column in columns],
    )


def _over_seeds(numbers: Sequence[Mapping[str, Any]]) -> str:
    """Numbers down, models across: the mean, and from the lowest seed to the highest."""
    from tabulate import tabulate

    cells: dict[str, dict[str, str]] = {column.name: {"": column.title} for column in COLUMNS}
    named = ("model", "revision", "limit", "partial")
    heads = [" ".join(str(row[name]) for name in named if name in row) for row in numbers]
    most = {head: max(row["seeds"] for row, one in zip(numbers, heads, strict=True) if one == head) for head in heads}
    for row, head in zip(numbers, heads, strict=True):
        fewer = f", {row['seeds']} seeds" if row["seeds"] < most[head] else ""
        told = f"{row['mean']:.1f} ({row['lowest']:.1f} to {row['highest']:.1f}{fewer})"
        cells[row["column"]][_plain(f"{head}, {most[head]} seeds")] = told
    shown = [row for row in cells.values() if len(row) > 1]
    return tabulate(shown, "keys", "github", disable_numparse=True)


def _row(results: Sequence[Result], probe: Result) -> dict[str, Any]:
    anatomy = drop_recovery(probe)
    single = {measure.metric: measure.value for measure in probe.measures if measure.site is None}
    row: dict[str, Any] = {
        "model": probe.model,
        "attention": probe.model_card.get("attention"),
        "task": probe.task,
        "seed": probe.seed,
        "limit": probe.limit,
        "partial": select.partial(probe),
        "data": select.data_name(probe),
        "images": len(probe.about["images"]),
        "classes": single.get("classes_present"),
        "coverage": single.get("coverage"),
        "oracle": anatomy.oracle,
        "revision": (probe.revision or "")[:12] or None,
        "fingerprint": probe.fingerprint[:16],
    }
    estimates = {name: anatomy.curve.get(name) for name in ("encoder", "adapter")}
    estimates |= {name: getattr(anatomy, name) for name in ("drop", "peak", "recovery", "delta_enc")}
    estimates |= {"norm": anatomy.curve.get("llm.norm")}
    if anatomy.peak_layer is not None:
        estimates["peak_layer"] = Estimate(anatomy.peak_layer, anatomy.peak_layers)
    estimates |= _controls(probe, anatomy.peak_layer)
    if knockout := select.reading(results, "knockout", probe):
        curves = persistence(knockout)
        estimates |= {f"effect_{name}": effect for name, effect in curves.effects.items()}
        row["knockout_order"] = curves.verdict()
        summaries = {"": curves} | {f"_{short}": persistence(knockout, metric=name) for short, name in OTHERS.items()}
        for short, one in summaries.items():
            estimates |= {f"knockout_{name}{short}": one.at_last_layer(name) for name in one.curves}
    estimates |= _against_baseline(results, probe)
    for name, estimate in estimates.items():
        if estimate:
            row[name] = estimate.value
            if estimate.interval:
                row |= {f"{name}_low": estimate.interval.low, f"{name}_high": estimate.interval.high}
    return row


def _controls(probe: Result, peak_layer: int | None) -> dict[str, Estimate | None]:
    """Measures that only some probe tasks yield. Of the shuffled labels the highest site counts: no luck is hidden."""
    shuffled = [one for one in probe.measures if one.metric == "shuffled_miou"]
    named = {"position": next((one for one in probe.measures if one.metric == "position_miou"), None)}
    named["shuffled"] = max(shuffled, key=lambda one: one.value, default=None)
    at_peak = (one for one in probe.measures if (one.metric, one.site) == ("miou_fg20", f"llm.{peak_layer}"))
    named["miou_fg20"] = next(at_peak, None)
    return {name: Estimate(one.value, one.interval) for name, one in named.items() if one}


def _against_baseline(results: Sequence[Result], probe: Result) -> dict[str, Estimate | None]:
    """Differences from the causal twin; nothing where there is none or the two cannot be compared."""
    found: dict[str, Estimate | None] = {}
    try:
        if twin := select.baseline(results, probe):
            found["gain"] = gain(probe, twin)
        if pair := select.starved(results, probe):
            gap = starvation_gap(*pair)
            found |= {"starvation_gap": gap.first, "starvation_early": gap.early}
    except CellError as error:
        log.warning("no difference from the baseline: %s", error)
    return found


def _flat(columns: Iterable[Column]) -> Iterable[tuple[str, str]]:
    """Names and types of the columns of the frame."""
    for column in columns:
        if column.type == "interval":
            kind = "number" if column.digits else "whole"
            yield from ((name, kind) for name in (column.name, f"{column.name}_low", f"{column.name}_high"))
        else:
            yield column.name, column.type


def _typed(name: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> pd.Series:
    types = {"text": "string", "whole": "Int64", "number": "float64"}
    return pd.Series([row.get(name) for row in rows], dtype=types[kind])


def _cell(row: Mapping[Any, Any], column: Column, intervals: bool) -> str:
    value = row[column.name]
    if _absent(value):
        return ""
    if column.type in ("text", "whole"):
        return _plain(str(value))
    low, high = (row.get(f"{column.name}_{end}") for end in ("low", "high"))
    number = f"{value:.{column.digits}f}"
    if not intervals or _absent(low):
        return number
    return f"{number} [{low:.{column.digits}f}, {high:.{column.digits}f}]"


def _absent(value: Any) -> bool:
    return bool(pd.isna(value))


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for text: no control or direction characters, nothing that opens a construct."""
    text = _INVISIBLE.sub(" ", text)
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, name)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def _harmless(text: str) -> str:
    text = _INVISIBLE.sub(" ", text)
    return f"'{text}" if _FORMULA.match(text) else text

"""Numbers that papers print: no measurements, so of another type, in other files, and never in the leaderboard."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from segbench import strict_yaml
from segbench.errors import MissingInput
from segbench.library import data_folder
from segbench.specs import Spec, bound

UNSTATED = "not stated"  # in place of a model, where the paper does not say which

Printed = Annotated[str, StringConstraints(pattern=r"^[+-]?[0-9]+(\.[0-9]+)?$")]
ReportedUnit = Literal["%", "pp", "ratio", "count", "layer", "points"]

_TERM = re.compile(r"([+-])\s*(\w+)\s*")


class Source(Spec):
    """A paper, in the version whose numbers are quoted."""

    title: str
    authors: tuple[str, ...]
    arxiv: str
    version: int = Field(ge=1)
    url: str = Field(pattern="^https://")
    license: str


class ReportedColumn(Spec):
    """What one column of a table holds."""

    quantity: str = Field(description="the leaderboard's name of it, where it has one")
    data: str
    metric: str
    unit: ReportedUnit
    site: str | None = None
    key: str | None = Field(default=None, description="class or patch")


class Derived(Spec):
    """A column that the paper does not print, but that follows from those it does."""

    quantity: str
    metric: str
    unit: ReportedUnit
    formula: str = Field(description="quantities of the same table with + and - between them")
    site: str | None = None


class Place(Spec):
    """Where in the paper something stands; what could not be looked up is absent."""

    place: str = Field(pattern=r"^(Table|Fig\.) [0-9]+$")
    section: str | None = None
    page: int | None = Field(default=None, ge=1)


class ReportedTable(Place):
    """A table as it is printed: one row per model card."""

    about: str
    columns: tuple[ReportedColumn, ...]
    rows: dict[str, tuple[Printed | None, ...]]
    derived: tuple[Derived, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> "ReportedTable":
        for model, cells in self.rows.items():
            if len(cells) != len(self.columns):
                raise ValueError(f"{model}: expected {len(self.columns)} cells, one per column, got {len(cells)}")
        names = [column.quantity for column in self.columns]
        for one in self.derived:
            for _, name in terms(one.formula):
                if names.count(name) != 1:
                    raise ValueError(f"{one.formula!r}: expected one column {name!r}, found {names.count(name)}")
        return self


class Finding(Place):
    """Something the paper says of its curves without printing a number."""

    data: str
    quantity: str
    says: str


class Paper(Spec):
    """One file of leaderboard/reported/."""

    source: Source
    tables: tuple[ReportedTable, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Reported:
    """One printed number, or one that follows from printed ones by `formula`."""

    source: str  # arXiv number and version
    url: str
    place: str
    section: str | None
    page: int | None
    model: str | None
    data: str
    quantity: str
    metric: str
    site: str | None
    key: str | None
    value: float
    unit: ReportedUnit
    digits: int  # behind the point, as printed
    derived: bool
    formula: str | None


def papers(folder: Path | None = None) -> tuple[Paper, ...]:
    """Every file of a folder, by name; SpecError tells what is wrong with one. The package's own without a folder."""
    folder = folder or data_folder() / "leaderboard" / "reported"
    if not folder.is_dir():
        raise MissingInput(f"{folder} is not there: this installation came without the numbers of the papers")
    documents = [strict_yaml.load(path) for path in sorted(folder.glob("*.yaml"))]
    return tuple(bound(Paper, one.value, one, {"folder": folder}) for one in documents)


def rows(paper: Paper) -> Iterator[Reported]:
    """The numbers of a paper: those printed, and after each model's those derived from them."""
    for table in paper.tables:
        for model, cells in table.rows.items():
            for column, cell in zip(table.columns, cells, strict=True):
                if cell is not None:
                    yield _row(paper, table, model, column, Decimal(cell))
            named = dict(zip((column.quantity for column in table.columns), cells, strict=True))
            for one in table.derived:
                values = [(sign, named[name]) for sign, name in terms(one.formula)]
                if all(value is not None for _, value in values):
                    total = sum((sign * Decimal(value) for sign, value in values if value), Decimal())
                    yield _row(paper, table, model, _column(table, one), total, one.formula)


def terms(formula: str) -> tuple[tuple[int, str], ...]:
    """`a - b + c` as signs and names; ValueError for anything else."""
    text = f"+ {formula.strip()} "
    found = tuple((1 if sign == "+" else -1, name) for sign, name in _TERM.findall(text))
    if not found or "".join(match.group() for match in _TERM.finditer(text)) != text:
        raise ValueError(f"{formula!r}: expected names with + and - between them")
    return found


def _column(table: ReportedTable, one: Derived) -> ReportedColumn:
    """The column that a derived one would be, of the data that its terms are of."""
    name = terms(one.formula)[0][1]
    data = next(column.data for column in table.columns if column.quantity == name)
    return ReportedColumn(quantity=one.quantity, data=data, metric=one.metric, unit=one.unit, site=one.site)


def _row(
    paper: Paper, table: ReportedTable, model: str, column: ReportedColumn, value: Decimal, formula: str | None = None
) -> Reported:
    return Reported(
        source=f"arXiv {paper.source.arxiv}v{paper.source.version}",
        url=paper.source.url,
        place=table.place,
        section=table.section,
        page=table.page,
        model=None if model == UNSTATED else model,
        data=column.data,
        quantity=column.quantity,
        metric=column.metric,
        site=column.site,
        key=column.key,
        value=float(value),
        unit=column.unit,
        digits=max(0, -int(value.as_tuple().exponent)),
        derived=formula is not None,
        formula=formula,
    )

"""What a task kind is given, and what it may ask of other cells.

A kind is a module with `class Params(Spec)`, `requires(params) -> names of tasks whose cells it reads` and
`run(job) -> Iterator[Measure]`. Kinds are imported to check specs, so they import torch only inside `run`. A kind may
also have `check(params, required)`, called before any model is loaded: SpecError for what the tasks that it reads tell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from segbench.errors import CellError, SpecError
from segbench.specs import DataSpec, TaskSpec
from segbench.store import Cell, Result
from segbench.team import Team
from segbench.types import Site

if TYPE_CHECKING:
    from segbench.adapters.base import Adapter


def _site_name(text: str) -> str:
    try:
        Site.parse(text)
    except SpecError as error:
        raise ValueError(str(error)) from error
    return text


SiteName = Annotated[str, AfterValidator(_site_name)]  # of a key in a kind's Params


@dataclass(frozen=True)
class Required:
    """A finished cell that this one reads."""

    params: Any  # the other task's Params
    result: Result


@dataclass(frozen=True)
class Job:
    """One (model, task) cell to be measured."""

    adapter: "Adapter"
    params: Any  # the kind's own Params
    cell: Cell  # where the cell keeps arrays, facts and checkpoints
    required: Mapping[str, Required]
    seed: int
    limit: int | None
    batch_size: int
    examples: int  # images whose predicted label maps are kept
    progress: Callable[[int, int, str], None]  # images done, images in all, what is being done
    team: Team = field(default_factory=Team)  # who measures it together


def peak_site(result: Result) -> Site:
    """The LLM block input with the highest mIoU of a probe cell (paper Table 2); the first one on a tie."""
    curve = {Site.parse(m.site): m.value for m in result.measures if m.metric == "miou" and m.site}
    layers = [site for site in curve if site.is_layer]
    if not layers:
        raise CellError(f"the probe cell of {result.model} on {result.task} holds no LLM layer")
    return max(layers, key=lambda site: (curve[site], -int(site.layer)))


def probed(name: str, required: Mapping[str, TaskSpec]) -> DataSpec:
    """The data set of the probe task that another task reads; SpecError if that task has none of its own."""
    data = required[name].data()
    if len(data) != 1:
        raise SpecError(f"probes: {name} is a {required[name].kind} task; name a probe task")
    return data[0]


def inherited(result: Result) -> dict[str, Any]:
    """What a cell that reads a probe cell records of its data: the cluster of every val image, and what is missing."""
    return {key: result.about[key] for key in ("clusters", "partial") if key in result.about}

"""Several processes started by torchrun: who does what, and how the first one learns what the others did."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segbench.cli.say import say
from segbench.errors import Lost, PartnerFailed, SegbenchError, SpecError
from segbench.records import digest
from segbench.team import Team

if TYPE_CHECKING:
    from segbench.planning import Item
    from segbench.runner import Outcome

Share = Literal["auto", "cells", "images"]


@contextlib.contextmanager
def team() -> Iterator[Team]:
    """The processes that torchrun started together with this one; this one alone, where it started none."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Team()
        return
    from segbench.distributed import Group

    group = Group(os.environ)
    try:
        yield group
    except PartnerFailed:
        raise
    except SegbenchError as error:
        with contextlib.suppress(Lost):
            group.fail(str(error))  # or the others would only learn that this process is gone
        raise
    group.close()


def device(name: str) -> str:
    """Every process's own GPU, where torchrun started several and the user named none."""
    local = os.environ.get("LOCAL_RANK")
    if local is None or name not in ("auto", "cuda"):
        return name
    import torch

    return f"cuda:{local}" if name == "cuda" or torch.cuda.is_available() else "cpu"


def shared(items: "Sequence[Item]", share: Share, together: Team, output: Path) -> "tuple[Sequence[Item], Team]":
    """The cells that this process measures, and with whom.

    Whole cells are best where there are enough of them: nothing has to be exchanged. SpecError unless all processes
    plan the same.
    """
    if together.size == 1:
        return items, together
    plans = together.exchange(digest([[*item.key, item.cell and item.cell.fingerprint] for item in items]).encode())
    if len(set(plans)) > 1:
        raise SpecError("the processes plan different cells: data, weights and --include must be the same for all")
    chains = _chains(items)
    left = together.agree([_left(chain) for chain in chains])
    if share == "cells" or (share == "auto" and len([images for images in left if images]) >= together.size):
        if together.first:
            say(f"{together.size} processes, each with models of its own")
        order = sorted(range(len(chains)), key=lambda number: -left[number])
        mine = order[together.rank :: together.size]
        return [item for number in mine for item in chains[number]], Team()
    from segbench.shared_store import SharedStore

    if together.first:
        say(f"{together.size} processes, each with a part of the images")
    store = SharedStore(output, together)
    ours = [(item, item.cell and store.cell(item.model.name, item.task.name, item.cell.fingerprint)) for item in items]
    return [replace(item, cell=cell) for item, cell in ours], together


def gathered(
    items: "Sequence[Item]", outcomes: "Sequence[Outcome]", together: Team, measured_by: Team
) -> "Sequence[Outcome]":
    """What became of all cells, in their order, in every process. The last that they have to tell each other."""
    outcomes = outcomes if measured_by is together else _told(items, outcomes, together)
    with contextlib.suppress(Lost):
        together.meet()  # whoever leaves an exchange first may break it for those who still read, but not this one
    return outcomes


def _told(items: "Sequence[Item]", outcomes: "Sequence[Outcome]", together: Team) -> "Sequence[Outcome]":
    from segbench.runner import Outcome

    rows = [[one.item.key, one.status, one.note, one.seconds, one.trace] for one in outcomes]
    told = {
        tuple(key): rest for part in together.exchange(json.dumps(rows).encode()) for key, *rest in json.loads(part)
    }
    found = []
    for item in items:
        status, note, seconds, trace = told[item.key]
        result = item.cell.result() if item.cell and status in ("done", "ran") else None
        found.append(Outcome(item, status, note, seconds, result, trace))
    return found


def _chains(items: "Sequence[Item]") -> "list[list[Item]]":
    """Cells that belong into one process: of one model and seed, as some read others and a model is loaded once."""
    chains: dict[tuple[str, int], list[Item]] = {}
    for item in items:
        chains.setdefault((item.model.name, item.seed), []).append(item)
    return list(chains.values())


def _left(chain: "Sequence[Item]") -> int:
    """Images of the cells that are not finished: about how much work there is."""
    return sum(sum(item.images.values()) for item in chain if item.cell and item.cell.state() != "done")

"""A store that several processes of one run write together: the first one writes, and all read."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segbench.errors import StoreError
from segbench.store import FAILURE, Cell, Store
from segbench.team import Team
from segbench.types import Measure


class SharedStore(Store):
    """The cells below a folder that all processes see."""

    def __init__(self, root: Path, team: Team) -> None:
        super().__init__(root)
        self.team = team

    def cell(self, model: str, task: str, fingerprint: str) -> Cell:
        """As in Store; every process has the same one."""
        return SharedCell(self.root, model, task, fingerprint, self.team)


class SharedCell(Cell):
    """One measurement that a team makes. What changes files is done by the first process alone."""

    def __init__(self, root: Path, model: str, task: str, fingerprint: str, team: Team) -> None:
        super().__init__(root, model, task, fingerprint)
        self.team = team

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """As in Cell: held by the first process for all."""
        with super().lock() if self.team.first else contextlib.nullcontext(False) as mine:
            yield self.team.agree(mine)

    def save_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """As in Cell."""
        if self.team.first:
            super().save_arrays(name, arrays)

    def save_checkpoint(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], part: str = "") -> None:
        """As in Cell."""
        if self.team.first:
            super().save_checkpoint(arrays, facts, part)

    def load_checkpoint(self, part: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """As in Cell; StoreError for a process that does not see what the first one sees."""
        found = super().load_checkpoint(part) if self.team.first else None
        if not self.team.agree(found is not None):
            return None
        found = found or super().load_checkpoint(part)
        if found is None:
            raise StoreError(
                f"process {self.team.rank} cannot read a checkpoint in {self.path}, which process 0 reads; "
                "--output must name a folder that all processes share"
            )
        return found

    def finish(self, header: Mapping[str, Any], measures: Sequence[Measure]) -> None:
        """As in Cell; the others see it when the team has met."""
        if self.team.first:
            super().finish(header, measures)

    def reopen(self) -> None:
        """As in Cell."""
        if self.team.first:
            super().reopen()

    def note(self, name: str, text: str) -> None:
        """As in Cell; why a process failed is told by itself."""
        if self.team.first or name == FAILURE:
            super().note(name, text)

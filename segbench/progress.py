"""How far a run is: a live display on a terminal, a plain line every 30 seconds anywhere else."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from segbench.planning import Item
from segbench.runner import Outcome

EVERY = 30.0  # seconds between plain lines

STYLES = {"done": "dim", "ran": "green", "failed": "bold red", "missing": "yellow", "blocked": "yellow", "busy": "cyan"}


class Pace:
    """Images per second and seconds left of one stretch of work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.restart("")

    def restart(self, what: str, images: int = 0) -> None:
        """Begin to count anew, from `images` that were done before."""
        self.what, self.images, self.total = what, images, 0
        self._first, self._begun = images, self._clock()

    def tell(self, images: int, total: int, what: str) -> None:
        """So many images of so many are done; another `what`, or fewer images than before, begins a new stretch."""
        if what != self.what or images < self.images:
            self.restart(what, images)
        self.images, self.total = images, total

    @property
    def rate(self) -> float:
        """Images per second since the stretch began; 0 where nothing can be said yet."""
        seconds = self._clock() - self._begun
        return (self.images - self._first) / seconds if seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest of the stretch takes at this rate."""
        return (self.total - self.images) / self.rate if self.rate > 0 else None

    def __str__(self) -> str:
        text = f"{self.what} {self.images}/{self.total} images"
        if self.rate:
            text += f", {self.rate:.0f} images/s" if self.rate >= 10 else f", {self.rate:.2g} images/s"
        return text if self.left is None else f"{text}, {duration(self.left)} left"


class Lines:
    """One line when a cell begins or ends, and one every 30 seconds between."""

    def __init__(self, cells: int, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._cells, self._write, self._clock = cells, write, clock
        self._pace = Pace(clock)
        self._number, self._name, self._last = 0, "", clock()

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def started(self, item: Item) -> None:
        self._number += 1
        self._name, self._last = name(item), self._clock()
        self._pace.restart("")

    def progress(self, images: int, total: int, what: str) -> None:
        self._pace.tell(images, total, what)
        if self._clock() - self._last >= EVERY:
            self._last = self._clock()
            self._write(f"[{self._number}/{self._cells}] {self._name}: {self._pace}")

    def ended(self, outcome: Outcome) -> None:
        self._write(f"[{self._number}/{self._cells}] {self._name}: {ending(outcome)}")


class Live:
    """A bar for all cells and a line for the current one."""

    def __init__(self, cells: int, console: Console) -> None:
        self._pace = Pace()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            TextColumn("{task.fields[pace]}", markup=False),
        )
        self._bars = Progress(*columns, console=console, transient=True)
        self._console = console
        self._all: TaskID = self._bars.add_task("cells", total=cells, pace=f"0/{cells}")
        self._current: TaskID = self._bars.add_task("", total=None, pace="")
        self._cells, self._number = cells, 0

    def __enter__(self) -> "Live":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, item: Item) -> None:
        self._number += 1
        self._pace.restart("")
        self._bars.update(self._current, description=name(item), total=None, completed=0, pace="")

    def progress(self, images: int, total: int, what: str) -> None:
        self._pace.tell(images, total, what)
        self._bars.update(self._current, total=total, completed=images, pace=str(self._pace))

    def ended(self, outcome: Outcome) -> None:
        self._bars.update(self._all, completed=self._number, pace=f"{self._number}/{self._cells}")
        line = Text(f"{name(outcome.item)}: ") + Text(ending(outcome), style=STYLES[outcome.status])
        self._console.print(line, soft_wrap=True)


def watcher(cells: int, process: int | None = None, silent: bool = False) -> AbstractContextManager[Lines | Live]:
    """The display that suits standard error, which several processes share line by line."""
    if silent:
        return Lines(cells, lambda line: None)
    if process is None and sys.stderr.isatty():
        return Live(cells, Console(stderr=True))
    before = "" if process is None else f"process {process} "
    return Lines(cells, lambda line: print(f"{before}{line}", file=sys.stderr, flush=True))


def name(item: Item) -> str:
    """How a cell is called in messages."""
    seed = f" seed {item.seed}" if item.seed else ""
    return f"{item.model.name} {item.task.name}{seed}"


def ending(outcome: Outcome) -> str:
    """What became of a cell, in a line."""
    took = f" in {duration(outcome.seconds)}" if outcome.status in ("ran", "failed") else ""
    return f"{outcome.status}{took}" + (f": {outcome.note.splitlines()[0]}" if outcome.note else "")


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 4 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

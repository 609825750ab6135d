import io
import re

import pytest
from rich.console import Console

from segbench import progress
from segbench.planning import Item
from segbench.runner import Outcome
from segbench.specs import ModelSpec, TaskSpec


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def item(model="tiny", task="probe", seed=0):
    spec = ModelSpec(name=model, adapter="llava")
    return Item(spec, TaskSpec.model_construct(name=task), seed, None, {})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7440, "2 h 4 min")]
)
def test_durations_are_told_in_two_units_at_most(seconds, text):
    assert progress.duration(seconds) == text


def test_pace_is_of_the_current_stretch_and_forgets_what_was_done_before():
    clock = Clock()
    pace = progress.Pace(clock)
    pace.tell(100, 400, "training")  # after a resumed run: these images are not of this stretch
    assert pace.left is None
    clock.now += 10
    pace.tell(150, 400, "training")
    assert (pace.rate, pace.left) == (5.0, 50.0)
    assert str(pace) == "training 150/400 images, 5 images/s, 50 s left"
    pace.tell(3, 20, "knockout")
    assert pace.left is None
    assert str(pace) == "knockout 3/20 images"


def test_without_a_terminal_there_is_a_line_every_thirty_seconds_and_one_at_the_end():
    clock, lines = Clock(), []
    display = progress.Lines(2, lines.append, clock)
    display.started(item())
    for images in range(70):
        clock.now += 1
        display.progress(images, 70, "training")
    assert len(lines) == 2
    assert re.fullmatch(r"\[1/2\] tiny probe: training \d+/70 images, 1 images/s, \d+ s left", lines[0])
    display.ended(Outcome(item(), "ran", seconds=70))
    display.started(item(seed=2))
    display.ended(Outcome(item(seed=2), "missing", "get it\nfrom there"))
    assert lines[2:] == ["[1/2] tiny probe: ran in 1 min 10 s", "[2/2] tiny probe seed 2: missing: get it"]


def test_the_live_display_takes_names_for_text_and_ends_clean():
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, no_color=True)
    display = progress.Live(1, console)
    with display:
        display.started(item(task="[red]x"))
        display.progress(3, 9, "training")
        display.ended(Outcome(item(task="[red]x"), "ran", seconds=4))
    assert "tiny [red]x: " in written.getvalue()
    assert "ran in 4 s" in written.getvalue()


def test_every_status_has_a_style():
    from typing import get_args

    from segbench.planning import Status

    assert set(progress.STYLES) == set(get_args(Status))

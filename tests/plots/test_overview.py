"""One picture with everything that was measured, and all pictures together."""

import pytest
from made_results import CAUSAL, make
from PIL import Image

from segbench import plots, registry
from segbench.plots import overview


def test_the_overview_tells_the_whole_story_in_the_same_bytes(pair, tmp_path):
    png, svg = first = overview.draw(pair, tmp_path / "a")
    again = overview.draw(pair[::-1], tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    text = svg.read_text()
    for words in (
        "(a) What a linear probe reads along the model",
        "(b) Blocking attention to ... (tiny-clip-causal)",
        "(c) Patch accuracy, tiny-clip-bidir minus tiny-clip-causal",
        "(d) One image",
        "recovery (pp)",
        "incorrect class",
        "truth",
    ):
        assert f">{words}<" in text
    assert 1550 <= Image.open(png).width <= 1650


@pytest.mark.parametrize(
    ("kinds", "examples", "there", "missing"),
    [
        (("probe",), 1, "(b) One image", "(c) "),
        (("probe", "knockout"), 0, "(b) Blocking", "(c) "),
    ],
)
def test_what_was_not_measured_leaves_its_part_out(tmp_path, kinds, examples, there, missing):
    _, svg = overview.draw(make(tmp_path, [CAUSAL], kinds, images=6, examples=examples), tmp_path)
    assert there in svg.read_text()
    assert missing not in svg.read_text()


def test_nothing_measured_draws_nothing(tmp_path):
    assert plots.draw_all([], tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folder_is_a_picture():
    assert registry.names("plots") == ["knockout", "layers", "overview", "starvation", "strips"]


def test_all_pictures_are_whole(probes, tmp_path):
    paths = plots.draw_all(probes[:1], tmp_path)
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert {path.stem.split("-")[0] for path in paths} == {"layers", "overview", "strips"}
    for path in paths:
        if path.suffix == ".png":
            Image.open(path).load()

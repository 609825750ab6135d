"""The picture of a token grid: lines where the grid map puts them, and grey where no patch sees anything."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from segbench import geometry, registry
from segbench.plots import base, tokens
from segbench.types import GridMap

IMAGE = (60, 90)
MAPS = {
    "squash": GridMap.squash((6, 6), IMAGE),
    "pad": geometry.pad((6, 6), IMAGE),
    "crop": geometry.crop((6, 6), IMAGE, 48),
    "border": GridMap((6, 6), IMAGE, (6.5 / 60, 6.5 / 90), (0.0, 0.0), (0, 0, 55, 83)),
}


@dataclass(frozen=True)
class View:
    title: str
    image: Image.Image
    grid_map: GridMap


def view(name: str) -> View:
    pixels = np.random.default_rng(0).integers(0, 200, (*IMAGE, 3), np.uint8)
    return View(name, Image.fromarray(pixels), MAPS[name])


def drawn(one: View):
    with base.canvas(4) as figure:
        axes = figure.add_subplot()
        tokens._draw(axes, one)
        return axes


@pytest.mark.parametrize("name", MAPS)
def test_a_pixel_lies_between_the_lines_of_the_patch_that_holds_it(name):
    axes, patch = drawn(view(name)), geometry.patch_index(MAPS[name])
    from matplotlib.collections import LineCollection

    grid = axes.collections[0]
    assert isinstance(grid, LineCollection)
    lines = np.array(list(grid.get_segments()))
    down, across = np.sort(lines[:7, 0, 1]), np.sort(lines[7:, 0, 0])
    for y, x in [(0, 0), (9, 30), (30, 44), (31, 46), (59, 60), (54, 82)]:
        row, column = np.searchsorted(down, y) - 1, np.searchsorted(across, x) - 1
        inside = 0 <= row < 6 and 0 <= column < 6
        assert patch[y, x] == (row * 6 + column if inside else -1), (y, x)


@pytest.mark.parametrize("name", MAPS)
def test_pixels_are_grey_exactly_where_no_patch_sees_them(name):
    one = view(name)
    shown, original = np.asarray(drawn(one).images[0].get_array()), np.asarray(one.image)
    grey = geometry.patch_index(one.grid_map) < 0
    assert (shown[~grey] == original[~grey]).all()
    assert (shown[grey] == shown[grey][:, :1]).all()
    assert grey.any() == (name in ("crop", "border"))


def test_the_corner_patches_bear_their_raster_index_and_padding_is_in_view():
    axes = drawn(view("pad"))
    numbers = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(numbers) == {"0", "5", "30", "35"}
    assert numbers["0"] == pytest.approx((7, -8))  # the padding is 15 pixels, the patches are 15 wide
    assert numbers["35"] == pytest.approx((82, 67))
    bottom, top = axes.get_ylim()
    assert top < -15.5 < 74.5 < bottom


def test_the_picture_is_written_whole_and_the_same_every_time(tmp_path):
    views = [view("crop"), view("squash")]
    paths = tokens.write(views, "tiny $x$", tmp_path / "a")
    again = tokens.write(views, "tiny $x$", tmp_path / "b")
    assert [path.name for path in paths] == ["tokens.png", "tokens.svg"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_it_is_no_picture_of_the_leaderboard():
    assert "tokens" not in registry.names("plots")

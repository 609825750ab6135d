"""One row of benchmarks/coverage.py, small: intervals hold the truth as often as they say, and mistaken ones do not."""

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
SKILLS = (0.0, -0.05, 0.04, 0.045)  # at encoder, adapter and two layers


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


def test_intervals_over_images_hold_the_truth_as_often_as_they_say(script):
    """400 data sets of 60 images: with 95 %, fewer than 92 % come once in 200 times, more than 98 % once in 600."""
    found = script["probes"](script["Population"]("small", 60, 12, 4.0, 0.5, skills=SKILLS), 400, 80_000)
    assert set(found) == {"mIoU at the encoder", "drop", "peak", "recovery"}
    for name, tally in found.items():
        assert 92 <= tally.coverage("segbench") <= 98.5, name
    assert found["mIoU at the encoder"].coverage("mistaken") < 50  # per-image scores are of something else
    assert found["drop"].coverage("mistaken") > 99  # unpaired
    assert found["recovery"].coverage("mistaken") > 99


def test_intervals_over_three_cities_hold_where_images_and_percentiles_do_not(script):
    cities = script["Population"]("cities", 90, 8, 5.0, 0.5, cities=(48, 31, 11), skills=SKILLS)
    found = script["probes"](cities, 300, 120_000)
    for name, tally in found.items():
        assert 89 <= tally.coverage("segbench") <= 98.5, name
        assert tally.coverage("percentiles") < 85, name
    assert found["mIoU at the encoder"].coverage("mistaken") < 75

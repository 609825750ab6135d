"""Bytes and seconds of every policy, by hand."""

import json
from dataclasses import replace

import pytest
from tiny_features import COSTS, SITES

from segbench.features.estimate import Costs, Load, Room, estimated


def test_bytes_and_seconds_are_those_of_the_arithmetic():
    load = Load(SITES, images=8, reads=100)
    found = {one.policy: one for one in estimated(load, COSTS, Room({"host": 5000}, 10**9))}
    told = {name: (one.bytes, one.seconds) for name, one in found.items()}
    assert told == {
        "memory": (8 * 450, 8),
        "sweep": (8 * (320 + 100 + 50), 8),
        "groups": (8 * 350, 8 * (0.25 + 1)),  # the encoder's alone, then the whole LLM
        "disk": (8 * (2 * 320 + 100), pytest.approx(8 + 8 * 320 * 2 / 1e3 + 108 * 320 * 2 / 1e3)),
        "stream": (0, 100),
    }
    assert [name for name, one in found.items() if one.fits] == ["disk", "stream"]


def test_costs_that_a_cell_recorded_are_read_again_and_those_of_a_config_have_no_seconds():
    assert Costs.of(json.loads(json.dumps(COSTS.facts()))) == COSTS
    untimed = replace(COSTS, forward=None)
    found = estimated(Load(SITES, images=8, reads=100), untimed, Room({"host": 5000}, 10**9))
    assert [one.seconds for one in found] == [None] * 5
    assert str(found[0]) == "memory: all sites in host memory, 3.6 kB of 5 kB free (does not fit)"

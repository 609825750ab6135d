"""All mistakes of a file are told, each at its line."""

import pytest
from written import task

from segbench.errors import SpecError


def test_all_mistakes_of_a_file_are_told_at_once_in_the_order_of_its_lines():
    with pytest.raises(SpecError) as error:
        task("kind: probe\ngroups: x\nprotocol:\n  lr: -1\n  colour: red\ndata: {name: scenes, val: 0}\n")
    places = [line.partition(": ")[0] for line in str(error.value).splitlines()]
    assert places == ["t.yaml:2", "t.yaml:4", "t.yaml:5", "t.yaml:6"]


def test_mistakes_beside_an_unknown_kind_are_told_with_it():
    with pytest.raises(SpecError) as error:
        task("kind: prob\ngroups: x\n")
    assert "did you mean 'probe'?" in str(error.value)
    assert "t.yaml:2: groups" in str(error.value)

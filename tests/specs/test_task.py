"""Tasks, whose own keys stand beside their kind's."""

import pytest
from written import task

from segbench.errors import SpecError


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: probe\n", "t.yaml:1: the key 'data' is missing"),
        ("kind: probe\ndata: scene\n", "t.yaml:2: data: 'scene' is not in segbench/data, did you mean 'scenes'?"),
        ("kind: probe\ndata: {name: scenes, sed: 3}\n", "t.yaml:2: data: unknown key 'sed', did you mean 'seed'?"),
        (
            "kind: probe\ndata: {path: x}\n",
            "t.yaml:2: data: expected the name of a data set, or a mapping with the key",
        ),
        ("kind: probe\ndata: scenes\nprotocol: {lr: fast}\n", "t.yaml:3: protocol.lr: expected a number, got 'fast'"),
        ("kind: probe\ndata: scenes\nprotocol: {epochs: 2.0}\n", "protocol.epochs: expected a whole number, got 2.0"),
        ("kind: probe\ndata: scenes\ngroup: [a]\n", "t.yaml:3: unknown key 'group', did you mean 'groups'?"),
        ("kind: probe\ndata: scenes\ngroups: [all]\n", "'all' is taken"),
        ("kind: 3\ndata: scenes\n", "t.yaml:1: kind: '3' is not in segbench/kinds"),
    ],
)
def test_a_mistake_in_a_task_is_told_with_line_key_and_what_was_expected(text, told):
    with pytest.raises(SpecError) as error:
        task(text)
    assert told in str(error.value)


def test_a_number_may_be_written_as_1e_3():
    assert task("kind: probe\ndata: scenes\nprotocol: {lr: 1e-3}\n").resolved()["protocol"]["lr"] == 0.001


def test_a_key_that_changes_no_number_is_no_part_of_the_identity():
    lines = ("", "features: sweep\n", "protocol: {epochs: 3}\n")
    plain, swept, longer = (task(f"kind: probe\ndata: {{name: scenes}}\n{line}") for line in lines)
    assert [one.resolved()["features"] for one in (plain, swept)] == ["auto", "sweep"]
    assert plain.identity() == swept.identity() != longer.identity()
    assert swept.published()["features"] == "sweep"

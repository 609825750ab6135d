"""The numbers of the papers: complete, consistent with each other, and kept apart from what was measured."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest

from segbench.errors import MissingInput, SpecError
from segbench.leaderboard import reported, table
from segbench.library import Library
from segbench.records import Record

WELL = """\
source: {title: T, authors: [A], arxiv: "1", version: 1, url: https://x.org, license: none}
tables:
  - place: Table 1
    about: something
    columns:
      - {quantity: a, data: d, metric: miou, unit: "%"}
      - {quantity: b, data: d, metric: miou, unit: pp}
    rows:
      m: ["1.20", "+0.3"]
    derived:
      - {quantity: c, metric: miou, unit: pp, formula: a - b}
"""


@pytest.fixture(scope="module")
def rows():
    return [row for paper in reported.papers() for row in reported.rows(paper)]


def numbers(rows, place, quantity):
    """By model and key."""
    return {(row.model, row.key): row for row in rows if (row.place, row.quantity) == (place, quantity)}


def test_every_table_is_whole(rows):
    printed = Counter(row.place for row in rows if not row.derived)
    assert printed == {"Table 1": 9 * 6, "Table 2": 4 * 6 + 2, "Table 3": 6 + 3 + 3, "Fig. 11": 9}
    assert Counter(row.quantity for row in rows if row.derived) == {"encoder": 6, "drop": 6}


def test_every_model_has_a_card(rows):
    cards = {model.name for model in Library().models()}
    assert {row.model for row in rows if row.model} <= cards
    assert {row.place for row in rows if row.model is None} == {"Fig. 11"}


def test_causal_and_bidirectional_give_the_same_encoder(rows):
    encoders = numbers(rows, "Table 2", "encoder")
    for family, value in {"clip": 34.38, "dinov2": 45.58, "siglip": 38.70}.items():
        pair = [encoders[f"llava15-{family}-{attention}", None] for attention in ("causal", "bidir")]
        assert [one.value for one in pair] == [value, value]
        assert all(one.derived and one.formula == "peak - delta_enc" and one.digits == 2 for one in pair)


def test_recovery_and_drop_follow_from_the_other_columns(rows):
    columns = {name: numbers(rows, "Table 2", name) for name in ("adapter", "peak", "recovery", "encoder", "drop")}
    for model, row in columns["recovery"].items():
        assert row.value == pytest.approx(columns["peak"][model].value - columns["adapter"][model].value, abs=1e-9)
        drop = columns["adapter"][model].value - columns["encoder"][model].value
        assert columns["drop"][model].value == pytest.approx(drop, abs=1e-9)


def test_the_gains_of_the_first_patches_follow_from_their_accuracies(rows):
    accuracy = numbers(rows, "Table 3", "patch_accuracy")
    gaps, gains = numbers(rows, "Table 3", "patch_gap"), numbers(rows, "Table 3", "patch_gain")
    for patch in "012":
        causal = accuracy["llava15-clip-causal", patch].value
        gap = accuracy["llava15-clip-bidir", patch].value - causal
        assert gaps["llava15-clip-bidir", patch].value == pytest.approx(gap, abs=1e-9)
        assert gains["llava15-clip-bidir", patch].value == pytest.approx(100 * gap / causal, abs=0.05)


def test_digits_are_kept_as_they_are_printed(rows):
    digits = {row.quantity: row.digits for row in rows}
    assert (digits["adapter"], digits["patch_gap"], digits["patch_gain"], digits["mme"]) == (2, 4, 1, 0)
    assert numbers(rows, "Table 2", "adapter")["llava15-dinov2-causal", None].digits == 2  # 42.90


def test_no_reported_number_can_stand_in_a_table_of_measured_ones(rows):
    with pytest.raises(AttributeError):
        table.build(rows)
    with pytest.raises(AttributeError):
        table.records(rows)
    names = {field.name for field in dataclasses.fields(reported.Reported)}
    assert not names & {"fingerprint", "seed", "low", "high", "count"}
    assert {"fingerprint", "low"} <= {field.name for field in dataclasses.fields(Record)}


@pytest.mark.parametrize(
    ("change", "line", "problem"),
    [
        (('["1.20", "+0.3"]', '["1.20"]'), 3, "m: expected 2 cells"),
        (('"1.20"', "1.20"), 9, "expected text"),
        (('"1.20"', '"1,20"'), 9, "pattern"),
        (("a - b", "a - x"), 3, "expected one column 'x', found 0"),
        (("a - b", "a * b"), 3, "expected names with + and -"),
        (("unit: pp}", "unit: points of percent}"), 7, "not one of"),
        (("about: something", "abuot: something"), 4, "did you mean 'about'?"),
        (("https://x.org", "javascript:x"), 1, "pattern"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(tmp_path, change, line, problem):
    right, wrong = change
    (tmp_path / "x.yaml").write_text(WELL.replace(right, wrong, 1))
    with pytest.raises(SpecError) as error:
        reported.papers(tmp_path)
    assert any(f"x.yaml:{line}" in one and problem in one for one in str(error.value).splitlines()), error.value


def test_derived_numbers_keep_the_most_digits(tmp_path):
    (tmp_path / "x.yaml").write_text(WELL)
    (paper,) = reported.papers(tmp_path)
    *_, derived = reported.rows(paper)
    assert (derived.quantity, derived.value, derived.digits, derived.derived) == ("c", 0.9, 2, True)


def test_an_installation_without_them_says_so(tmp_path):
    with pytest.raises(MissingInput, match="without the numbers"):
        reported.papers(tmp_path / "nowhere")


def test_reported_numbers_lie_apart_from_measured_ones():
    folder = Path(__file__).parents[2] / "leaderboard"
    text = "".join((folder / name).read_text() for name in ("leaderboard.csv", "leaderboard.md", "seeds.csv"))
    assert "2603.17228" not in text
    assert "llava15-siglip" not in text

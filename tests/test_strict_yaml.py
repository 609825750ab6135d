import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segbench import strict_yaml
from segbench.errors import SpecError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("Yes", "Yes"),
        ("on", "on"),
        ("true", True),
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        (".5", 0.5),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-03-18", "2026-03-18"),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("[1, no, 1e-3]", [1, "no", 1e-3]),
        ("{a: {b: ~}}", {"a": {"b": None}}),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    read = strict_yaml.parse(text, "t").value
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "t:3: key 'a' is written twice, first in line 1"),
        ("a: &x 1\nb: *x\n", "t:1: anchors and aliases"),
        ("a: !!python/name:os.system x\n", "t:1: tags"),
        ("a: 1\n---\nb: 2\n", "t:3: a second document"),
        ("a: 1\n3: x\n", "t:2: the key '3' is no text"),
        ("? [a]\n: b\n", "is no text"),
        ("a: .inf\n", "t:1: .inf is no finite number"),
        ("a: 1e999\n", "t:1: 1e999 is no finite number"),
        (f"a: {'9' * 200}\n", "t:1: a number of 200 digits"),
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("a: [1, 2\nb: 3\n", "t:2"),
        ("a: 1\n\tb: 2\n", "t:2"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text, told):
    with pytest.raises(SpecError) as error:
        strict_yaml.parse(text, "t")
    assert told in str(error.value)


def test_every_key_and_item_knows_its_line():
    document = strict_yaml.parse("a:\n  b: 1\n  c:\n  - x\n  - y: 2\n", "t")
    assert document.at(("a", "b")) == "t:2"
    assert document.at(("a", "c", 1, "y")) == "t:5"
    assert document.at(("a", "c", 1, "absent")) == "t:5"
    assert document.at(("absent",)) == "t:1"


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    (tmp_path / "long.yaml").write_text("a: x\n" + "#" * strict_yaml.MAX_BYTES)
    (tmp_path / "mark.yaml").write_text("\ufeffa: 1\n", encoding="utf-8")
    for name, told in [
        ("latin.yaml", "not UTF-8"),
        ("long.yaml", "longer than 256 KiB"),
        ("none.yaml", "No such file"),
    ]:
        with pytest.raises(SpecError, match=f"{name}: .*{told}"):
            strict_yaml.load(tmp_path / name)
    assert strict_yaml.load(tmp_path / "mark.yaml").value == {"a": 1}


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab1 -:#[]{}\"'|>&*!%@`?,~.\n\t\\e+0x\u2028é\x00", max_size=60))
def test_any_text_is_read_as_plain_data_or_refused_by_name(text):
    try:
        value = strict_yaml.parse(text, "t").value
    except SpecError as error:
        assert str(error).startswith("t")  # noqa: PT017 - most texts raise nothing
    else:
        assert _plain(value)


def _plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and _plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return type(value) in (str, int, float, bool, type(None))

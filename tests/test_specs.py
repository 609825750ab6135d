from pathlib import Path

import pytest

from segbench import specs, strict_yaml
from segbench.errors import SpecError
from segbench.library import Library

HERE = Path("/cards")


def model(text, overrides=None):
    return specs.read_model(strict_yaml.parse(text, "m.yaml"), HERE / "m.yaml", overrides)


def task(text):
    return specs.read_task(strict_yaml.parse(text, "t.yaml"), HERE / "t.yaml")


@pytest.mark.parametrize("entry", Library().entries(), ids=lambda entry: entry.name)
def test_every_yaml_that_is_shipped_is_right(entry):
    read = specs.read_model if entry.type == "model" else specs.read_task
    spec = read(entry.document, entry.path)
    assert spec.name == entry.path.stem


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("weights: ./w\n", "m.yaml:1: the key 'adapter' is missing"),
        ("adapter: llava\ndtyp: float16\n", "m.yaml:2: unknown key 'dtyp', did you mean 'dtype'?"),
        (
            "adapter: llava\ndtype: float61\n",
            "m.yaml:2: dtype: 'float61' is not one of float32, bfloat16, float16, auto, did",
        ),
        ("adapter: llava\nmask_swap: no\n", "m.yaml:2: mask_swap: expected true or false, got 'no'"),
        ("adapter: llava\nprompt: 3\n", "m.yaml:2: prompt: expected text (quote it if it is meant to be), got 3"),
        ("adapter: llava\nname: other\n", "m.yaml:2: name: a file's name is its registered name: 'm'"),
        (
            f"adapter: llava\nrevision: {'a' * 40}\n",
            "'revision' is a commit of the 'hub' repository, which is not given",
        ),
        ("adapter: llava\nhub: ../b\nrevision: x\n", "m.yaml:2: hub: expected ORG/NAME, got '../b'"),
        ("adapter: llava\nhub: a/b\nrevision: main\n", "m.yaml:3: revision: expected a commit of 40"),
        (
            f"adapter: llava\nweights: w\nhub: a/b\nrevision: {'a' * 40}\n",
            "'weights' and 'hub' are both given; keep one",
        ),
        ("[adapter]\n", "m.yaml:1: expected keys and values"),
    ],
)
def test_a_mistake_in_a_model_card_is_told_with_line_key_and_what_was_expected(text, told):
    with pytest.raises(SpecError) as error:
        model(text)
    assert told in str(error.value)


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


def test_a_number_may_be_written_as_1e_3():
    assert task("kind: probe\ndata: scenes\nprotocol: {lr: 1e-3}\n").params.protocol.lr == 0.001


def test_paths_are_meant_from_the_folder_of_their_file():
    assert model("adapter: llava\nweights: ../w\n").weights == Path("/w")
    (data,) = task("kind: probe\ndata: {name: folder, path: ./pictures}\n").data()
    assert data.params.path == Path("/cards/pictures")


def test_identity_and_what_is_published_hold_no_path():
    spec = task("kind: probe\ndata: {name: folder, path: ./pictures}\n")
    assert "pictures" in str(spec.resolved())
    assert "pictures" not in str(spec.identity())
    assert "pictures" not in str(spec.published())


def test_model_arguments_make_another_model_with_a_name_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    card = f"adapter: llava\nhub: a/b\nrevision: {'a' * 40}\n"
    changed = model(card, {"dtype": "bfloat16", "weights": "here/w"})
    assert (changed.dtype, changed.weights, changed.hub) == ("bfloat16", tmp_path / "here/w", None)
    assert changed.name == "m~dtype=bfloat16~weights=w"
    assert model(card, {"prompt": "a/b c"}).name == "m~prompt=a-b-c"
    for wrong, told in [({"name": "x"}, "its file's"), ({"dtyp": 1}, "did you mean 'dtype'"), ({"dtype": 3}, "dtype")]:
        with pytest.raises(SpecError, match=told):
            model(card, wrong)


@pytest.mark.parametrize("name", ["a b", "../a", "", "all", "é", ".a", "a" * 101])
def test_a_name_that_could_be_mistaken_for_something_else_is_refused(name):
    with pytest.raises(SpecError, match="is no name"):
        specs.read_model(strict_yaml.parse("adapter: llava\n", "x"), HERE / f"{name.replace('/', ':')}.yaml")


def test_a_limit_spreads_over_the_whole_split():
    data = specs.DataSpec.model_validate({"name": "scenes", "train": 9})
    few = data.load("train", 3)
    whole = data.load("train")
    assert [few[index].name for index in range(len(few))] == [whole[index].name for index in (0, 3, 6)]
    assert few.manifest != whole.manifest
    assert data.load("train", 9).manifest == whole.manifest
    with pytest.raises(IndexError):
        few[3]

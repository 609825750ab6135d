"""Model cards, and fields of them that are replaced."""

import pytest
from written import model

from segbench.errors import SpecError


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

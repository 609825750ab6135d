"""Paths, names, and what a spec says of itself."""

from pathlib import Path

import pytest
from written import HERE, model, task

from segbench import strict_yaml
from segbench.errors import SpecError
from segbench.specs import read_model


def test_paths_are_meant_from_the_folder_of_their_file():
    assert model("adapter: llava\nweights: ../w\n").weights == Path("/w")
    (data,) = task("kind: probe\ndata: {name: folder, path: ./pictures}\n").data()
    assert data.resolved()["path"] == "/cards/pictures"


def test_identity_and_what_is_published_hold_no_path():
    spec = task("kind: probe\ndata: {name: folder, path: ./pictures}\n")
    assert "pictures" in str(spec.resolved())
    assert "pictures" not in str(spec.identity())
    assert "pictures" not in str(spec.published())


@pytest.mark.parametrize("name", ["a b", "../a", "", "all", "é", ".a", "a" * 101])
def test_a_name_that_could_be_mistaken_for_something_else_is_refused(name):
    with pytest.raises(SpecError, match="is no name"):
        read_model(strict_yaml.parse("adapter: llava\n", "x"), HERE / f"{name.replace('/', ':')}.yaml")

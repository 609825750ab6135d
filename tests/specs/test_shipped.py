"""Every YAML file that comes with segbench can be read."""

import pytest

from segbench.library import Library
from segbench.specs import read_model, read_task


@pytest.mark.parametrize("entry", Library().entries(), ids=lambda entry: entry.name)
def test_every_yaml_that_is_shipped_is_right(entry):
    read = read_model if entry.type == "model" else read_task
    spec = read(entry.document, entry.path)
    assert spec.name == entry.path.stem

"""One tiny adapter and five drawn scenes."""

import pytest
import tiny_models

from segbench.adapters import base
from segbench.data import scenes


@pytest.fixture(scope="session")
def adapter(tmp_path_factory):
    return base.load(tiny_models.spec(tiny_models.write(tmp_path_factory.mktemp("tiny"))), "cpu")


@pytest.fixture
def dataset():
    return scenes.load(scenes.Params(train=5, val=1, size=(48, 60)), "train")

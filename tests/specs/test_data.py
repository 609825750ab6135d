"""A data set that is named in a task."""

import pytest

from segbench.specs import DataSpec


def test_a_limit_spreads_over_the_whole_split():
    data = DataSpec.model_validate({"name": "scenes", "train": 9})
    few = data.load("train", 3)
    whole = data.load("train")
    assert [few[index].name for index in range(len(few))] == [whole[index].name for index in (0, 3, 6)]
    assert few.manifest != whole.manifest
    assert data.load("train", 9).manifest == whole.manifest
    with pytest.raises(IndexError):
        few[3]

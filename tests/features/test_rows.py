"""States at rest on a disk."""

import resource

import pytest
import torch

from segbench.errors import CellError
from segbench.features.rows import OnDisk


def test_a_disk_that_is_full_is_told_with_what_is_missing(tmp_path):
    states = torch.zeros(4, 1024, 64)  # a MB
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    rows = OnDisk(tmp_path / "train-llm.2.raw", 12)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, before[1]))
    try:
        rows.add(states)
        rows.add(states)
        with pytest.raises(CellError, match=r"train-llm\.2: 9 of 12 images were written, 786 kB are missing"):
            rows.add(states)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_lies_on_disk_comes_back_bit_by_bit(tmp_path, dtype):
    states = torch.randn(3, 5, 7).to(dtype)
    rows = OnDisk(tmp_path / "x.raw", 5)
    rows.add(states)
    rows.add(states[:2, :4])
    rows.finish()
    for one in (rows, OnDisk.found(tmp_path / "x.raw", 5)):
        assert one is not None
        assert torch.equal(torch.stack([one[i] for i in range(3)]), states)
        assert torch.equal(one[4], states[1, :4])
    assert OnDisk.found(tmp_path / "y.raw", 5) is None

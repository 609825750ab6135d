"""Bytes are counted from shapes, and are those of the tensors."""

import tiny_models
from examined import examine
from safetensors.torch import load_file

from segbench import registry
from segbench.adapters.base import Adapter
from segbench.adapters.report import grid


def test_bytes_are_those_of_the_features_that_are_read(folders):
    found = examine(folders["siglip"])
    adapter: Adapter = registry.module("adapters", "llava").load(tiny_models.spec(folders["siglip"]), "cpu")
    features = adapter.read(adapter.prepare([grid.example()]), adapter.known_sites())
    nbytes = {str(site): feature.numel() * feature.element_size() for site, feature in features.items()}
    rows = {(row.first, row.last): row for row in found.sites}
    ends = [("encoder", "encoder"), ("adapter", "adapter"), ("llm.1", "llm.4"), ("llm.norm", "llm.norm")]
    assert list(rows) == [*ends, ("llm.0.key", "llm.3.key"), ("llm.0.value", "llm.3.value")]
    for (first, last), row in rows.items():
        assert row.bytes == nbytes[first] == nbytes[last]
    residual = sum(nbytes[str(site)] for site in adapter.sites())
    assert found.memory.held == 1000 * residual
    assert found.memory.batches["8"] == 8 * found.memory.batches["1"] > 8 * residual
    assert found.memory.weights == sum(one.numel() * 4 for one in load_file(*folders["siglip"].glob("*.s*")).values())

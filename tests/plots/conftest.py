"""What the pictures are drawn from: a made-up pair, once for all tests."""

import pytest
from made_results import BIDIR, CAUSAL, make

pytest.importorskip("matplotlib")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Every kind of cell of a causal model and its bidirectional twin."""
    return make(tmp_path_factory.mktemp("store"), [CAUSAL, BIDIR], images=12, examples=1)


@pytest.fixture(scope="session")
def probes(pair):
    return [one for one in pair if one.kind == "probe"]

"""A library of this checkout's sources, compiled once for all tests that want one."""

import pytest

from segbench.kernels import build


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / build.LIBRARY.name
    try:
        build.build(path)
    except build.BuildError as error:
        pytest.skip(f"the compiled kernels are not tested: {error}")
    return path

"""A library of this checkout's sources, compiled once for all tests that want one."""

import pytest

from segbench.kernels import build, compiled


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / build.LIBRARY.name
    try:
        build.build(path)
    except build.BuildError as error:
        pytest.skip(f"the compiled kernels are not tested: {error}")
    return path


@pytest.fixture(scope="module", params=build.TARGETS)
def target_kernels(request, library):
    try:
        return compiled.load(library, request.param)
    except compiled.NotCompiled:
        pytest.skip(f"this machine cannot run {request.param}")

"""Tiny checkpoints to report on; written to by no test."""

from pathlib import Path

import pytest
import tiny_models


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {tower: tiny_models.write(tmp_path_factory.mktemp(tower), tower) for tower in tiny_models.TOWERS}

"""The zoo, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_formats import make


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m tests.real_formats.make`` builds. Nobody writes in it."""
    return make.make(tmp_path_factory.mktemp("formats") / "zoo")

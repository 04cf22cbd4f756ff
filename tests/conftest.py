"""One smoke run of the real command, shared by all who look at it."""

from pathlib import Path

import pytest

from tests.stages.conftest import smoke


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    done = smoke(out, "--traceback")
    assert done.returncode == 0, done.stdout + done.stderr
    return out

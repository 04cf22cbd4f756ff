"""What several parts share: a look at the tools that tests ask for, one smoke run of each recipe, and
fp64 where networks insist on fp32."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cosmos_distill.data.packages import CACHE_VARIABLE, cache_folder
from tests import lanes, rounding
from tests.run.commands import ENV, PREDICT25, smoke


def pytest_configure(config: pytest.Config) -> None:
    """What is remembered of tests' files is none of the user's; packaged files are large and never change."""
    os.environ[CACHE_VARIABLE] = ENV[CACHE_VARIABLE] = str(cache_folder())
    cache = tempfile.TemporaryDirectory(prefix="cosmos-distill-cache-")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = ENV["XDG_CACHE_HOME"] = cache.name


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    lanes.require_marked(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with rounding.by_shapes():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted smoke run."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    done = smoke(out, "--traceback")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def finished_predict25(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted smoke run of the other recipe."""
    out = tmp_path_factory.mktemp("predict25") / "run"
    done = smoke(out, "--traceback", recipe=PREDICT25)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def exact(monkeypatch):
    """Lift the fp32 islands of both sides to fp64, to compare formulas rather than their rounding."""
    arange, norm = torch.arange, torch.linalg.vector_norm
    to_float, to = torch.Tensor.float, torch.Tensor.to

    def wide_arange(*args, dtype=None, **kwargs):
        return arange(*args, dtype=torch.float64 if dtype == torch.float32 else dtype, **kwargs)

    def wide_norm(x, *args, dtype=None, **kwargs):
        return norm(x, *args, **kwargs)

    def wide_to(x, *args, **kwargs):
        return x if x.dtype == torch.float64 and args == (torch.float32,) else to(x, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", wide_to)
    monkeypatch.setattr(torch, "arange", wide_arange)
    monkeypatch.setattr(torch.linalg, "vector_norm", wide_norm)
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float(x))

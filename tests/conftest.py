"""What several parts share: a look at the tools that tests ask for, one smoke run of each recipe, which files
come first, and fp64 where networks insist on fp32."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cosmos_distill.data.packages import CACHE_VARIABLE, cache_folder
from tests import lanes, rounding
from tests.run.commands import ENV, PREDICT25, RECIPE, smoke


def pytest_configure(config: pytest.Config) -> None:
    """What is remembered of tests' files is none of the user's; packaged files are large and never change."""
    os.environ[CACHE_VARIABLE] = ENV[CACHE_VARIABLE] = str(cache_folder())
    cache = tempfile.TemporaryDirectory(prefix="cosmos-distill-cache-")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = ENV["XDG_CACHE_HOME"] = cache.name


LONGEST = (
    "ops/gpu/test_triton_aot.py",
    "test_packaging.py",
    "ops/triton/test_interpreter.py",
    "fields/test_every_field.py",
    "robustness/test_kills.py",
    "robustness/test_artefacts.py",
    "parallel/test_launch.py",
    "parallel/test_layouts.py",
    "parallel/test_data.py",
)
"""Files that are worth half a minute or more: begun last, they would leave the other process without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first. Needs ``--no-loadscope-reorder`` where processes share the files."""
    place = {name: number for number, name in enumerate(LONGEST)}
    here = Path(__file__).parent
    items.sort(key=lambda item: place.get(_under(item.path, here), len(place)))


def _under(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    lanes.require_marked(item)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with rounding.by_shapes():
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an uninterrupted smoke run, to be read only: all processes of these tests share it."""
    return _run_once(tmp_path_factory, RECIPE)


@pytest.fixture(scope="session")
def finished_predict25(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the other recipe."""
    return _run_once(tmp_path_factory, PREDICT25)


def _run_once(factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """The folder, made by whichever process of the tests is the first to need it."""
    shared = factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else factory.getbasetemp()
    out, complete = shared / f"{recipe.stem} smoke", shared / f"{recipe.stem} is complete"
    with (shared / f"{recipe.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            done = smoke(out, "--traceback", recipe=recipe)
            assert done.returncode == 0, done.stdout + done.stderr
            complete.touch()
    return out


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in this process scores as those of ``finished`` did."""
    from tests.run.quick import CONSTANTS

    for module, name, value in CONSTANTS:
        monkeypatch.setattr(module, name, value)


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

"""A tool that is missing is told of, and fails the tests that need it where every lane is to run: as in CI,
which brings the tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import lanes

ROOT = Path(__file__).resolve().parents[1]
# Skips for other reasons than a missing tool.
OTHER_SKIPS = {
    "tests/lanes.py",
    "tests/test_lanes.py",
    "tests/data/test_container.py",  # codecs that a build of FFmpeg lacks
    "tests/data/test_images.py",  # formats that a build of Pillow lacks
    "tests/ops/test_builds.py",  # processors that one build serves
    "tests/ops/test_compile.py",  # instructions for which inductor compiles nothing
    "tests/ops/test_instructions.py",  # counts of other processors and compilers
    "tests/ops/test_library.py",  # operators to which a test does not apply
    "tests/ops/test_registration.py",
    "tests/ops/triton/test_interpreter.py",  # in the interpreter itself
    "tests/vision/test_segments.py",  # torchvision, which has no build for every build of torch
}


@pytest.fixture
def anvil(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a tool that nobody has."""
    monkeypatch.setitem(lanes.TOOLS, "anvil", (lambda: None, "no anvil: buy one"))
    return "anvil"


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_a_tool_a_test_is_skipped(anvil: str, value: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(lanes.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(lanes.VARIABLE, value)
    with pytest.raises(pytest.skip.Exception, match="no anvil: buy one"):
        lanes.require(anvil)


def test_where_every_lane_is_to_run_it_fails(
    anvil: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    monkeypatch.setenv(lanes.VARIABLE, "1")
    with pytest.raises(pytest.fail.Exception, match=f"no anvil: buy one .*{lanes.VARIABLE}"):
        lanes.require(anvil)
    lanes.require_marked(request.node)
    request.node.add_marker(pytest.mark.needs(anvil))
    with pytest.raises(pytest.fail.Exception, match="no anvil"):
        lanes.require_marked(request.node)


def test_marks_are_looked_at_before_a_test_runs(tmp_path: Path):
    """In a run of the project's own, whose first test is made to need the tool."""
    test = "tests/ops/gpu/test_cuda_aot.py::test_nvcc_is_found_among_the_packages_of_pypi"
    hook = "import pytest\nfrom tests import lanes\nlanes.TOOLS['anvil'] = (lambda: 0, 'no anvil')\n"
    hook += "def pytest_collection_modifyitems(items):\n    items[0].add_marker(pytest.mark.needs('anvil'))\n"
    (tmp_path / "without_anvil.py").write_text(hook)
    paths = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "python")])
    environment = {**os.environ, lanes.VARIABLE: "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-p", "without_anvil", test]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 1 and "no anvil" in done.stdout and "1 error" in done.stdout, done.stdout


def test_no_test_is_skipped_past_this():
    skip = re.compile(r"pytest\.(skip\b|importorskip|mark\.skip)")
    files = (ROOT / "tests").rglob("*.py")
    found = {str(path.relative_to(ROOT)) for path in files if skip.search(path.read_text(encoding="utf-8"))}
    assert found == OTHER_SKIPS


STUBS = {
    "id": "echo 0",
    "make": 'test "$COSMOS_DISTILL_EVERY_LANE" = 1',
    "apt-get": 'test "$DEBIAN_FRONTEND" = noninteractive',
}


@pytest.mark.parametrize("bare", [True, False])
def test_ci_brings_what_is_missing_and_nothing_else(bare: bool, tmp_path: Path):
    """On a machine of commands that do nothing but write down how they were called."""
    bin_, venv = tmp_path / "bin", tmp_path / ".venv/bin"
    for folder in (bin_, venv, tmp_path / ".ci"):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    for tool in ("bash", "dirname"):
        (bin_ / tool).symlink_to(str(shutil.which(tool)))
    stubs = {bin_ / name: body for name, body in STUBS.items()}
    stubs |= {} if bare else dict.fromkeys((bin_ / "g++", bin_ / "valgrind", bin_ / "cmake"), "")
    # Asked which packages to install, Python names one or none.
    stubs[venv / "python"] = '[ "$1" != -c ] || echo ' + ("nvcc==1" if bare else "")
    for path, body in stubs.items():
        path.write_text(f'#!/bin/bash\n[ "$1" = -c ] || echo "${{0##*/}} $*" >> {tmp_path}/log\n{body}\n')
        path.chmod(0o755)
    environment = {"PATH": str(bin_)}
    subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env=environment, check=True, timeout=60)
    calls = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("id ")]
    installed = ["apt-get -qq update", "apt-get -qq install --yes g++ valgrind cmake"] if bare else []
    nvcc = ["python -m pip install --quiet nvcc==1"] if bare else []
    assert calls == [*installed, "make setup", *nvcc, "make .venv/docs", "make test"]

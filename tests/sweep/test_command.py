"""A sweep of real runs: what they share is made once, the same command goes on, the page shows the result."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cosmos_distill.cli import main
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.sweep import running
from tests.run.commands import RECIPE

pytestmark = pytest.mark.needs("measures' weights")
SWEEP = ["sweep", str(RECIPE), "--scale", "smoke"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """Two runs that differ in their last stage."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        assert (
            main([*SWEEP, "--vary", "stages.export.precision=fp32,bf16", "--jobs", "2", "--out", str(out)])
            == 0
        )
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
    return out


def test_stages_in_common_are_made_once(swept):
    first, second = (
        swept / "runs" / run["folder"] for run in json.loads((swept / "sweep.json").read_text())["runs"]
    )
    for stage in ("generate", "kd", "dmd2", "evaluate"):
        a, b = (Manifest.read(run / stage) for run in (first, second))
        assert a == b and a.attempts == 1
        files = [p.relative_to(first) for p in (first / stage).rglob("*") if p.is_file()]
        assert files and all(os.path.samefile(first / f, second / f) for f in files)
    sizes = [(run / "export" / "student.safetensors").stat().st_size for run in (first, second)]
    assert sizes[1] < 0.6 * sizes[0]
    assert all((run / "report.html").is_file() for run in (first, second))


def test_its_data_and_page_say_what_was_found(swept):
    found = json.loads((swept / "sweep.json").read_text())
    assert found["schema"] == 1 and found["metric"] == "mmd" and found["who"] == "student"
    one, other = found["settings"]
    assert one["score"]["value"] == other["score"]["value"] > 0
    assert other["behind"]["value"] == 0 and one["left_out"] is None
    assert found["best"]["options"].startswith("--stages.export.precision ")
    assert {v["runs"] for v in found["effects"]["--stages.export.precision"].values()} == {1}
    assert sorted(len(run["shared"]) for run in found["runs"]) == [0, 4]
    page = (swept / "sweep.html").read_text()
    assert found["best"]["options"] in page and all(run["folder"] in page for run in found["runs"])


def test_the_same_command_goes_on_and_another_is_refused(swept, monkeypatch, capsys):
    monkeypatch.setattr(running, "_Process", lambda *args: pytest.fail("a run that is complete was started"))
    same = [*SWEEP, "--vary", "stages.export.precision=fp32,bf16", "--out", str(swept)]
    assert main(same) == 0
    assert len(json.loads((swept / "sweep.json").read_text())["runs"]) == 2
    assert main([*same, "--metric", "kid"]) == 2
    assert "holds another sweep (metric 'mmd')" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "varies something"),
        (["--vary", "stages.dmd2.method.gan-weight=-1,0"], "gan-weight"),
        (["--vary", "stages.nowhere.lr=1,2"], "nowhere"),
        (["--vary", "stages.dmd2.method.student.lr=1e-5,1e-05"], "lr=1e-5 and lr=1e-05 are the same run"),
        (["--vary", "stages.evaluate.metrics=fid,kid"], "are the same run"),
        (["--vary", "stages.dmd2.method.gan-weight=1,2", "--metric", "mdm"], "did you mean mmd"),
        (["--vary", "stages.dmd2.method.gan-weight=1,2", "--who", "nobody"], "the recipe compares"),
        (["--vary", "stages.dmd2.method.gan-weight=1,2", "--rungs", "2"], "fall to 1"),
        (["--vary", "stages.dmd2.method.gan-weight=1,2", "--seeds", "0"], "seeds"),
    ],
)
def test_what_cannot_work_is_refused_before_any_run(options, said, tmp_path, capsys):
    try:
        status = main([*SWEEP, *options, "--out", str(tmp_path / "out")])
    except SystemExit as error:
        status = error.code
    said_all = capsys.readouterr()
    assert status == 2 and said in " ".join((said_all.err + said_all.out).replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert main([*SWEEP, "--vary", "seed=1,2", "--out", str(tmp_path)]) == 2
    assert "something else than a sweep" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, monkeypatch):
    """Both settings end at once with an error: the second is tried all the same, and each says why."""

    class Process:
        began = 0.0

        def __init__(self, command, threads, log):
            log.write_text("╭─ failed ─╮\n│ no room for it │\n╰──────────╯\n")
            self.returncode = None

        def poll(self):
            self.returncode = 1
            return 1

    monkeypatch.setattr(running, "_Process", Process)
    out = tmp_path / "out"
    assert main([*SWEEP, "--vary", "stages.dmd2.method.gan-weight=0,1e-3", "--out", str(out)]) == 1
    found = json.loads((out / "sweep.json").read_text())
    assert found["best"] is None and len(found["runs"]) == 2
    assert all("exit status 1: no room for it" in run["error"] for run in found["runs"])
    assert "no room for it" in (out / "sweep.html").read_text()


def test_a_stop_reaches_every_run_and_waits_for_it(tmp_path, monkeypatch, capsys):
    """As Ctrl-C has it: the runs are asked to stop, and the sweep says how to go on."""
    asked = []

    class Process:
        began, returncode = 0.0, None

        def __init__(self, command, threads, log):
            os.kill(os.getpid(), signal.SIGINT)

        def poll(self):
            return None

        def terminate(self):
            asked.append("terminate")

        def wait(self, timeout=None):
            asked.append("wait")

    monkeypatch.setattr(running, "_Process", Process)
    out = tmp_path / "out"
    assert main([*SWEEP, "--vary", "stages.dmd2.method.gan-weight=0,1e-3", "--out", str(out)]) == 130
    assert asked == ["terminate", "wait"]
    assert "the same command goes on" in " ".join(capsys.readouterr().err.replace("│", " ").split())

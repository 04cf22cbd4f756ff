"""Files of a finished run that are lost, damaged or newer: the same command makes them again, or says in one
sentence what to do, which then works."""

import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from rich.console import Console

from cosmos_distill import cli
from cosmos_distill.config import Parallel, Stage
from cosmos_distill.data import index
from cosmos_distill.errors import Refusal
from cosmos_distill.eval.page import _picture
from cosmos_distill.run import inputs, runner
from cosmos_distill.run.manifest import RECORD, Output
from cosmos_distill.run.runner import Run, run_recipe
from cosmos_distill.stages import evaluate
from tests.robustness import kills
from tests.robustness.artefacts import DAMAGES, KINDS, STAGES, find, obey
from tests.run.commands import RECIPE

REMADE = {
    "manifest of generate": "generate", "manifest of kd": "kd", "manifest of dmd2": "dmd2",
    "manifest of evaluate": "evaluate", "manifest of export": "export",
    "first pairs": "generate", "last pairs": "generate",
    "student of kd": "kd", "student of dmd2": "dmd2",
    "scores": "evaluate", "picture of the evaluation": "evaluate", "exported student": "export",
}  # fmt: skip
"""What is looked at when all is complete -> the stage that makes it again."""
HANDED_ON = {"student of kd", "student of dmd2", "scores", "picture of the evaluation", "exported student"}


class Ran(Exception):
    """A stage was about to run."""


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artefacts") / "run"
    shutil.copytree(finished, out)
    return out


def first_stage(out: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which stage the same command would run first; empty if none."""

    def load(stage: Stage, parallel: Parallel) -> Callable[[str, Stage, Run, Path], Output]:
        def stop(name: str, *rest: object) -> Output:
            raise Ran(name)

        return stop

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_load", load)
        patch.setattr("cosmos_distill.run.report.write", lambda *_: None)
        recipe = cli.load(RECIPE).recipe(scale="smoke")
        try:
            run_recipe(recipe, out, recipe_file=RECIPE, console=Console(quiet=True))
        except Ran as ran:
            return str(ran)
        return ""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_leads_somewhere(
    kind: str, damage: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = find(run, kind)
    before = {p: p.read_bytes() for p in [path, *(run / name / "manifest.json" for name in STAGES)]}
    try:
        DAMAGES[damage](path)
        try:
            found = first_stage(run, monkeypatch)
            # A bit of a pair is found when the pair is read: see below.
            late = kind in ("first pairs", "last pairs") and damage == "flipped"
            assert found == ("" if late else REMADE.get(kind, ""))
            assert not (kind in HANDED_ON and damage != "deleted"), "overwritten unasked"
        except Refusal as error:
            out = tmp_path / "run"
            shutil.copytree(run, out)
            deleted = obey(str(error).replace(str(run), str(out)), out)
            assert deleted[0] in (out / KINDS[kind], (out / KINDS[kind]).parent)
            assert first_stage(out, monkeypatch) == REMADE[kind]
            assert kind in HANDED_ON or damage in ("newer", "flipped")
    finally:
        for file, content in before.items():
            file.write_bytes(content)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "events"]
)  # without which training goes on
def test_a_folder_in_the_place_of_a_file(kind: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end the run where the file is written, after all the work: it is refused before any."""
    path = find(run, kind)
    before = {p: p.read_bytes() for p in [path, *(run / name / "manifest.json" for name in STAGES)]}
    path.unlink()
    path.mkdir()
    try:
        with pytest.raises(Refusal, match=f"{KINDS[kind]} is a folder now: remove it"):
            first_stage(run, monkeypatch)
        path.rmdir()
        assert first_stage(run, monkeypatch) == REMADE.get(kind, "")
    finally:
        for file, content in before.items():
            file.write_bytes(content)


@pytest.mark.parametrize(
    "folder", ["generate/pairs", "kd/checkpoints", "dmd2/grids", "evaluate/samples", "kd"]
)
@pytest.mark.parametrize("linked", [False, True], ids=["file", "link to nowhere"])
def test_a_file_in_the_place_of_a_folder(
    folder: str, linked: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / folder
    kept = path.rename(tmp_path / "kept")
    try:
        path.symlink_to(tmp_path / "nowhere") if linked else path.touch()
        with pytest.raises(Refusal, match=rf"{folder} is a file now, or leads nowhere: remove it"):
            first_stage(run, monkeypatch)
    finally:
        path.unlink()
        kept.rename(path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lock"])  # which is opened both ways
def test_nobody_waits_for_a_pipe(
    kind: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of any file: it is named, or made again."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    path = find(out, kind)
    path.unlink()
    os.mkfifo(path)
    with unread(path):
        if kind == "drawn clips":
            assert evaluate._missing(path.parents[1], "teacher", [(0, 32)]) == [(0, 32)]
        elif kind in ("page", "report", "last picture", "picture of the evaluation"):
            assert _picture("here", path)["why"]
        else:
            try:
                first_stage(out, monkeypatch)
            except Refusal as refusal:
                assert path.name in str(refusal)


@pytest.mark.parametrize("file", ["clips of a stage", "index of a folder"])
def test_nobody_waits_for_a_pipe_beside_them(file: str, tmp_path: Path) -> None:
    pipe = tmp_path / RECORD
    os.mkfifo(pipe)
    with unread(pipe):
        if file == "clips of a stage":
            with pytest.raises(Refusal, match="named pipe"):
                inputs._record(tmp_path)
        else:
            assert index._load(pipe) == {}


@contextmanager
def unread(pipe: Path) -> Iterator[None]:
    """Nobody opens ``pipe`` to read it, which would wait for ever: who does finds it empty, and is named."""
    over, readers = threading.Event(), []

    def look() -> None:
        while not over.wait(0.02):
            with suppress(OSError):  # nobody reads, or it is gone
                handle = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
                if stat.S_ISFIFO(os.fstat(handle).st_mode):
                    readers.append(pipe)
                os.close(handle)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not readers


def go(out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = cli.main([str(RECIPE), "--scale", "smoke", "--out", str(out)])
    return status, capsys.readouterr().err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_a_file_of_every_kind_at_once(
    damage: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for kind in KINDS:
        # What no later stage needs, and nothing looks at, is not made again. A folder is still known as a run
        # by its lock: without any such file it is somebody's, and refused.
        if "log" not in kind and kind not in ("events", "last picture", "lock"):
            DAMAGES[damage](find(out, kind))
    for _ in range(len(KINDS)):
        status, said = go(out, capsys)
        if status == cli.OK:
            break
        assert status == cli.REFUSED and "Traceback" not in said, said
        obey(said, out)
    assert status == cli.OK
    found, whole = kills.results(out), kills.results(finished)
    assert {n for n in whole.keys() | found.keys() if whole.get(n) != found.get(n)} <= {
        "dmd2/checkpoints/step_000000020/ema_student/shard-00001.safetensors"
    }


@pytest.mark.usefixtures("quick")
def test_pairs_that_are_found_damaged_while_they_are_read(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    DAMAGES["flipped"](find(out, "last pairs"))
    shutil.rmtree(out / "kd")
    status, said = go(out, capsys)
    assert status == cli.REFUSED and "checksum differs" in " ".join(said.replace("│", " ").split())
    assert obey(said, out) == [out / KINDS["last pairs"]]
    assert go(out, capsys)[0] == cli.OK
    assert kills.results(out) == kills.results(finished)


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_checkpoints_of_a_stage_under_way(
    damage: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is left out for an older one; where none is usable, what to delete is said."""
    from cosmos_distill.train.checkpoint import CheckpointError, Store

    folder = tmp_path / "checkpoints"
    shutil.copytree(finished / "kd" / "checkpoints", folder)
    for name in ("index.json", "state.json", "network_student/shard-00001.safetensors"):
        shutil.rmtree(folder)
        shutil.copytree(finished / "kd" / "checkpoints", folder)
        steps = sorted(folder.iterdir())
        DAMAGES[damage](steps[-1] / name)
        found = Store(folder, keep=2).newest()
        assert found is not None and found.path == steps[-2]
        DAMAGES[damage](steps[-2] / name)
        with pytest.raises(CheckpointError, match="or delete this folder to start the stage from its"):
            Store(folder, keep=2).newest()

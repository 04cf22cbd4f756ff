"""A killed run goes on and ends with the same bits as one that was never disturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cosmos_distill.train.checkpoint import Store, consolidation
from cosmos_distill.train.guard import Interrupted, StopFlag
from cosmos_distill.train.log import read
from tests.train import victim
from tests.train.fakes import ToySource

# One server process imports torch once; every victim is a real process forked from it.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.train.victim"])


def result(folder: Path) -> tuple[bytes, list[dict[str, Any]], dict[str, str]]:
    """The student's bytes, the log without wall times, and the checksums of all tensors in the last
    checkpoint (networks, optimisers, average, random state)."""
    records = [{k: v for k, v in r.items() if k != "wall"} for r in read(folder / "log.jsonl")]
    last = folder / "checkpoints" / "step_000000009"
    files = json.loads((last / "index.json").read_text())["files"]
    del files["state.json"]
    return (folder / "student.safetensors").read_bytes(), records, files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("undisturbed")
    victim.run(folder)
    return result(folder)


@pytest.mark.parametrize("point", victim.POINTS)
def test_killed_anywhere_ends_bit_equal(point: str, undisturbed: Any, tmp_path: Path) -> None:
    process = processes.Process(target=victim.killed_at, args=(point, tmp_path))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "student.safetensors").exists()

    resumed = victim.run(tmp_path)

    expected = {"mid step 4": 3, "before any save": 0, "mid removal 9": 9, "before publish": 9}
    assert resumed.resumed_from == expected.get(point, 3)
    assert result(tmp_path) == undisturbed
    assert [r["step"] for r in read(tmp_path / "log.jsonl")] == list(range(1, 10))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_000000009"]


def test_sigterm_saves_and_goes_on_bit_equal(undisturbed: Any, tmp_path: Path) -> None:
    process = processes.Process(target=victim.terminated, args=(tmp_path,))
    process.start()
    deadline = time.monotonic() + 60
    while not read(tmp_path / "log.jsonl") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 3

    resumed = victim.run(tmp_path)

    assert 0 < resumed.resumed_from < 9
    assert result(tmp_path) == undisturbed


@pytest.mark.parametrize("sample", [4 * 4, 4 * 4 + 2, 8 * 4 + 2])
def test_stop_within_a_step_undoes_the_step(sample: int, undisturbed: Any, tmp_path: Path) -> None:
    stop = StopFlag()

    class Source(ToySource):
        def batch(self, first: int, count: int) -> Any:
            if first == sample:
                stop.request("SIGINT")
            return super().batch(first, count)

    if sample == 8 * 4 + 2:  # the very last micro-batch: nothing is left to interrupt
        assert victim.run(tmp_path, Source(), stop).step == 9
    else:
        with pytest.raises(Interrupted, match=r"SIGINT after . of 9 steps.*same command"):
            victim.run(tmp_path, Source(), stop)
        resumed_from = victim.run(tmp_path).resumed_from
        assert resumed_from == (4 if sample == 4 * 4 else 5)
    assert result(tmp_path) == undisturbed


def test_file_size_limit_leaves_nothing_half_written(undisturbed: Any, tmp_path: Path) -> None:
    process = processes.Process(target=victim.full_disk, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 4
    assert list((tmp_path / "checkpoints").iterdir()) == []
    victim.run(tmp_path)
    assert result(tmp_path) == undisturbed


def test_damaged_newest_checkpoint_costs_only_its_steps(
    undisturbed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> Path:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consolidation, "publish_tensors", fails)
        patch.setattr(Store, "_prune", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            victim.run(tmp_path)
    damaged = tmp_path / "checkpoints" / "step_000000009" / "optimizer_student" / "shard-00001.safetensors"
    os.truncate(damaged, 100)

    assert victim.run(tmp_path).resumed_from == 6
    assert str(damaged) in caplog.text
    assert result(tmp_path) == undisturbed

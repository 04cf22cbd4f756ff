"""Ranks whose launcher has gone."""

import os
import time
from pathlib import Path

import pytest

from tests.parallel import faulty
from tests.parallel.launching import launch, start, with_stages


def test_ranks_end_soon_after_their_killed_launcher(finished: Path, tmp_path: Path) -> None:
    """One of them waits in a collective for the other, which sleeps."""
    out = with_stages(finished, tmp_path / "run", "generate")
    program = (str(faulty.__file__), "kd", "2", "1", "sleep")
    torchrun = start(launch(out, "--only", "kd", program=program))
    ranks = []
    try:
        assert torchrun.stdout is not None
        said = ""
        while "asleep" not in (line := torchrun.stdout.readline()):
            assert line, f"it never came so far:\n{said}"
            said += line
        ranks = _children(torchrun.pid)
        assert len(ranks) == 2
        torchrun.kill()
        # They look every few seconds, or on a busy machine later; those that do not wait for half an hour.
        deadline = time.monotonic() + 300
        while any(_alive(rank) for rank in ranks) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(_alive(rank) for rank in ranks)
        assert "what started it has gone" in torchrun.stdout.read()
    finally:
        torchrun.kill()
        for rank in filter(_alive, ranks):
            os.kill(rank, 9)


def test_a_rank_looks_for_its_launcher_often_enough_to_end_within_a_minute() -> None:
    from cosmos_distill.launch import ranks

    assert ranks._POLL <= 5


def test_a_process_without_launcher_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_distill.launch import ranks

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(ranks, "_launched", [])
    ranks.end_with_launcher()
    assert ranks._launched == []


def _children(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

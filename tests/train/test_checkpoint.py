"""What is on disk is whole, or is named and not used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_distill.train import checkpoint
from cosmos_distill.train.checkpoint import CheckpointError, CheckpointStore, publish_tensors, read_metadata


def fill(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        store.save(step, {"network": {"w": torch.full((64,), float(step))}}, {"step": step, "pi": 0.1 + step})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_is_exact_and_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.newest() is None
    fill(store, 1, 2, 1000000000)
    assert names(tmp_path) == ["step_000000002", "step_1000000000"]
    newest = store.newest()
    assert newest is not None
    assert (newest.step, newest.state) == (1000000000, {"step": 1000000000, "pi": 0.1 + 1000000000})
    assert torch.equal(newest.tensors("network")["w"], torch.full((64,), 1e9))


def _flip(path: Path) -> None:
    content = bytearray((path / "network.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "network.safetensors").write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "network.safetensors: checksum": _flip,
    "network.safetensors: ": lambda path: os.truncate(path / "network.safetensors", 10),
    "network.safetensors: No such file": lambda path: (path / "network.safetensors").unlink(),
    "state.json: checksum": lambda path: (path / "state.json").write_text("{}"),
    "index.json: No such file": lambda path: (path / "index.json").unlink(),
    "index.json: Expecting value": lambda path: (path / "index.json").write_text(""),
    "index.json: not a": lambda path: (path / "index.json").write_text("[]"),
    "index.json: no 'step'": lambda path: (path / "index.json").write_text('{"format": 1}'),
    "format 2": lambda path: (path / "index.json").write_text('{"format": 2}'),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_damage_is_named_and_the_previous_used(
    problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 5, 6)
    DAMAGE[problem](tmp_path / "step_000000006")
    newest = store.newest()
    assert newest is not None and newest.step == 5
    assert "step_000000006" in caplog.text
    assert problem.replace(": No such", ": [Errno 2] No such") in caplog.text or problem in caplog.text


def test_none_usable_is_an_error_naming_all(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 5, 6)
    for step in (5, 6):
        _flip(tmp_path / f"step_{step:09d}")
    with pytest.raises(CheckpointError, match=r"(?s)no usable.*000006.*checksum.*000005.*checksum.*delete"):
        store.newest()


def test_rejected_future_is_replaced_and_never_crowds_out_the_good(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    fill(store, 4)
    for future in (6, 9):
        (tmp_path / f"step_{future:09d}").mkdir()
    fill(store, 6)
    assert names(tmp_path) == ["step_000000006"]
    newest = store.newest()
    assert newest is not None and newest.step == 6


def test_remains_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_000000007").mkdir()
    (tmp_path / ".tmp-step_000000007" / "network.safetensors").write_bytes(b"half")
    (tmp_path / ".tmp-file").touch()
    CheckpointStore(tmp_path, keep=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["save_file", "fsync", "dump", "rename"])
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "permissions")]
)
def test_disk_errors_leave_the_previous_and_nothing_half_written(
    call: str, number: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    fill(store, 5)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    owner: Any = {"save_file": checkpoint, "fsync": os, "dump": json, "rename": Path}[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, fails)
        with pytest.raises(CheckpointError, match=f"step_000000006.*{advice}"):
            fill(store, 6)
    assert names(tmp_path) == ["step_000000005"]
    newest = store.newest()
    assert newest is not None and newest.step == 5


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*file/checkpoints"):
        CheckpointStore(tmp_path / "file" / "checkpoints", keep=1)


def test_published_file_is_old_or_new_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    publish_tensors({"w": torch.zeros(3)}, path, {"step": 1, "method": "KD", "weights": "ema"})
    old = path.read_bytes()
    publish_tensors({"w": torch.zeros(3)}, path, {"weights": "ema", "method": "KD", "step": 1})
    assert path.read_bytes() == old  # the same content is the same bytes, so its hash identifies it

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(CheckpointError, match="disk is full"):
            publish_tensors({"w": torch.ones(3)}, path, {"step": 2})
    assert path.read_bytes() == old
    assert names(tmp_path) == ["student.safetensors"]
    assert read_metadata(path) == {"step": 1, "method": "KD", "weights": "ema"}

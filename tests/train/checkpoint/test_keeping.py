"""Which checkpoints stay, and which are used: what is damaged is named and passed over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from cosmos_distill.train.checkpoint import CheckpointError, Store
from tests.train.checkpoint.stores import SHARD, fill, names, newest


def test_every_kth_stays(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=1, keep_every=4)
    fill(store, *range(1, 11))
    assert names(tmp_path) == [f"step_{step:09d}" for step in (4, 8, 10)]


def test_rejected_future_is_replaced_and_never_crowds_out_the_good(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=1, keep_every=3)
    fill(store, 4)
    for future in (6, 9):
        (tmp_path / f"step_{future:09d}").mkdir()
    fill(store, 6)
    assert names(tmp_path) == ["step_000000006"]
    assert newest(store).step == 6


def test_remains_of_a_killed_save_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step_000000007" / "network").mkdir(parents=True)
    (tmp_path / ".tmp-step_000000007" / SHARD).write_bytes(b"half")
    (tmp_path / ".tmp-file").touch()
    Store(tmp_path, keep=1)
    assert names(tmp_path) == []


def _flip(path: Path) -> None:
    content = bytearray((path / SHARD).read_bytes())
    content[-1] ^= 1
    (path / SHARD).write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    f"{SHARD}: checksum": _flip,
    f"{SHARD}: ": lambda path: os.truncate(path / SHARD, 10),
    f"{SHARD}: No such file": lambda path: (path / SHARD).unlink(),
    "stray.safetensors: not in index": lambda path: save_file({}, path / "network" / "stray.safetensors"),
    "state.json: checksum": lambda path: (path / "state.json").write_text("{}"),
    "index.json: No such file": lambda path: (path / "index.json").unlink(),
    "index.json: Expecting value": lambda path: (path / "index.json").write_text(""),
    "index.json: not a": lambda path: (path / "index.json").write_text("[]"),
    "index.json: no 'step'": lambda path: (path / "index.json").write_text('{"format": 2}'),
    "format 1, this version reads 2": lambda path: (path / "index.json").write_text('{"format": 1}'),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_damage_is_named_and_the_previous_used(
    problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, keep=2)
    fill(store, 5, 6)
    DAMAGE[problem](tmp_path / "step_000000006")
    assert newest(store).step == 5
    assert "step_000000006" in caplog.text
    assert problem.replace(": No such", ": [Errno 2] No such") in caplog.text or problem in caplog.text


def test_none_usable_is_an_error_naming_all(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    fill(store, 5, 6)
    for step in (5, 6):
        _flip(tmp_path / f"step_{step:09d}")
    with pytest.raises(CheckpointError, match=r"(?s)no usable.*000006.*checksum.*000005.*checksum.*delete"):
        store.newest()

"""A save goes on beside the training, and a failing one leaves what there was."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_distill.storage import DiskError
from cosmos_distill.train.checkpoint import Store, shards
from cosmos_distill.train.checkpoint import store as store_module
from tests.train.checkpoint.stores import fill, load, names, newest, wholes


def test_save_returns_before_anything_is_written_and_later_changes_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=1)
    write, go = shards.write_tensors, threading.Event()

    def patient(*args: Any) -> None:
        assert go.wait(30)
        write(*args)

    monkeypatch.setattr(shards, "write_tensors", patient)
    weights, numbers = torch.ones(64), {"step": 1}
    for step in (1, 2):  # the second time with the buffers of the first
        go.clear()
        store.save(step, {"network": wholes({"w": weights})}, numbers)
        assert not (tmp_path / f"step_{step:09d}").exists()
        weights += 1
        numbers["step"] += 1
        go.set()
        store.wait()
        found = newest(store)
        assert (found.step, found.state) == (step, {"step": step})
        assert torch.equal(load(found, "network", {"w": weights})["w"], torch.full((64,), float(step)))


def test_second_save_waits_for_the_first_and_raises_its_error_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=1)

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_tensors", fails)
        store.save(1, {"network": wholes({"w": torch.zeros(1)})}, {})
        with pytest.raises(DiskError, match=r"step_000000001.*free some space"):
            store.save(2, {"network": wholes({"w": torch.zeros(1)})}, {})
    store.wait()
    fill(store, 3)
    assert names(tmp_path) == ["step_000000003"]


def test_leaving_the_block_waits_and_does_not_hide_the_error_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, keep=1)
    with pytest.raises(ZeroDivisionError), store:
        store.save(1, {"network": wholes({"w": torch.zeros(1)})}, {})
        raise ZeroDivisionError
    assert names(tmp_path) == ["step_000000001"]
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(ZeroDivisionError), store:
        store.save(2, {"network": wholes({"w": torch.zeros(1)})}, {})
        raise ZeroDivisionError
    assert "free some space" in caplog.text
    with pytest.raises(DiskError, match="free some space"), store:
        store.save(2, {"network": wholes({"w": torch.zeros(1)})}, {})


def test_a_failing_one_of_several_ranks_waits_for_a_checkpoint_under_way_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=1)
    write, go = shards.write_tensors, threading.Event()

    def slow(*args: Any) -> None:
        assert go.wait(30)
        write(*args)

    monkeypatch.setattr(shards, "write_tensors", slow)
    monkeypatch.setattr(store_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(store.ranks, "size", 2)
    with pytest.raises(ZeroDivisionError), store:
        store.save(1, {"network": wholes({"w": torch.zeros(1)})}, {})
        raise ZeroDivisionError
    assert "step_000000001" not in names(tmp_path)
    go.set()
    store.wait()
    assert names(tmp_path) == ["step_000000001"]


@pytest.mark.parametrize("call", ["write_tensors", "fsync", "mkdir", "rename"])
@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "permissions")]
)
def test_disk_errors_leave_the_previous_and_nothing_half_written(
    call: str, number: int, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, keep=1)
    fill(store, 5)

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    owner: Any = {"write_tensors": shards, "fsync": os, "mkdir": Path, "rename": Path}[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, fails)
        with pytest.raises(DiskError, match=f"step_000000006.*{advice}"):
            fill(store, 6)
    assert names(tmp_path) == ["step_000000005"]
    assert newest(store).step == 5


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .*file/checkpoints"):
        Store(tmp_path / "file" / "checkpoints", keep=1)

"""What is on disk is whole, or is named and not used."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cosmos_distill.parallel.parts import Part
from cosmos_distill.train import checkpoint, shards
from cosmos_distill.train.checkpoint import Checkpoint, CheckpointStore
from cosmos_distill.train.pieces import Block, Piece, flat_piece, whole
from cosmos_distill.train.tensorfile import CheckpointError

SHARD = "network/shard-00001.safetensors"


def wholes(tensors: Mapping[str, Tensor]) -> dict[str, Piece]:
    return {name: whole(value) for name, value in tensors.items()}


def fill(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        tensors = {"w": torch.full((64,), float(step))}
        store.save(step, {"network": wholes(tensors)}, {"step": step, "pi": 0.1 + step})
        store.wait()


def load(checkpoint: Checkpoint, group: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name: torch.zeros_like(value) for name, value in like.items()}
    checkpoint.load(group, wholes(tensors))
    return tensors


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(store: CheckpointStore) -> Checkpoint:
    found = store.newest()
    assert found is not None
    return found


def test_round_trip_is_exact_and_keeps_the_newest(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.newest() is None
    fill(store, 1, 2, 1000000000)
    assert names(tmp_path) == ["step_000000002", "step_1000000000"]
    found = newest(store)
    assert (found.step, found.state) == (1000000000, {"step": 1000000000, "pi": 0.1 + 1000000000})
    assert torch.equal(load(found, "network", {"w": torch.empty(64)})["w"], torch.full((64,), 1e9))


def test_every_kth_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1, keep_every=4)
    fill(store, *range(1, 11))
    assert names(tmp_path) == [f"step_{step:09d}" for step in (4, 8, 10)]


def test_all_types_and_shapes_come_back_and_no_pickle_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(7),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 4).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "nothing": torch.empty(0, 3),
        "flag": torch.tensor([True, False]),
    }
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"all": wholes(tensors), "none": {}}, {})
    store.wait()
    folder = tmp_path / "step_000000001"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "all/shard-00001.safetensors",
        "index.json",
        "state.json",
    ]

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle is read")

    for owner, call in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(owner, call, refused)
    found = newest(store)
    assert found.names("all") == tensors.keys() and found.names("none") == set()
    back = load(found, "all", tensors)
    for name, value in tensors.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


def flat(value: Tensor, cuts: list[int]) -> Iterator[Piece]:
    """``value`` flattened and cut there."""
    for a, b in zip([0, *cuts], [*cuts, value.numel()], strict=True):
        yield flat_piece(value.view(-1)[a:b], a, tuple(value.shape), Part())


def test_several_boxes_of_one_tensor_are_read_in_place_under_another_cut(tmp_path: Path) -> None:
    value = torch.arange(2 * 3 * 5.0).view(2, 3, 5)
    pieces = list(flat(value, [7, 23]))
    assert max(len(piece.blocks) for piece in pieces) > 2
    everything = Piece((2, 3, 5), tuple(block for piece in pieces for block in piece.blocks))
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"network": {"w": everything}}, {})
    store.wait()
    shard = tmp_path / "step_000000001" / SHARD
    assert sum(v.numel() for v in load_file(shard).values()) == value.numel()
    for cuts in ([], [1], [11, 12, 29]):
        for part, expected in zip(flat(torch.zeros(2, 3, 5), cuts), flat(value, cuts), strict=True):
            memory = [block.value.data_ptr() for block in part.blocks]
            newest(store).load("network", {"w": part})
            assert [block.value.data_ptr() for block in part.blocks] == memory
            for mine, theirs in zip(part.blocks, expected.blocks, strict=True):
                assert torch.equal(mine.value, theirs.value)


def test_only_what_is_needed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(1, {"network": wholes({"w": torch.randn(8, 4), "v": torch.randn(100)})}, {})
    store.wait()
    read: list[int] = []
    create = shards.create_read_items_for_chunk_list

    def counted(*args: Any) -> Any:
        items = create(*args)
        read.extend(item.lengths.numel() for item in items)
        return items

    monkeypatch.setattr(shards, "create_read_items_for_chunk_list", counted)
    part = Piece((8, 4), (Block((6, 1), torch.zeros(2, 2)),))
    newest(store).load("network", {"w": part}, partial=True)
    assert sum(read) == 4


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"w": torch.zeros(64), "x": torch.zeros(1)}, "has no x"),
        ({}, "has w, which nothing here asks for"),
        ({"w": torch.zeros(65)}, r"w is \[64\] of torch.float32 in it, not \[65\]"),
        ({"w": torch.zeros(64).bfloat16()}, r"w is .* not \[64\] of torch.bfloat16"),
    ],
)
def test_what_does_not_fit_is_named(asked: dict[str, Tensor], problem: str, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    fill(store, 1)
    with pytest.raises(CheckpointError, match=problem):
        newest(store).load("network", wholes(asked))


def test_holes_and_disagreement_are_refused_at_saving(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    half = Piece((4,), (Block((0,), torch.zeros(2)),))
    with pytest.raises(CheckpointError, match="network/w: the ranks hold 2 of its 4 elements"):
        store.save(1, {"network": {"w": half}}, {})
    assert names(tmp_path) == []


def test_save_returns_before_anything_is_written_and_later_changes_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
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
    store = CheckpointStore(tmp_path, keep=1)

    def fails(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_tensors", fails)
        store.save(1, {"network": wholes({"w": torch.zeros(1)})}, {})
        with pytest.raises(CheckpointError, match=r"step_000000001.*free some space"):
            store.save(2, {"network": wholes({"w": torch.zeros(1)})}, {})
    store.wait()
    fill(store, 3)
    assert names(tmp_path) == ["step_000000003"]


def test_leaving_the_block_waits_and_does_not_hide_the_error_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    with pytest.raises(ZeroDivisionError), store:
        store.save(1, {"network": wholes({"w": torch.zeros(1)})}, {})
        raise ZeroDivisionError
    assert names(tmp_path) == ["step_000000001"]
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(ZeroDivisionError), store:
        store.save(2, {"network": wholes({"w": torch.zeros(1)})}, {})
        raise ZeroDivisionError
    assert "free some space" in caplog.text
    with pytest.raises(CheckpointError, match="free some space"), store:
        store.save(2, {"network": wholes({"w": torch.zeros(1)})}, {})


def test_a_failing_one_of_several_ranks_waits_for_a_checkpoint_under_way_for_a_while_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    write, go = shards.write_tensors, threading.Event()

    def slow(*args: Any) -> None:
        assert go.wait(30)
        write(*args)

    monkeypatch.setattr(shards, "write_tensors", slow)
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.1)
    monkeypatch.setattr(store.ranks, "size", 2)
    with pytest.raises(ZeroDivisionError), store:
        store.save(1, {"network": wholes({"w": torch.zeros(1)})}, {})
        raise ZeroDivisionError
    assert "step_000000001" not in names(tmp_path)
    go.set()
    store.wait()
    assert names(tmp_path) == ["step_000000001"]


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
    store = CheckpointStore(tmp_path, keep=2)
    fill(store, 5, 6)
    DAMAGE[problem](tmp_path / "step_000000006")
    assert newest(store).step == 5
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
    store = CheckpointStore(tmp_path, keep=1, keep_every=3)
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
    CheckpointStore(tmp_path, keep=1)
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["write_tensors", "fsync", "mkdir", "rename"])
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

    owner: Any = {"write_tensors": shards, "fsync": os, "mkdir": Path, "rename": Path}[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, fails)
        with pytest.raises(CheckpointError, match=f"step_000000006.*{advice}"):
            fill(store, 6)
    assert names(tmp_path) == ["step_000000005"]
    assert newest(store).step == 5


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*file/checkpoints"):
        CheckpointStore(tmp_path / "file" / "checkpoints", keep=1)

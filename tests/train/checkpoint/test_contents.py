"""What was saved comes back bit for bit, under any cut."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_distill.parallel.parts import Part
from cosmos_distill.train.checkpoint import Block, CheckpointError, Piece, Store, flat_piece, shards
from tests.train.checkpoint.stores import SHARD, fill, load, names, newest, wholes


def test_round_trip_is_exact_and_keeps_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    assert store.newest() is None
    fill(store, 1, 2, 1000000000)
    assert names(tmp_path) == ["step_000000002", "step_1000000000"]
    found = newest(store)
    assert (found.step, found.state) == (1000000000, {"step": 1000000000, "pi": 0.1 + 1000000000})
    assert torch.equal(load(found, "network", {"w": torch.empty(64)})["w"], torch.full((64,), 1e9))


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
    store = Store(tmp_path, keep=1)
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
    store = Store(tmp_path, keep=1)
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
    store = Store(tmp_path, keep=1)
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
    store = Store(tmp_path, keep=1)
    fill(store, 1)
    with pytest.raises(CheckpointError, match=problem):
        newest(store).load("network", wholes(asked))


def test_holes_and_disagreement_are_refused_at_saving(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=1)
    half = Piece((4,), (Block((0,), torch.zeros(2)),))
    with pytest.raises(CheckpointError, match="network/w: the ranks hold 2 of its 4 elements"):
        store.save(1, {"network": {"w": half}}, {})
    assert names(tmp_path) == []

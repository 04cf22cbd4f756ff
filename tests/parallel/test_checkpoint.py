"""Checkpoints of several ranks: every value on disk once, readable under any layout, all or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cosmos_distill.train.checkpoint import Store, consolidate, whole
from cosmos_distill.train.checkpoint.shards import Shards
from tests.parallel import checkpoint_worker
from tests.parallel.checkpoint_pieces import averages, tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the ranks of every case have left what they found."""
    folder = tmp_path_factory.mktemp("checkpoints")
    store = Store(folder / "verify" / "checkpoints", keep=3)
    groups = {name: {"w": whole(torch.randn(10))} for name in ("a", "b", "c", "d")}
    for step in (5, 6):
        store.save(step, groups, {"step": step})
        store.wait()
    os.truncate(store.path(6) / "b" / "shard-00001.safetensors", 30)
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    cases = [name for name, *_ in checkpoint_worker.CASES]
    done = subprocess.run(
        [sys.executable, checkpoint_worker.__file__, str(folder), *cases],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def found(folder: Path, case: str, ranks: int = 2) -> list[Any]:
    return [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(ranks)]


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """All whole tensors of a group."""
    shards = Shards(folder)
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shards.tensors.items()}
    shards.load({name: whole(value) for name, value in tensors.items()})
    return tensors


def test_saving_is_asynchronous_and_writes_every_value_once(folder: Path) -> None:
    assert found(folder, "save") == [{"published": [False, True] * 2}] * 2
    step = folder / "save" / "checkpoints" / "step_000000002"
    shards = [load_file(path) for path in sorted((step / "network").iterdir())]
    assert len(shards) == 2
    sizes = [sum(value.nbytes for value in shard.values()) for shard in shards]
    assert sum(sizes) == sum(value.nbytes for value in tensors().values())
    assert max(sizes) - min(sizes) < 400  # what both hold is shared out: 400 bytes are the largest of it
    assert [path.name for path in (step / "random").iterdir()] == ["shard-00001.safetensors"]
    assert json.loads((step / "state.json").read_text()) == {"step": 2, "rank": 0}
    index = json.loads((step / "index.json").read_text())
    assert index["files"].keys() == {
        path.relative_to(step).as_posix() for path in step.rglob("*") if path.is_file()
    } - {"index.json"}


def test_one_rank_reads_what_two_wrote(folder: Path) -> None:
    checkpoint = Store(folder / "save" / "checkpoints", keep=2).newest()
    assert checkpoint is not None and checkpoint.step == 2
    back = {name: torch.zeros_like(value) for name, value in tensors().items()}
    checkpoint.load("network", {name: whole(value) for name, value in back.items()})
    for name, value in tensors().items():
        assert torch.equal(back[name], value), name


@pytest.mark.parametrize(("case", "ranks"), [("load", 2), ("load4", 4)])
def test_other_ranks_read_it_in_place_under_another_cut(case: str, ranks: int, folder: Path) -> None:
    state = {"step": 2, "rank": 0}
    expected = {"step": 2, "state": state, "equal": True, "in place": True}
    assert found(folder, case, ranks) == [expected] * ranks


@pytest.mark.parametrize("layout", ["fsdp", "pipeline", "stages", "zero"])
def test_training_state_goes_from_layout_to_layout_bit_for_bit(layout: str, folder: Path) -> None:
    before, after = (
        folder / "layouts" / name / "checkpoints" / "step_000000002" for name in ("trained", layout)
    )
    for group in ("network_student", "optimizer_student", "ema_student", "random"):
        theirs, ours = everything(before / group), everything(after / group)
        assert ours.keys() == theirs.keys() != set()
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), (group, name)
    kinds = {name.partition("/")[0] for name in everything(after / "optimizer_student")}
    assert kinds == {"master", "exp_avg", "exp_avg_sq", "step"}
    states = [json.loads((step / "state.json").read_text()) for step in (before, after)]
    assert states[0] == states[1]
    assert [rank["updates"] for rank in found(folder, layout)] == [{"student": 2}] * 2


def test_what_one_rank_misses_stops_all(folder: Path) -> None:
    first, second = found(folder, "missing")
    assert first == second and "rank 1: " in first["message"] and "has no gone" in first["message"]


def test_error_of_one_rank_fails_the_save_on_all_and_leaves_the_rest(folder: Path) -> None:
    first, second = (rank["messages"] for rank in found(folder, "fail"))
    assert first == second and len(first) == 2
    assert first[0].startswith("rank 1: cannot write") and "free some space" in first[0]
    assert "network/w is [2] of torch.float32 on one rank and [3]" in first[1]
    left = sorted(path.name for path in (folder / "fail" / "checkpoints").iterdir())
    assert left == ["step_000000001", "step_000000003"]


def test_every_file_is_checked_by_one_rank_and_damage_is_known_to_all(folder: Path) -> None:
    first, second = found(folder, "verify")
    assert first["step"] == second["step"] == 5
    good = [[name for name in rank["read"] if "000000005" in name] for rank in (first, second)]
    assert len(good[0]) in (2, 3) and len(good[1]) in (2, 3)
    assert sorted(name.partition("/")[2] for name in good[0] + good[1]) == [
        *(f"{group}/shard-00001.safetensors" for group in "abcd"),
        "state.json",
    ]


def test_killed_rank_is_noticed_and_leaves_the_last_published(folder: Path) -> None:
    message = json.loads((folder / "die-0.json").read_text())["message"]
    assert "step_000000002 was not written" in message and "the same command goes on" in message
    after = found(folder, "after")
    assert [(rank["step"], rank["equal"]) for rank in after] == [(1, True)] * 2
    assert [path.name for path in (folder / "die" / "checkpoints").iterdir()] == ["step_000000001"]


def test_consolidated_student_is_bit_equal(folder: Path) -> None:
    checkpoint = folder / "student" / "checkpoints" / "step_000000004"
    whole_file = load_file(consolidate(checkpoint, folder / "student.safetensors"))
    own = load_file(consolidate(checkpoint, folder / "own.safetensors", weights="network"))
    expected = tensors()
    assert own.keys() == whole_file.keys() == expected.keys()
    for name, value in expected.items():
        assert own[name].dtype == value.dtype and torch.equal(own[name], value), name
        averaged = averages()
        value = averaged[name].to(value.dtype) if name in averaged else value
        assert whole_file[name].dtype == value.dtype and torch.equal(whole_file[name], value), name

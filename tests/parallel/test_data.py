"""Data parallelism of every kind gives what one rank gives: norms, weights, moments and averages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parallel import data_worker
from tests.parallel.data_worker import WORLDS

CASES = {
    "two": [
        "chain",
        *(f"{work}/{kind}" for work in ("plain", "phases", "diffusion") for kind in data_worker.KINDS),
        "plain/replicated overlapped",
        "plain/sharded_optimizer overlapped",
    ],
    "four": ["plain/hybrid", "plain/four", "phases/hybrid"],
    "tensor": [
        *(f"tensor/{kind}" for kind in data_worker.KINDS),
        "diffusion/sharded_optimizer",
        *(f"{work}/{kind} drifting" for work in ("tensor", "phases") for kind in data_worker.KINDS),
        "diffusion/fsdp",
    ],
    "pipeline": [f"stages/{kind}{how}" for kind in data_worker.KINDS for how in ("", " drifting")],
}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """World -> what each of its ranks found."""
    folder: Path = tmp_path_factory.mktemp("data")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, data_worker.__file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return {
        world: [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(ranks)]
        for world, (ranks, *_) in WORLDS.items()
    }


def tensors(found: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(found, Tensor):
        yield path, found
    elif isinstance(found, dict):
        for name, value in found.items():
            yield from tensors(value, f"{path}/{name}")


def difference(found: Any, expected: Any) -> float:
    """Of all tensors in them, the largest relative to the tensor's own size; NaN where there is one."""
    a, b = dict(tensors(found)), dict(tensors(expected))
    assert a.keys() == b.keys()
    every = [
        (a[name].double() - b[name].double()).abs().max() / (b[name].double().abs().max() + 1e-12)
        for name in b
    ]
    return float(torch.stack(every).max())


@pytest.mark.parametrize(("world", "case"), [(w, case) for w, cases in CASES.items() for case in cases])
def test_like_one_rank(worlds: dict[str, list[dict[str, Any]]], world: str, case: str) -> None:
    expected = worlds["one"][0][case.partition("/")[0]]
    for found in worlds[world]:
        assert difference(found[case]["norms"], expected["norms"]) < 1e-6
        assert difference(found[case], expected) < 5e-6
        assert torch.equal(found[case]["norms"], worlds[world][0][case]["norms"])
        assert found[case].get("updates") == expected.get("updates")
        steps = {k: int(v) for k, v in tensors(found[case]) if "step/" in k}
        assert steps == {k: int(v) for k, v in tensors(expected) if "step/" in k} != {}


def test_half_precision_gradients_are_added_in_fp32(worlds: dict[str, list[dict[str, Any]]]) -> None:
    found = {kind: float(norm) for kind, norm in worlds["four"][0]["sums"].items()}
    # 256 + 1 is 256 in bf16; the sum is rounded to bf16 once under fsdp, which has gradients of that type.
    assert found == {"replicated": 259.0, "sharded_optimizer": 259.0, "fsdp": 260.0}


def test_half_precision_is_close_and_its_masters_closer(worlds: dict[str, list[dict[str, Any]]]) -> None:
    found, expected = worlds["two"][0]["half"], worlds["one"][0]["half"]
    assert found["network"]["first.weight"].dtype == torch.bfloat16
    assert difference(found["network"], expected["network"]) < 2**-7
    assert difference(found["norms"], expected["norms"]) < 5e-3
    for name, master in found["optimizer"].items():
        if name.startswith("master/"):
            weight = found["network"][name.removeprefix("master/")]
            assert master.dtype == torch.float32 and torch.equal(master.bfloat16(), weight), name
    moved = [name for name in found["average"] if "unused" not in name]
    assert any(not torch.equal(found["average"][n], found["average"][n].bfloat16().float()) for n in moved)


def test_a_pipelined_call_adds_its_micro_batches_in_fp32(worlds: dict[str, list[dict[str, Any]]]) -> None:
    for rank in worlds["pipeline"]:
        together, one_by_one = (dict(tensors(rank[how]["gradients"])) for how in ("together", "one by one"))
        assert together.keys() == one_by_one.keys()
        assert all(torch.equal(value, one_by_one[name]) for name, value in together.items())


def test_a_pipelined_rank_has_one_block_gathered_at_a_time(worlds: dict[str, list[dict[str, Any]]]) -> None:
    found = [rank["together"] for rank in worlds["pipeline"]]
    assert [of["gathered"] for of in found] == [1] * 4 and min(of["blocks"] for of in found) > 1


def test_what_cannot_be_sharded_is_refused(worlds: dict[str, list[dict[str, Any]]]) -> None:
    shards, outside = worlds["four"][0]["refused"]
    assert shards.startswith("fsdp_shards 3 does not divide the 4 ranks")
    assert outside == "fsdp cannot spread 'b.weight': it is in no module that has blocks"

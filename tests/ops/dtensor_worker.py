"""Two ranks on gloo: every operator on shards gives what it gives on whole tensors. Run by test_dtensor.py as
``dtensor_worker.py FOLDER``; a fresh process, so that nothing is forked that has started threads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from cosmos_distill import ops

R, P = Replicate(), Partial()
Case = tuple[Callable[..., Any], list[Tensor], list[Placement], list[Placement], list[Placement]]
"""Operator, tensors, their placements, and the expected ones of results and gradients."""


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def adaln_cases() -> dict[str, Case]:
    x, m = draw(2, 5, 8), [draw(2, 8) + i for i in range(3)]
    frames, frame_m = draw(2, 4, 3, 8), [draw(2, 4, 8) + i for i in range(3)]
    found: dict[str, Case] = {}
    for name, tokens, rows, place, place_rows, sums in (
        ("samples", x, m, Shard(0), Shard(0), Shard(0)),
        ("tokens", x, m, Shard(1), R, P),
        ("frames", frames, frame_m, Shard(1), Shard(1), Shard(1)),
        ("tokens of frames", frames, frame_m, Shard(2), R, P),
    ):
        found[f"adaln_modulate, {name}"] = (
            ops.adaln_modulate,
            [tokens, *rows[:2]],
            [place, place_rows, place_rows],
            [place],
            [place, sums, sums],
        )
        found[f"gated_residual_adaln, {name}"] = (
            ops.gated_residual_adaln,
            [tokens, tokens + 1, *rows],
            [place, place, *[place_rows] * 3],
            [place, place],
            [place, place, sums, sums, sums],
        )
    return found


def norm_rope_cases(mesh: DeviceMesh) -> dict[str, Case]:
    q, w = draw(2, 6, 4, 12), [torch.ones(12), torch.full((12,), 2.0)]
    table = draw(6, 12)
    axes = [draw(1, 3), draw(2, 1), draw(3, 2)]

    def plain(*tensors: Tensor) -> Any:
        return ops.qk_norm_rope(*tensors)

    def tables(place: Placement) -> Callable[..., Any]:
        both = (table.cos(), table.sin())
        spread = [distribute_tensor(t, mesh, [place]) for t in both]
        return lambda q, *rest: ops.qk_norm_rope(q, *rest, *(spread if isinstance(q, DTensor) else both))

    spread_axes = [distribute_tensor(t, mesh, [R]) for t in axes]

    def angles(q: Tensor, *rest: Tensor) -> Any:
        return ops.qk_norm_rope(q, *rest, angles=tuple(spread_axes if isinstance(q, DTensor) else axes))

    return {
        f"qk_norm_rope, {name}": (
            operator, [q, q + 1, *w], [place, place, R, R], [place, place], [place, place, P, P],
        )
        for name, operator, place in (
            ("samples", plain, Shard(0)),
            ("heads", plain, Shard(2)),
            ("tokens", plain, Shard(1)),
            ("samples with tables", tables(R), Shard(0)),
            ("tokens with tables", tables(Shard(0)), Shard(1)),
            ("samples with angles", angles, Shard(0)),
            ("heads with angles", angles, Shard(2)),
        )
    }  # fmt: skip


def attention_cases() -> dict[str, Case]:
    q, k = draw(2, 6, 4, 8), draw(2, 5, 4, 8)

    def operator(*tensors: Tensor) -> Any:
        return ops.attention(*tensors, return_lse=True, backend="sdpa")

    samples, heads, queries = Shard(0), Shard(2), Shard(1)
    return {
        "attention, samples": (operator, [q, k, k + 1], [samples] * 3, [samples] * 2, [samples] * 3),
        "attention, heads": (operator, [q, k, k + 1], [heads] * 3, [heads, Shard(1)], [heads] * 3),
        "attention, queries": (
            operator, [q, k, k + 1], [queries, R, R], [queries, Shard(2)], [queries, P, P],
        ),
    }  # fmt: skip


def loss_cases(mesh: DeviceMesh) -> dict[str, Case]:
    """Every sample is a loss of its own."""
    latents = [draw(2, 3, 2, 4, 4) + i for i in range(5)]
    whole = [*latents, draw(2).abs() + 1, torch.ones(2, 2)]
    spread = [distribute_tensor(t, mesh, [Shard(0)]) for t in whole]

    def given(x: Tensor) -> list[Any]:
        return list(spread if isinstance(x, DTensor) else whole)

    def vsd(x: Tensor) -> Any:
        _, teacher, fake, uncond, x_t, factor, frame_mask = given(x)
        where = ops.Preconditioned(x_t, factor, factor)
        settings = {"guidance": 2.0, "preconditioned": where, "frame_mask": frame_mask}
        return ops.vsd_loss(x, teacher, fake, uncond=uncond, **settings)

    def critic(x: Tensor) -> Any:
        _, target, x_t, *_, sigma, frame_mask = given(x)
        where = ops.Preconditioned(x_t, sigma, sigma)
        return ops.fake_score_loss(x, target, sigma, preconditioned=where, frame_mask=frame_mask)

    def renoise(x: Tensor) -> Any:
        _, noise, *_, sigma, _ = given(x)
        return ops.renoise(x, noise, sigma, alpha=sigma)

    return {
        f"{name}, samples": (operator, latents[:1], [Shard(0)], [Shard(0)], [Shard(0)])
        for name, operator in (("vsd_loss", vsd), ("fake_score_loss", critic), ("renoise", renoise))
    }


def tuple_of(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def hold(name: str, case: Case, mesh: DeviceMesh) -> None:
    operator, tensors, places, expected, expected_grads = case
    leaves = [t.clone().requires_grad_() for t in tensors]
    want = tuple_of(operator(*leaves))
    grads = [draw(*r.shape) for r in want]
    want_grads = torch.autograd.grad(want, leaves, grads)

    shards = [distribute_tensor(t, mesh, [p]).requires_grad_() for t, p in zip(tensors, places, strict=True)]
    sharded_grads = [distribute_tensor(g, mesh, [p]) for g, p in zip(grads, expected, strict=True)]
    with CommDebugMode() as traffic:
        got = tuple_of(operator(*shards))
        got_grads = torch.autograd.grad(got, shards, sharded_grads)
    assert traffic.get_total_counts() == 0, f"{name} communicates: {traffic.get_comm_counts()}"
    for results, placements, exact in ((got, expected, want), (got_grads, expected_grads, want_grads)):
        assert [r.placements for r in results] == [(p,) for p in placements], (name, results)
        for result, right in zip(results, exact, strict=True):
            torch.testing.assert_close(result.full_tensor(), right, msg=lambda m: f"{name}: {m}")


def factored_tables_are_never_cut(mesh: DeviceMesh) -> None:
    """A shard of the tokens is no grid: they are gathered, and the result is right."""
    q, w, axes = draw(2, 6, 4, 12), torch.ones(12), (draw(1, 3), draw(2, 1), draw(3, 2))
    want = ops.qk_norm_rope(q, q, w, w, angles=axes)
    shard, (weight, *three) = (
        distribute_tensor(q, mesh, [Shard(1)]),
        (distribute_tensor(t, mesh, [R]) for t in (w, *axes)),
    )
    got = ops.qk_norm_rope(shard, shard, weight, weight, angles=tuple(three))
    torch.testing.assert_close(tuple(r.full_tensor() for r in got), want)


def the_optimiser_takes_local_shards_only(mesh: DeviceMesh) -> None:
    """It works in place, in memory that a DTensor has none of."""
    shards = [distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]) for _ in range(5)]
    shards[0] = torch.nn.Parameter(shards[0])
    step = ops.AdamWStep(step=1, lr=0.1, ema_rate=0.2)
    try:
        ops.adamw_ema(*([t] for t in shards), step)
    except ValueError as error:
        assert "not DTensor" in str(error) and ".to_local()" in str(error)
    else:
        raise AssertionError("DTensors were taken")
    ops.adamw_ema(*([t.to_local().detach()] for t in shards), step)
    assert not (shards[0].to_local() == 1).any()


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{folder}/store")
    mesh = dist.init_device_mesh("cpu", (2,))
    cases = adaln_cases() | norm_rope_cases(mesh) | attention_cases() | loss_cases(mesh)
    for name, case in cases.items():
        hold(name, case, mesh)
    factored_tables_are_never_cut(mesh)
    the_optimiser_takes_local_shards_only(mesh)
    if rank == 0:
        (Path(folder) / "held").write_text("\n".join(cases))
    dist.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.start_processes(rank_main, (sys.argv[1],), nprocs=2, start_method="fork")

"""The planner's arithmetic, checked against what the optimiser really holds."""

from __future__ import annotations

import pytest
import torch

from cosmos_distill.config import Optim, Parallel, Precision
from cosmos_distill.train.ema import EMA, constant
from cosmos_distill.train.optim import RoleOptimizer
from cosmos_distill.train.plan import GIB, launch_line, plan
from tests.train.fakes import SHAPE, Network

SEVEN_B = 8_126_000_000
DMD2 = {"student": (SEVEN_B, True), "fake_score": (SEVEN_B, True), "teacher": (SEVEN_B, False)}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bytes_are_those_of_a_real_optimiser(precision: Precision) -> None:
    network = Network(0).to(torch.bfloat16 if precision == "bf16" else torch.float32)
    del network.unused  # no gradient, hence no moments
    optimizer = RoleOptimizer(network, Optim(lr=1e-3), 1)
    network(torch.ones((1, *SHAPE), dtype=network.first.weight.dtype)).sum().backward()
    gradients = sum(m.grad.nbytes for m in optimizer.masters.values() if m.grad is not None)
    optimizer.step(0)
    moments = sum(
        piece.blocks[0].value.nbytes
        for name, piece in optimizer.pieces().items()
        if not name.startswith("step/")
    )
    average = sum(t.nbytes for t in EMA(optimizer.masters, constant(0.9)).average.values())

    count = sum(p.numel() for p in network.parameters())
    role = plan({"student": (count, True)}, precision, ema=True).roles[0]
    assert role.weights == sum(p.nbytes for p in network.parameters())
    assert (role.gradients, role.optimizer, role.ema) == (gradients, moments, average)


def test_frozen_roles_hold_weights_only_and_the_average_is_the_students() -> None:
    student, fake_score, teacher = plan(DMD2, "bf16", ema=True).roles
    assert teacher.total == teacher.weights == 2 * SEVEN_B
    assert student.ema == 4 * SEVEN_B and fake_score.ema == 0


def test_gradients_of_different_turns_are_not_added() -> None:
    together = plan(DMD2, "bf16")
    in_turn = plan(DMD2, "bf16", phases=[("student",), ("fake_score",)])
    assert together.total == (3 * 2 + 2 * 16) * SEVEN_B
    assert in_turn.total == together.total - 4 * SEVEN_B


def test_tensor_and_pipeline_divide_everything_and_copies_nothing() -> None:
    one = plan(DMD2, "bf16")
    split = plan(DMD2, "bf16", parallel=Parallel(tensor=4, pipeline=2))
    assert split.total == one.total // 8 and split.gpus == 8
    copied = plan(DMD2, "bf16", parallel=Parallel(context=8), data_parallel=2)
    assert copied.total == one.total and copied.gpus == 16


def test_sharded_optimizer_divides_moments_masters_and_average_over_data_and_context() -> None:
    layout = Parallel(tensor=2, context=2, data="sharded_optimizer")
    student, _, teacher = plan(DMD2, "bf16", parallel=layout, data_parallel=4, ema=True).roles
    assert (student.weights, student.gradients) == (2 * SEVEN_B // 2, 4 * SEVEN_B // 2)
    assert (student.optimizer, student.ema) == (12 * SEVEN_B // 16, 4 * SEVEN_B // 16)
    assert teacher.total == 2 * SEVEN_B // 2


def test_fsdp_divides_everything_the_frozen_teacher_too() -> None:
    one = plan(DMD2, "bf16", ema=True)
    everywhere = plan(DMD2, "bf16", parallel=Parallel(context=2, data="fsdp"), data_parallel=8, ema=True)
    assert everywhere.total == one.total // 16
    hybrid = plan(DMD2, "bf16", parallel=Parallel(data="fsdp", fsdp_shards=4), data_parallel=8, ema=True)
    assert hybrid.total == one.total // 4
    stages = plan(DMD2, "bf16", parallel=Parallel(pipeline=2, data="fsdp"), data_parallel=4, ema=True)
    assert stages.total == one.total // 8 and stages.gpus == 8


def test_the_discriminator_is_whole_on_every_rank() -> None:
    networks = DMD2 | {"discriminator": (40_000_000, True)}
    layout = Parallel(tensor=8, data="sharded_optimizer")
    heads = plan(networks, "bf16", parallel=layout, data_parallel=2, whole={"discriminator"}).roles[-1]
    assert (heads.weights, heads.gradients, heads.optimizer) == (80_000_000, 160_000_000, 240_000_000)


def test_verdict_says_what_to_change_and_following_it_helps() -> None:
    one = plan(DMD2, "bf16", phases=[("student",), ("fake_score",)])
    assert not one.fits and "does not fit in 80 GiB" in one.verdict()
    ways = dict(one.ways_out())
    assert list(ways) == [
        "--parallel.tensor 8", "--parallel.pipeline 8", "--parallel.data fsdp on 8 GPUs"
    ]  # gradients and weights alone are too much for the sharded optimiser  # fmt: skip
    followed = plan(DMD2, "bf16", parallel=Parallel(tensor=8), phases=[("student",), ("fake_score",)])
    assert followed.fits and "fits in 80 GiB" in followed.verdict()
    assert f"--parallel.tensor 8: {followed.total / GIB:.1f} GiB" in one.verdict()

    split = plan({"student": DMD2["student"]}, "bf16", parallel=Parallel(pipeline=2))
    assert list(dict(split.ways_out())) == [
        "--parallel.tensor 2", "--parallel.pipeline 4", "--parallel.data sharded_optimizer on 4 GPUs",
        "--parallel.data fsdp on 4 GPUs",
    ]  # fmt: skip
    sharded = plan(DMD2, "bf16", parallel=Parallel(data="fsdp"), data_parallel=2)
    assert "--parallel.pipeline 4" in dict(sharded.ways_out())
    text = one.text()
    assert "teacher (frozen)" in text and "8,126.00 M" in text and "15.1 GiB" in text


def test_launch_line() -> None:
    one = launch_line(Parallel(), "recipe.py")
    assert one == "torchrun --standalone --nproc-per-node 1 -m cosmos_distill recipe.py"
    many = launch_line(Parallel(tensor=4, context=4), "recipe.py --scale 7b", data_parallel=2)
    assert many.startswith("torchrun --nnodes 4 --nproc-per-node 8 ")
    assert many.endswith(" -m cosmos_distill recipe.py --scale 7b")
    with pytest.raises(ValueError, match="12 ranks do not fill nodes of 8"):
        launch_line(Parallel(tensor=4, context=3), "recipe.py")

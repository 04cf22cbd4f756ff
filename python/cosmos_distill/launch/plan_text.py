"""A plan for the eye, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from cosmos_distill.launch.devices import Gpu
from cosmos_distill.launch.plan import LayoutPlan

_GIB = 2**30


def layout_words(plan: LayoutPlan) -> str:
    """A layout in few words."""
    of = plan.parallel
    words = []
    if of.tensor > 1:
        words.append(f"tensor {of.tensor}" + (" + sequence" if of.sequence else ""))
    if of.context > 1:
        words.append(f"context {of.context}" + (" ring" if of.context_attention == "ring" else ""))
    if of.pipeline > 1:
        words.append(f"pipeline {of.pipeline}")
    if plan.data > 1:
        words.append(f"data {plan.data}")
    if of.data != "replicated":
        words.append(of.data.replace("_", " "))
    return ", ".join(words) or "one GPU"


def show(
    console: Console,
    gpu: Gpu,
    own: LayoutPlan | None,
    found: list[LayoutPlan],
    modes: Mapping[str, LayoutPlan],
    saved: Mapping[str, int],
    disk: int,
    nodes: int,
) -> None:
    """Print a plan: layouts, then what the first of them needs in each stage."""
    first = found[0]
    console.print(_layouts(own, found))
    for name, stage in first.stages.items():
        if stage.held is not None:
            console.print(_memory(name, first, modes))
    console.print(_times(first))
    if first.fits:
        console.print(f"\n{layout_words(first)}:\n  {first.options}", soft_wrap=True)
    else:
        console.print(
            f"\nNothing fits on {first.gpus} GPUs of {gpu.name}: the nearest needs {gib(first.bytes)} of "
            f"{gib(first.room)}. Take more GPUs or larger ones, or shorter or smaller clips.",
            soft_wrap=True,
        )
    each = max(saved.values(), default=0)
    console.print(
        f"\ndisk: {gib(disk)} for checkpoints, of which each takes {gib(each)}; host memory: "
        f"{gib(each / nodes)} on each of {nodes} machines for the copy that a checkpoint is written from",
        soft_wrap=True,
    )
    console.print("\nassumed, not measured:")
    for line in assumptions(gpu):
        console.print(f"  {line}", soft_wrap=True)


def assumptions(gpu: Gpu) -> Iterator[str]:
    """What the seconds rest on."""
    yield from gpu.assumptions()
    yield (
        "what fsdp gathers is hidden behind computing as far as that takes; everything else that is sent is "
        "waited for; a pipeline idles while it fills and drains"
    )
    yield (
        "stages that draw clips are counted by their networks' passes, in fp32; reading, tokenizers, "
        "metrics, pictures and saving are not in the times"
    )


def _layouts(own: LayoutPlan | None, found: list[LayoutPlan]) -> Table:
    gpus = found[0].gpus
    table = Table(title=f"layouts on {gpus} GPU{'s' if gpus > 1 else ''}, the fastest first")
    for name in ("layout", "checkpointing", "GiB a GPU", "of", "hours", "GPU-hours"):
        table.add_column(name, justify="left" if name in ("layout", "checkpointing") else "right")
    rows = [(layout_words(plan), plan) for plan in found]
    if own is not None and not any(_same(own, plan) for plan in found):
        rows.append((f"the recipe's: {layout_words(own)}", own))
    for words, plan in rows:
        table.add_row(
            words, plan.checkpointing, f"{plan.bytes / _GIB:.1f}", f"{plan.room / _GIB:.0f}",
            f"{plan.seconds / 3600:,.1f}", f"{plan.gpu_hours:,.0f}", style=None if plan.fits else "dim",
        )  # fmt: skip
    return table


def _same(one: LayoutPlan, other: LayoutPlan) -> bool:
    return (one.parallel, one.checkpointing) == (other.parallel, other.checkpointing)


def _memory(name: str, plan: LayoutPlan, modes: Mapping[str, LayoutPlan]) -> Table:
    held = plan.stages[name].held
    assert held is not None
    table = Table(title=f"{name}: memory of a GPU, {layout_words(plan)}")
    for column in ("", "parameters", "weights", "gradients", "optimizer", "EMA", "together"):
        table.add_column(column, justify="right" if column else "left")
    for role in held.roles:
        parts = (role.weights, role.gradients, role.optimizer, role.ema, role.total)
        words = role.role if role.trainable else f"{role.role} (frozen)"
        table.add_row(words, f"{role.parameters / 1e6:,.1f} M", *map(gib, parts))
    blank = [""] * 5
    for mode, other in modes.items():
        found = other.stages[name].held
        assert found is not None
        chosen = mode == plan.checkpointing
        words = f"activations, checkpointing {mode}" + (" (chosen)" if chosen else "")
        table.add_row(words, *blank, gib(found.activations), style=None if chosen else "dim")
    if held.gathered:
        table.add_row("blocks that fsdp gathers", *blank, gib(held.gathered))
    table.add_row("at once, at most", *blank, gib(held.total), style="bold")
    return table


def _times(plan: LayoutPlan) -> Table:
    table = Table(title=f"time, {layout_words(plan)}")
    for column in ("stage", "of a step (or a clip)", "hours"):
        table.add_column(column, justify="right" if column == "hours" else "left")
    for name, stage in plan.stages.items():
        steps = ", ".join(f"{phase} {seconds:,.1f} s" for phase, seconds in stage.step_seconds.items())
        table.add_row(name, steps, f"{stage.seconds / 3600:,.1f}")
    return table


def gib(count: float) -> str:
    """Bytes for a person."""
    if not count:
        return "-"
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count / 2**20:,.1f} MiB"


def as_json(
    gpu: Gpu, own: LayoutPlan | None, found: list[LayoutPlan], saved: Mapping[str, int], disk: int, nodes: int
) -> dict[str, Any]:
    """Everything of a plan; bytes and seconds throughout."""
    return {
        "gpu": vars(gpu),
        "assumptions": list(assumptions(gpu)),
        "layouts": [_layout(plan) for plan in found],
        "recipe": None if own is None else _layout(own),
        "checkpoint_bytes": dict(saved),
        "disk_bytes": disk,
        "host_bytes_of_a_machine": max(saved.values(), default=0) / nodes,
    }


def _layout(plan: LayoutPlan) -> dict[str, Any]:
    return {
        "options": plan.options,
        "parallel": vars(plan.parallel),
        "activation_checkpointing": plan.checkpointing,
        "gpus": plan.gpus,
        "bytes": plan.bytes,
        "room": plan.room,
        "fits": plan.fits,
        "seconds": plan.seconds,
        "gpu_hours": plan.gpu_hours,
        "stages": {
            name: {
                "seconds": stage.seconds,
                "step_seconds": dict(stage.step_seconds),
                "memory": None
                if stage.held is None
                else {
                    "roles": {role.role: vars(role) for role in stage.held.roles},
                    "gradients": stage.held.gradients,
                    "activations": stage.held.activations,
                    "kept_for_backward": stage.held.kept,
                    "gathered": stage.held.gathered,
                    "total": stage.held.total,
                },
            }
            for name, stage in plan.stages.items()
        },
    }

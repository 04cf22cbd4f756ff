"""What :func:`cosmos_distill.distill` and :func:`cosmos_distill.sample` refuse before any work: networks,
data and numbers that do not go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_distill.adapters import Adapter
from cosmos_distill.config import (
    EDM,
    GivesFrames,
    MethodConfig,
    Parallel,
    Precision,
    Setting,
    Trainer,
    TrigFlow,
)
from cosmos_distill.data import given
from cosmos_distill.data.batch import Batch
from cosmos_distill.errors import Refusal
from cosmos_distill.methods.denoiser import dtype_of
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import Parallelised


@contextmanager
def laid_out(parallel: Parallel | None) -> Iterator[Parallel]:
    """:func:`groups.borrowed`. Raises Refusal where the ranks that there are cannot be laid out so."""
    with ExitStack() as stack:
        try:
            layout = stack.enter_context(groups.borrowed(parallel))
        except ValueError as error:
            raise Refusal(f"parallel: {error}") from error
        yield layout


def source_of(data: Any, seed: int) -> given.Source:
    """:func:`cosmos_distill.data.given.source_of`. Raises Refusal where it is nothing that holds samples."""
    try:
        return given.source_of(data, seed)
    except TypeError as error:
        raise Refusal(str(error)) from error


def require_roles(student: nn.Module, teacher: nn.Module | None) -> None:
    """Refuse networks without values, and two that are one."""
    for name, network in (("student", student), ("teacher", teacher)):
        if network is not None and any(p.is_meta for p in network.parameters()):
            raise Refusal(f"{name}: its weights are on the meta device, where they have no values: load them")
    if teacher is None:
        return
    own = {id(p) for p in student.parameters()}
    if any(id(p) in own for p in teacher.parameters()):
        raise Refusal("student and teacher share weights: give the student a copy, copy.deepcopy(teacher)")


def schedule_of(student: nn.Module, teacher: nn.Module | None) -> EDM | TrigFlow | None:
    """That of the student's adapter, if it has one. Raises Refusal where the teacher's is another."""
    own, other = (getattr(network, "schedule", None) for network in (student, teacher))
    if None not in (own, other) and own != other:
        raise Refusal(
            f"the student's adapter says {own}, the teacher's {other}: both have to be of one schedule"
        )
    return own


def require_layout(layout: Parallel, trainer: Trainer, student: nn.Module, teacher: nn.Module | None) -> None:
    foreign = [n for n in (student, teacher) if n is not None and not isinstance(n, Parallelised)]
    if layout.model > 1 and foreign:
        raise Refusal(
            f"parallel: {type(foreign[0]).__name__} can be shared by data only: leave tensor, context and "
            "pipeline at 1"
        )
    each = groups.data_size() * trainer.micro_batch
    if trainer.global_batch % each:
        raise Refusal(
            f"trainer.global_batch {trainer.global_batch} is not a multiple of {each}, {groups.data_size()} "
            f"ranks with micro-batches of {trainer.micro_batch}"
        )


def require_fit(
    method: MethodConfig, student: nn.Module, schedule: EDM | TrigFlow, trainer: Trainer, first: Batch
) -> None:
    """Refuse a method whose numbers do not suit network and data."""
    network: Any = student
    if not hasattr(network, "feature"):
        raise Refusal(
            f"{type(network).__name__} is no network that can be trained: put it behind an adapter, a "
            "subclass of cosmos_distill.Adapter"
        )
    gives = isinstance(method, GivesFrames) and any(method.condition_frames[1:])
    if isinstance(network, Adapter) and network.given_frames is None and gives:
        raise Refusal("condition_frames: this network cannot be given frames: set it to (1.0,)")
    _, *grid, width = network.feature(first.latents)
    setting = Setting(
        schedule=schedule,
        blocks=network.config.blocks,
        width=width,
        grid=(grid[0], grid[1], grid[2]),
        max_steps=trainer.max_steps,
        pairs=first.noise is not None,
        recipe=False,
    )
    for field, problem in method.misfits(setting):
        raise Refusal(f"{type(method).__name__}({field}): {problem}")


def precision_of(student: nn.Module) -> Precision:
    dtype = dtype_of(student)
    if dtype in (torch.float32, torch.float64):
        return "fp32"
    if dtype == torch.bfloat16:
        return "bf16"
    raise Refusal(f"the student's weights are {dtype}, and nothing trains in that: take bf16 or fp32")


def require_together(tensors: Mapping[str, Any]) -> int:
    """How many samples these tensors are of. Raises Refusal unless all have as many, and text is there."""
    text = tensors.get("text")
    if not isinstance(text, Tensor) or text.ndim != 3 or not len(text):
        raise Refusal("conditioning: text, [B, L, D], is what every network is told")
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.ndim or len(value) != len(text):
            found = list(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise Refusal(f"conditioning: {name} is {found}: give a tensor with {len(text)} samples first")
    return len(text)

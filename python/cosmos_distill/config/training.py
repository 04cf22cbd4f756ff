"""Optimisers, and the length, batch and bookkeeping of a training stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cosmos_distill.config.numbers import BatchSize, Decay, Factor, Interval, Precision, Rate, Start, Steps
from cosmos_distill.ranges import Checked, Problem, Range, effect


@dataclass(frozen=True)
class LambdaLinear(Checked):
    """Factor on a learning rate, by updates of its role: linear from ``start`` to ``peak`` over the warm-up,
    then linear towards ``end``, which is reached after ``cycle_steps`` (Predict2.5)."""

    warmup_steps: Steps = 100
    start: Factor = 1e-6
    peak: Factor = 0.99
    end: Factor = 0.4
    cycle_steps: Annotated[int, Range(2, 10**9)] = 400_000

    def rules(self) -> Iterator[Problem]:
        """The warm-up is a part of the cycle."""
        if self.warmup_steps >= self.cycle_steps:
            yield "warmup_steps", f"{self.warmup_steps} must be below cycle_steps {self.cycle_steps}"


@dataclass(frozen=True)
class Optim(Checked):
    """AdamW of one role, with a linear warm-up to a constant learning rate."""

    lr: Rate
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: Annotated[float, Range(1e-18, 1)] = 1e-8
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.01
    warmup_steps: Start = 0
    cosine: bool = False
    """Decay to zero over the stage's max_steps along a half cosine instead of staying constant."""
    linear: LambdaLinear | None = None
    """This schedule instead of warm-up and cosine."""
    clip_norm: Annotated[float, Range(0, 1e30, above=True)] | None = None
    """Largest global gradient norm; None leaves the gradient as it is (its norm is logged anyway)."""

    def rules(self) -> Iterator[Problem]:
        """Decay must not turn weights around, and there is one schedule."""
        if self.weight_decay * self.lr > 1:
            text = (
                f"{self.weight_decay} times lr {self.lr} is above 1, which turns weights around: choose at "
                f"most {1 / self.lr:g}"
            )
            yield "weight_decay", text
        if self.linear is not None and (self.cosine or self.warmup_steps):
            yield "linear", "has a warm-up and an end of its own: leave warmup_steps and cosine off"


@dataclass(frozen=True)
class Trainer(Checked):
    """Length, batch and bookkeeping of one training stage."""

    max_steps: Steps = field(metadata=effect("length"))
    """Optimiser steps, all phases counted."""
    global_batch: BatchSize = 64
    """Samples per optimiser step over all ranks; gradient accumulation is derived from it."""
    micro_batch: BatchSize = field(default=1, metadata=effect("none"))
    """Samples per forward pass of one data-parallel rank."""
    precision: Precision = "bf16"
    """bf16 keeps fp32 master weights in the optimiser."""
    activation_checkpointing: Literal["none", "full", "selective"] = field(
        default="none", metadata=effect("none")
    )
    """What the backward pass computes again: nothing, the inside of every block, or that without its
    attention, whose outputs (and log-sum-exp) are kept."""
    ema_decay: Decay | None = None
    """Decay per student step of an exponential moving average of the student; None keeps none."""
    ema_power: Annotated[float, Range(1e-3, 0.28, below=True)] | None = None
    """Relative width of a power-function average of the student, which forgets its beginning (Karras et al.
    2024, arXiv 2312.02696), instead of one with a constant decay; None keeps none."""
    log_every: Interval = field(default=100, metadata=effect("none"))
    """Steps between two lines of the log; 0: only the last step has one."""
    save_every: Interval = field(default=500, metadata=effect("none"))
    """Steps between two checkpoints; 0: only the last step, and a run that is stopped, has one."""
    sample_every: Interval = field(default=500, metadata=effect("none"))
    """Steps between two sample grids, and at the end; 0: never."""
    keep_checkpoints: Annotated[int, Range(1, 10**6)] = field(default=2, metadata=effect("none"))
    """Newest checkpoints left on disk."""
    keep_every: Interval | None = field(default=None, metadata=effect("none"))
    """Checkpoints of every such step stay beside them; None or 0: no others."""
    max_nonfinite: Annotated[int, Range(1, 10**6)] = field(default=5, metadata=effect("none"))
    """Steps of a role in a row, not counting those of other roles, after which the stage stops with an error
    if none was finite."""

    @property
    def averages(self) -> bool:
        """Whether an average of the student is kept; it is then the result of the stage."""
        return self.ema_decay is not None or self.ema_power is not None

    def rules(self) -> Iterator[Problem]:
        """One average, and whole micro-batches."""
        if self.ema_decay is not None and self.ema_power is not None:
            yield "ema_power", "and ema_decay are two averages of one student: choose one"
        if self.global_batch % self.micro_batch:
            text = (
                f"{self.global_batch} is not a multiple of micro_batch {self.micro_batch}: choose a "
                "micro_batch that divides it"
            )
            yield "global_batch", text

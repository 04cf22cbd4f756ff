"""What rank 0 of a layout does and holds in a training stage, counted once for all layouts that ask alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor

import torch

from cosmos_distill import diffusion, models
from cosmos_distill.config import EDM, ONE_STEP, Parallel, Train, TrigFlow
from cosmos_distill.launch.cost import Count, count_step
from cosmos_distill.launch.updates import clip
from cosmos_distill.methods import base
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import Parallelised

Phase = tuple[str, ...]
"""Roles that are trained together."""


@dataclass
class OnRank:
    """One rank of a layout in one stage."""

    parameters: dict[str, int] = field(default_factory=dict)
    """Role -> parameters that the rank has before data-parallel ranks share any."""
    block: int = 0
    """Parameters of the largest block of them."""
    trained: dict[str, bool] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    """Roles that every rank has whole, whatever the layout."""
    phases: dict[Phase, Count] = field(default_factory=dict)
    """What one call of the losses does: of a micro-batch, or of all of a pipeline's."""
    steps: dict[Phase, int] = field(default_factory=dict)
    """Optimiser steps of each phase in the stage."""


@dataclass(frozen=True)
class Subject:
    """What is counted: networks, clips and a stage."""

    network: DiTConfig
    schedule: EDM | TrigFlow
    latent: tuple[int, int, int, int]
    """(channels, frames, height, width) of a clip."""
    stage: Train


class Counter:
    """Counts on request, and remembers."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], OnRank] = {}
        self.counted = 0
        """Steps that were run."""

    def on_rank(
        self, name: str, subject: Subject, parallel: Parallel, checkpointing: str, samples: int
    ) -> OnRank:
        """Rank 0 of ``parallel``, under which ``samples`` are given to the losses at once."""
        key = (
            name, parallel.tensor, parallel.sequence, parallel.context, parallel.context_attention,
            parallel.pipeline, parallel.virtual_pipeline, checkpointing, samples,
        )  # fmt: skip
        if key not in self._known:
            self._known[key] = self._count(subject, parallel, checkpointing, samples)
        return self._known[key]

    def trained(self, subject: Subject) -> dict[str, int]:
        """Trained role -> parameters of the whole network."""
        with groups.imagined(Parallel(), device=torch.device("meta")):
            method = _method(subject, "none")
            return {role: _size(method.roles[role]) for role in method.trainable}

    def _count(self, subject: Subject, parallel: Parallel, checkpointing: str, samples: int) -> OnRank:
        stage = subject.stage
        with groups.imagined(parallel, device=torch.device("meta")):
            method = _method(subject, checkpointing)
            batch = clip(subject.network, subject.latent, samples, noise=stage.pairs_from is not None)
            found = OnRank(
                parameters={role: _size(network) for role, network in method.roles.items()},
                block=_largest_block(method.roles["student"]),
                trained={role: role in method.trainable for role in method.roles},
                whole={role for role, n in method.roles.items() if not isinstance(n, Parallelised)},
            )
            first: dict[Phase, int] = {}
            for step in range(stage.trainer.max_steps):
                phase = tuple(method.phase(step))
                first.setdefault(phase, step)
                found.steps[phase] = found.steps.get(phase, 0) + 1
            for phase, step in first.items():
                # The mean over the numbers of evaluations, all equally likely, in which the work is linear.
                mean = getattr(stage.method, "sampler", ONE_STEP).steps / 2 + 0.5
                counts = [count_step(method, batch, step, n) for n in sorted({floor(mean), ceil(mean)})]
                self.counted += len(counts)
                total = counts[0]
                for more in counts[1:]:
                    total += more
                found.phases[phase] = total.times(1 / len(counts))
        return found


def _method(subject: Subject, checkpointing: str) -> base.Method:
    """The stage's method over networks on the meta device, as this rank has them."""
    trainer = subject.stage.trainer

    def networks(role: str) -> torch.nn.Module:
        dtype = DTYPES[trainer.precision]
        network = models.build(subject.network, device="meta", dtype=dtype, seed=None)
        network.activation_checkpointing = checkpointing  # type: ignore[assignment]
        network.micro_batch = trainer.micro_batch
        return network

    return base.build(subject.stage.method, networks, diffusion.build_schedule(subject.schedule))


DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _size(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _largest_block(network: torch.nn.Module) -> int:
    from cosmos_distill.models.common.blocks import Block

    return max((_size(m) for m in network.modules() if isinstance(m, Block)), default=0)

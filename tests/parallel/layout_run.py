"""What one rank does under a layout: train every case with the trainer's own step and write all of it down."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cosmos_distill import diffusion, methods, models
from cosmos_distill.methods.base import Networks
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import parts_of
from cosmos_distill.train import loop
from cosmos_distill.train.guard import StopFlag
from cosmos_distill.train.log import Window
from cosmos_distill.train.optim import RoleOptimizer
from cosmos_distill.train.pieces import Piece, piece, whole
from cosmos_distill.train.state import TrainState
from tests.parallel.layouts import CASES, SEED, Case, Clips, Layout

Entry = tuple[str, tuple[int, ...], tuple[int, ...], Tensor]
"""Key, shape of the whole tensor, where this box of it begins, the box."""


@dataclass
class Record:
    """What a rank saw: boxes of tensors under keys ``<phase>/<kind>/<what>``. The phase is ``student`` or
    ``critics`` (``end`` after the last step), the kind ``loss``, ``norm``, ``gradient`` or ``weight``."""

    entries: list[Entry] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, key: str, of: Piece) -> None:
        for block in of.blocks:
            self.entries.append((key, of.shape, block.offsets, block.value.detach().clone()))


@dataclass(frozen=True)
class Variation:
    """How a run differs from the one that all layouts repeat."""

    seed: int = SEED
    double: bool = False
    """In fp64, which says how much of a difference is rounding."""
    plant: str | None = None
    """An error of :data:`PLANTS`."""


def run(layout: Layout, case_name: str, variation: Variation) -> Record:
    """Three optimiser steps of a case."""
    case, seed = CASES[case_name], variation.seed
    record = Record()
    started = time.monotonic()
    schedule = diffusion.build_schedule(case.schedule)
    dtype = torch.float64 if variation.double else torch.float32
    method = methods.build(case.method, networks(case, seed, dtype), schedule, seed=seed)
    trainer = case.trainer(layout)
    for network in method.roles.values():
        network.activation_checkpointing = trainer.activation_checkpointing
    state = TrainState(method, trainer, seed)
    source = Double(case.source) if variation.double else case.source
    try:
        while state.step < trainer.max_steps:
            turn, step = method.turn(state.step), state.step
            phase = "student" if "student" in turn else "critics"
            state.window = Window()
            with ExitStack() as hooks:
                for role in turn:
                    note = note_gradients(record, f"{phase}/gradient/step {step} {role}", method.roles[role])
                    hooks.enter_context(before_clipping(state.optimizers[role], note))
                loop._step(state, source, StopFlag(), None, seed)
            for key, value in state.window.means().items():
                kind = "norm" if key.startswith("grad_norm/") else "loss"
                if kind == "norm" or key.startswith("loss/"):
                    scalar = whole(torch.tensor(value, dtype=torch.float64))
                    record.add(f"{phase}/{kind}/step {step} {key}", scalar)
        for role in method.trainable:
            values = dict(method.roles[role].state_dict())
            for name, of in pieces_of(method.roles[role], values).items():
                record.add(f"end/weight/{role} {name}", of)
        for name, of in pieces_of(method.roles["student"], state.ema.average).items():
            record.add(f"end/weight/average {name}", of)
    finally:
        state.close()
    record.seconds = time.monotonic() - started
    return record


def pieces_of(network: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Piece]:
    parts = parts_of(network)
    return {name: piece(value, parts[name]) for name, value in values.items()}


def note_gradients(record: Record, prefix: str, network: nn.Module) -> Callable[[RoleOptimizer], None]:
    def note(optimizer: RoleOptimizer) -> None:
        gradients = {n: m.grad for n, m in optimizer.masters.items() if m.grad is not None}
        for name, of in pieces_of(network, gradients).items():
            record.add(f"{prefix} {name}", of)

    return note


class before_clipping:
    """Inside the block ``note(optimizer)`` runs where the loop is done with the gradients of a step."""

    def __init__(self, optimizer: RoleOptimizer, note: Callable[[RoleOptimizer], None]) -> None:
        self.optimizer, self.note = optimizer, note

    def __enter__(self) -> None:
        clip = self.optimizer.clip

        def noted(norm: float) -> None:
            self.note(self.optimizer)
            clip(norm)

        self.optimizer.clip = noted

    def __exit__(self, *_: object) -> None:
        del self.optimizer.clip


@dataclass(frozen=True)
class Double:
    """A source in fp64."""

    source: Clips

    def batch(self, first: int, count: int):
        batch = self.source.batch(first, count)
        return replace(
            batch, **{k: v.double() for k, v in vars(batch).items() if isinstance(v, Tensor) and k != "fps"}
        )


def networks(case: Case, seed: int, dtype: torch.dtype) -> Networks:
    """Networks none of whose tensors is zero at the start, and no two of which are alike."""

    def make(role: str) -> nn.Module:
        network = models.build(case.network, dtype=dtype, seed=seed)
        for name, of in pieces_of(network, network.state_dict()).items():
            key = hashlib.blake2b(f"{seed}/{role}/{name}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            noise = 0.1 * torch.randn(of.shape, generator=generator)
            for block in of.blocks:
                box = tuple(slice(o, o + n) for o, n in zip(block.offsets, block.value.shape, strict=True))
                block.value.add_(noise[box])
        return network

    return make


def record(layout: Layout, cases: Iterable[str], variation: Variation) -> dict[str, Record]:
    """All of ``cases``, one after the other in the process groups of ``layout``."""
    groups.initialize(layout.parallel)
    with ExitStack() as planted:
        if variation.plant is not None:
            planted.enter_context(PLANTS[variation.plant]())
        return {case: run(layout, case, variation) for case in cases}


PLANTS: dict = {}
"""Mistakes that a layout can hide, as context managers."""

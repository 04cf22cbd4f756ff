"""The training loop of one stage, the same for every method and scale."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cosmos_distill.arguments import checked
from cosmos_distill.config import Seed, Trainer
from cosmos_distill.data.batch import Batch
from cosmos_distill.methods.base import Method
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.agreement import is_rank_zero, on_rank_zero
from cosmos_distill.randomness import Noise
from cosmos_distill.train.checkpoint import Store, publish
from cosmos_distill.train.checkpoint.room import refuse_full
from cosmos_distill.train.guard import Interrupted, StopFlag
from cosmos_distill.train.log import RunLog, Silence
from cosmos_distill.train.state import TrainState, random_state, set_random_state


@runtime_checkable
class Samples(Protocol):
    """What the loop asks of a data source: samples ``first .. first+count-1`` of an endless seeded stream."""

    def batch(self, first: int, count: int) -> Batch: ...


@dataclass(frozen=True)
class FitResult:
    """How a stage ended."""

    step: int
    """Optimiser steps done."""
    student: Path
    """File with the student's weights (their average where the stage keeps one)."""
    skipped: int
    """Steps skipped because something was not finite."""
    skipped_by_role: dict[str, int]
    """Of these, the steps of a role's phase; roles without any are absent."""
    left_out: dict[str, int]
    """Samples that a role's steps did without, since their loss was not finite; roles likewise."""
    seconds: float
    """Training time over all processes that worked on it."""
    resumed_from: int = 0
    """Step of the checkpoint that this process started from; 0 for a fresh start."""
    losses: dict[str, float] = field(default_factory=dict)
    """The last logged means, by key such as ``loss/kd``."""


@checked(method="must be what cosmos_distill.methods.build returns", source="must have batch(first, count)")
def fit(
    method: Method,
    source: Samples,
    trainer: Trainer,
    folder: Path,
    *,
    seed: Seed,
    sampler_grid: Callable[[int], None] | None = None,
    stop: StopFlag | None = None,
) -> FitResult:
    """Train ``method`` on ``source`` to ``trainer.max_steps``, going on from the newest valid checkpoint.

    Step s uses samples ``s*global_batch .. (s+1)*global_batch-1``, cut over the data-parallel ranks and then
    into micro-batches. Every loss is a sum over samples divided by the global batch, so the cut does not
    change the result. In ``folder``: ``log.jsonl``, ``tensorboard/``, ``checkpoints/``, and at the end
    ``student.safetensors``.

    All ranks of a run call this together, and rank 0 writes. A stop that one of them was asked for stops all
    of them after the same step.

    Args:
        method: networks by role, their losses and their phases. ``activation_checkpointing`` of the
            trainer is for whoever builds the networks: this loop sets nothing on them.
        source: the data.
        trainer: length, batch and bookkeeping.
        folder: the stage's folder, made if missing.
        seed: of the method's noise and of torch's generator.
        sampler_grid: called on all ranks with the number of steps done every ``sample_every`` steps and at
            the end, while the student holds its averaged weights. What it does to torch's generator is
            undone.
        stop: set by a signal; the run then saves and raises.

    Returns:
        Where the student is and how the run went.

    Raises:
        Refusal: an argument is of another type, or out of range, or the disk has no room for the checkpoints.
        Interrupted: ``stop`` was requested; the same call goes on from where this one stopped.
        NonFiniteError: ``max_nonfinite`` steps of a role in a row were not finite, or all of the student's;
            earlier checkpoints are untouched.
        DiskError: the folder cannot be written.
        CheckpointError: it holds only damaged checkpoints.
        ResumeError: the folder belongs to a run with other hyper-parameters.
    """
    stop, alone = stop or StopFlag(), groups.world_group().size() == 1
    store = Store(folder / "checkpoints", trainer.keep_checkpoints, trainer.keep_every)
    state = TrainState(method, trainer, seed)
    size = state.checkpoint_bytes()
    on_rank_zero(lambda: refuse_full(store.folder, size, trainer))
    checkpoint = store.newest()
    if checkpoint is not None:
        state.restore(checkpoint)
    resumed_from = saved = state.step
    title = type(method.config).__name__
    log = RunLog(folder, state.step, trainer.max_steps, title) if is_rank_zero() else Silence()
    losses: dict[str, float] = {}

    def save() -> None:
        nonlocal saved
        log.sync()
        store.save(state.step, state.groups(), state.numbers())
        saved = state.step

    with store, closing(state), closing(log):
        if resumed_from:
            log.say(f"going on from step {resumed_from}")
        while state.step < trainer.max_steps:
            started = time.monotonic()
            finished, stopped = _step(state, source, stop, log, seed)
            state.wall += time.monotonic() - started
            if finished:
                log.advance(state.step)
                last = state.step == trainer.max_steps
                if (last or _due(state.step, trainer.log_every)) and state.window.sums:
                    losses = state.window.means()
                    log.record(state.step, state.wall, {**losses, **state.guard.record()})
                    state.window = type(state.window)()
                if (last and trainer.sample_every) or _due(state.step, trainer.sample_every):
                    _draw(state, sampler_grid)
                if last or _due(state.step, trainer.save_every):
                    save()
            if (stop.requested if alone else stopped) and state.step < trainer.max_steps:
                if saved != state.step or not saved:
                    save()
                store.wait()
                raise Interrupted(
                    f"stopped by {stop.name or 'another rank'} after {state.step} of {trainer.max_steps} "
                    f"steps; everything is saved in {store.folder}: the same command goes on from there"
                )
        if not state.optimizers["student"].updates:
            state.guard.require_a_step("student", state.step)
        student = publish(store, state.step, folder / "student.safetensors")
    return FitResult(
        step=state.step,
        student=student,
        skipped=state.guard.total,
        skipped_by_role=dict(state.guard.skipped),
        left_out=dict(state.guard.left_out),
        seconds=state.wall,
        resumed_from=resumed_from,
        losses=losses,
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _step(
    state: TrainState, source: Samples, stop: StopFlag, log: RunLog | Silence, seed: int
) -> tuple[bool, bool]:
    """One optimiser step: whether it was finished, and whether the run is to stop.

    In a world of one a stop is also noticed between two micro-batches: everything is then as before the step.
    """
    method, trainer, step = state.method, state.trainer, state.step
    roles = method.phase(step)
    state.mark()
    for role, optimizer in state.optimizers.items():
        optimizer.requires_grad_(role in roles)
        optimizer.zero_grad()

    device = next(method.roles["student"].parameters()).device
    alone = groups.world_group().size() == 1
    share = trainer.global_batch // groups.data_size()
    begin = step * trainer.global_batch + groups.data_rank() * share
    # A pipelined network cuts what it is given into micro-batches itself, to have several under way.
    count = share if groups.layout().pipeline > 1 else trainer.micro_batch
    sums: dict[str, Tensor] = {}
    for first in range(begin, begin + share, count):
        last = first + count == begin + share
        batch = source.batch(first, count).to(device)
        with ExitStack() as backward:
            for role in roles:
                backward.enter_context(state.optimizers[role].backward_of(last))
            losses = method.losses(batch, step, Noise(seed, step, first, count))
            (losses["total"].sum() / trainer.global_batch).backward()
        for key, value in losses.items():
            total = value.detach().double().sum() / trainer.global_batch
            sums[key] = sums[key] + total if key in sums else total
        if alone and stop.requested and not last:
            state.roll_back()
            return False, True
    for role in roles:
        state.optimizers[role].reduce()

    # The named terms first, so that a skipped step is put down to one of them.
    sums["total"] = sums.pop("total")
    norms = {f"grad_norm/{role}": state.optimizers[role].gradient_norm() for role in roles}
    values, stopped = _all_reduce(sums, norms, stop)
    state.step += 1
    if term := _nonfinite(values, trainer.global_batch):
        _skip(state, log, roles, step, term)
        return True, stopped
    # The phases' totals have nothing in common, so their mean over a log window would mean nothing.
    del values["total"]

    for role in roles:
        optimizer = state.optimizers[role]
        optimizer.clip(values[f"grad_norm/{role}"])
        optimizer.step(step)
        optimizer.zero_grad()
        values[f"lr/{role}"] = optimizer.learning_rate(step)
    for follower, (leader, kept) in method.alignments(roles).items():
        state.optimizers[follower].align(state.optimizers[leader], kept)
    if state.ema is not None and "student" in roles:
        state.ema.update()
    state.guard.good(roles, max(_left_out(values, trainer.global_batch).values(), default=0))
    state.window.add(values)
    return True, stopped


def _all_reduce(
    sums: Mapping[str, Tensor], norms: Mapping[str, Tensor], stop: StopFlag
) -> tuple[dict[str, float], bool]:
    """The values of a step and whether a rank was asked to stop, the same on all ranks to the last bit.

    One transfer from the device and, between several ranks, one all-reduce before it.

    Args:
        sums: of this rank's samples; those of a model group have the same samples and count once.
        norms: global already.
    """
    own = torch.stack([*sums.values()])
    flag = own.new_tensor([float(stop.requested)])
    if groups.world_group().size() > 1:
        if groups.model_group().rank() != 0:
            own = torch.zeros_like(own)
        own, flag = groups.all_reduce_sum(torch.cat([own, flag]), groups.world_group()).split([len(own), 1])
    found = torch.cat([own, *(norm.double().reshape(1).to(own.device) for norm in norms.values()), flag])
    *values, stops = found.tolist()
    return dict(zip([*sums, *norms], values, strict=True)), stops > 0


def _nonfinite(values: Mapping[str, float], batch: int) -> str | None:
    """The term because of which a step is skipped: one that is not finite, or that was not in any sample."""
    for key, value in values.items():
        if not math.isfinite(value):
            return key
    return next((f"loss/{term}" for term, count in _left_out(values, batch).items() if count == batch), None)


def _left_out(values: Mapping[str, float], batch: int) -> dict[str, int]:
    """How many of the step's samples a method left out, by the term that was not finite in them."""
    kind = "nonfinite/"
    return {key.removeprefix(kind): round(v * batch) for key, v in values.items() if key.startswith(kind)}


def _skip(state: TrainState, log: RunLog | Silence, roles: Sequence[str], step: int, term: str) -> None:
    """Leave the weights alone and say so in the log. The data moves on: the same step is not met again."""
    state.roll_back()
    try:
        state.guard.bad(roles, step, term)
    finally:
        log.record(state.step, state.wall, {"nonfinite": term, **state.guard.record()})
        log.say(f"step {step} of {' and '.join(roles)} skipped: {term} is not finite")


def _draw(state: TrainState, sampler_grid: Callable[[int], None] | None) -> None:
    """Sample grids with the averaged weights, without a trace in the training's random state."""
    if sampler_grid is None:
        return
    before = random_state()
    try:
        with torch.no_grad():
            if state.ema is None:
                sampler_grid(state.step)
            else:
                with state.ema.applied_to(state.optimizers["student"]):
                    sampler_grid(state.step)
    finally:
        set_random_state(before)

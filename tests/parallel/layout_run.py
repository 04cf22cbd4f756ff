"""What one rank does under a layout: train every case with the trainer's own loop and write it all down."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cosmos_distill import diffusion, methods, models
from cosmos_distill.data.batch import Batch
from cosmos_distill.launch.cost import Activations, count_step
from cosmos_distill.methods.base import Method, Networks
from cosmos_distill.parallel import data, groups, megatron  # noqa: F401  # once, for all that are forked
from cosmos_distill.parallel.agreement import is_rank_zero
from cosmos_distill.train import loop
from cosmos_distill.train.checkpoint import Piece, whole
from cosmos_distill.train.optim import RoleOptimizer, network_pieces
from cosmos_distill.train.state import TrainState
from tests.launch.measuring import held
from tests.parallel.layout_plants import PLANTS
from tests.parallel.layouts import EVERY_CASE, SEED, Case, Clips, Layout

Entry = tuple[str, tuple[int, ...], tuple[int, ...], Tensor]
"""Key, shape of the whole tensor, where this box of it begins, the box."""


PUBLISHED = {"DMD2"}
"""Cases whose last step is saved and whose student is published, which takes a third of the time and depends
on roles and layouts, not on the method."""


@dataclass
class Record:
    """What a rank saw: boxes of tensors under keys ``<phase>/<kind>/<what>``. The phase is ``student`` or
    ``critics``, ``start`` before the first step or ``end`` after the last; the kind ``loss``, ``norm``,
    ``gradient`` or ``weight``."""

    entries: list[Entry] = field(default_factory=list)
    seconds: float = 0.0
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Phase -> bytes that a micro-batch keeps for its backward pass, and the most that it has at once."""

    def add(self, key: str, pieces: Mapping[str, Piece]) -> None:
        """Note ``pieces`` under ``<key> <name>``."""
        for name, of in pieces.items():
            for block in of.blocks:
                self.entries.append((f"{key} {name}", of.shape, block.offsets, block.value.detach().clone()))

    def save(self, path: Path) -> None:
        """Write it; as few tensors, since reading thousands takes a second."""
        of_type: dict[str, list[Tensor]] = {}
        about = []
        for key, shape, offsets, value in self.entries:
            of_type.setdefault(str(value.dtype), []).append(value.flatten())
            about.append((key, shape, offsets, tuple(value.shape), str(value.dtype)))
        flat = {name: torch.cat(values) for name, values in of_type.items()}
        torch.save((json.dumps(about), flat, self.seconds, self.held), path)

    @classmethod
    def load(cls, path: Path) -> Record:
        about, flat, seconds, memory = torch.load(path, weights_only=True)
        entries, begin = [], dict.fromkeys(flat, 0)
        for key, shape, offsets, size, name in json.loads(about):
            first, count = begin[name], prod(size)
            begin[name] += count
            entries.append((key, tuple(shape), tuple(offsets), flat[name][first : first + count].view(size)))
        return cls(entries, seconds, memory)


@dataclass(frozen=True)
class Variation:
    """How a run differs from the one that all layouts repeat."""

    seed: int = SEED
    double: bool = False
    """In fp64, which says how much of a difference is rounding."""
    plant: str | None = None
    """A mistake of :data:`~tests.parallel.layout_plants.PLANTS`."""
    memory: bool = False
    """Instead of training, look what a micro-batch of each phase holds."""


def record(layout: Layout, cases: Sequence[str], variation: Variation, folder: Path) -> dict[str, Record]:
    """All of ``cases``, one after the other in the process groups of ``layout``."""
    groups.initialize(layout.parallel)
    with ExitStack() as planted:
        if variation.plant is not None:
            planted.enter_context(PLANTS[variation.plant]())
        found = {}
        for case in cases:
            try:
                work = measure if variation.memory else run
                found[case] = work(layout, case, variation, folder / case)
            except Exception as error:
                error.add_note(f"in the case {case}")
                raise
        return found


def run(layout: Layout, case_name: str, variation: Variation, folder: Path) -> Record:
    """Three optimiser steps of a case, by the trainer's loop."""
    case, seed = EVERY_CASE[case_name], variation.seed
    record, started = Record(), time.monotonic()
    dtype = torch.float64 if variation.double else torch.float32
    method = methods.build(
        case.method, networks(case, layout, seed, dtype), diffusion.build_schedule(case.schedule), seed=seed
    )
    source = Double(case.source) if variation.double else case.source
    folder.mkdir(exist_ok=True)
    with watched(record), nullcontext() if case_name in PUBLISHED else unpublished():
        result = loop.fit(method, source, case.trainer(layout), folder, seed=seed)
    if case_name in PUBLISHED and is_rank_zero():
        published = {name: whole(value) for name, value in load_file(result.student).items()}
        record.add("end/weight/published", published)
    record.seconds = time.monotonic() - started
    return record


def measure(layout: Layout, case_name: str, variation: Variation, folder: Path) -> Record:
    """What the first micro-batch of a student's and of a critics' step holds on this rank."""
    case = EVERY_CASE[case_name]
    made = methods.build(
        case.method,
        networks(case, layout, variation.seed, torch.float32),
        diffusion.build_schedule(case.schedule),
    )
    batch = case.source.batch(0, together(case, layout))
    found = {step: held(made, batch, step) for step in steps(made)}
    return Record(held={made.phase(step)[0]: (of.kept, of.peak) for step, of in found.items()})


def counted(layout: Layout, case_name: str) -> dict[str, Activations]:
    """The same as :func:`measure`, counted on meta tensors in this process."""
    case = EVERY_CASE[case_name]

    def make(role: str) -> nn.Module:
        network = models.build(case.network, device="meta", seed=None)
        network.activation_checkpointing = layout.recompute
        network.micro_batch = layout.micro_batch
        return network

    device = torch.device("meta")
    with groups.imagined(layout.parallel, data=layout.data, device=device):
        made = methods.build(case.method, make, diffusion.build_schedule(case.schedule))
        batch = case.source.batch(0, together(case, layout)).to(device)
        return {made.phase(s)[0]: count_step(made, batch, s).activations for s in steps(made)}


def together(case: Case, layout: Layout) -> int:
    """Samples that a network is given at once: a pipeline cuts them itself."""
    share = case.trainer(layout).global_batch // layout.data
    return share if layout.parallel.pipeline > 1 else layout.micro_batch


def steps(method: Method) -> list[int]:
    """The first of each phase."""
    return [0, 1] if len(method.trainable) > 1 else [0]


@contextmanager
def unpublished() -> Iterator[None]:
    """Inside the block the loop keeps nothing on disk but its log."""
    store = mock.MagicMock()
    store.return_value.newest.return_value = None
    with mock.patch.object(loop, "Store", store), mock.patch.object(loop, "publish", lambda *_: Path()):
        yield


@contextmanager
def watched(record: Record) -> Iterator[None]:
    """Inside the block the loop's steps are noted, and after the last one the weights."""
    plain_step = loop._step

    def step(state: TrainState, *args: Any) -> tuple[bool, bool]:
        number, active = state.step, state.method.phase(state.step)
        phase = "student" if "student" in active else "critics"
        if number == 0:
            for role in state.method.trainable:
                record.add(f"start/weight/{role}", network_pieces(state.method.roles[role]))
        with ExitStack() as hooks:
            for role in active:
                key = f"{phase}/gradient/step {number} {role}"
                hooks.enter_context(before_clipping(state.optimizers[role], noting_gradients(record, key)))
            outcome = plain_step(state, *args)
        means = state.window.means()
        scalars = {name: whole(torch.tensor(v, dtype=torch.float64)) for name, v in means.items()}
        for kind, prefix in (("loss", "loss/"), ("norm", "grad_norm/")):
            of_kind = {name: piece for name, piece in scalars.items() if name.startswith(prefix)}
            record.add(f"{phase}/{kind}/step {number}", of_kind)
        if state.step == state.trainer.max_steps:
            for role in state.method.trainable:
                record.add(f"end/weight/{role}", network_pieces(state.method.roles[role]))
            average = state.optimizers["student"].pieces_of(state.ema.average)
            record.add("end/weight/average", average)
        return outcome

    with mock.patch.object(loop, "_step", step):
        yield


def noting_gradients(record: Record, key: str) -> Callable[[RoleOptimizer], None]:
    def note(optimizer: RoleOptimizer) -> None:
        found = {name: m.grad for name, m in optimizer.masters.items() if m.grad is not None}
        record.add(key, optimizer.pieces_of(found))

    return note


def before_clipping(
    optimizer: RoleOptimizer, note: Callable[[RoleOptimizer], None]
) -> AbstractContextManager[Any]:
    """Inside the block ``note(optimizer)`` is called when the gradients of a step are complete."""
    clip = optimizer.clip

    def noted(norm: float) -> None:
        note(optimizer)
        clip(norm)

    return mock.patch.object(optimizer, "clip", noted)


@dataclass(frozen=True)
class Double:
    """A source in fp64."""

    source: Clips

    def batch(self, first: int, count: int) -> Batch:
        batch = self.source.batch(first, count)
        return replace(
            batch, **{k: v.double() for k, v in vars(batch).items() if isinstance(v, Tensor) and k != "fps"}
        )


def networks(case: Case, layout: Layout, seed: int, dtype: torch.dtype) -> Networks:
    """Networks none of whose tensors is zero at the start, and no two of which are alike."""

    def make(role: str) -> nn.Module:
        network = models.build(case.network, dtype=dtype, seed=seed)
        for name, of in network_pieces(network).items():
            key = hashlib.blake2b(f"{seed}/{role}/{name}".encode(), digest_size=7).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
            noise = 0.1 * torch.randn(of.shape, generator=generator)
            for block in of.blocks:
                box = tuple(slice(o, o + n) for o, n in zip(block.offsets, block.value.shape, strict=True))
                block.value.detach().add_(noise[box])
        network.activation_checkpointing = layout.recompute
        network.micro_batch = layout.micro_batch
        data.shard(network, layout.parallel)
        return network

    return make

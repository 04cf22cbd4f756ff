"""The library: distil a network from Python, without a recipe file or a command line.

    from cosmos_distill import DMD2, FewStep, Trainer, distill, sample

    student = copy.deepcopy(teacher)  # adapters around networks of your own
    method = DMD2(sampler=FewStep(4), gan_weight=0.0)
    result = distill(student, teacher, method, samples, "run", trainer=Trainer(max_steps=1000))
    latents = sample(result, {"text": text}, shape=(16, 21, 60, 104))

It is the trainer of the command: the same losses, checkpoints and layouts. Under ``torchrun`` every rank
makes the same calls with the same arguments, and ``parallel`` says what they share.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cosmos_distill import arguments, methods
from cosmos_distill.adapters import Adapter
from cosmos_distill.config import (
    EDM,
    BatchSize,
    Evaluations,
    FewStep,
    Guidance,
    MethodConfig,
    Parallel,
    Seed,
    Start,
    Trainer,
    TrigFlow,
)
from cosmos_distill.data import given
from cosmos_distill.data.batch import Batch
from cosmos_distill.diffusion import EULER_RF, RES_2AB, Schedule, build_schedule, schedule_from_dict
from cosmos_distill.errors import Refusal
from cosmos_distill.parallel import data as data_parallel
from cosmos_distill.parallel import fsdp, groups
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.parallel.parts import Parallelised
from cosmos_distill.run import claim, fitting
from cosmos_distill.sampling import samplers
from cosmos_distill.train.guard import StopFlag
from cosmos_distill.train.loop import FitResult, fit
from cosmos_distill.train.state import random_state, set_random_state

__all__ = ["Distilled", "distill", "fit", "pairs", "sample"]

_OFF = Guidance(0.0, "added")
_NETWORK = "give a network behind an adapter (cosmos_distill.Adapter), or one of this package"
_METHOD = "give DMD2(...), KD(...), Denoising(...) or your own"
_DATA = "give a sequence of samples, something that iterates over them, or an object with batch(first, count)"
_TEACHERS = {EDM: RES_2AB, TrigFlow: EULER_RF}
"""Samplers of many steps, by the coordinate that a network was trained in."""


class OlderStudent(UserWarning):
    """A run's student was opened that is older than the run: training went on, and has not ended."""


@dataclass(frozen=True)
class Distilled:
    """A student, and how it is sampled: what training made it for."""

    student: nn.Module
    """The network that was given to :func:`distill`, with its final weights (their average where the trainer
    keeps one), in evaluation mode."""
    folder: Path
    """``student.safetensors`` with the same weights, ``log.jsonl``, ``checkpoints/`` and more."""
    schedule: Schedule
    sampler: FewStep | None
    """None: many steps with guidance, as a teacher is sampled."""
    training: FitResult | None
    """How the run went; None where it was opened again."""

    @classmethod
    @arguments.checked(student=_NETWORK)
    def open(cls, folder: str | Path, student: nn.Module) -> Distilled:
        """The result of an earlier :func:`distill` into ``folder``, in a network like the one given there.

        Warns with :class:`OlderStudent` where training has gone on since, to more steps, and was interrupted.

        Raises:
            Refusal: the folder holds no finished run, or its weights are not those of such a network.
        """
        arguments.path("folder", folder)
        folder = Path(folder)
        record, weights = claim.record(folder), folder / "student.safetensors"
        if record is None or not weights.is_file():
            raise Refusal(
                f"{folder} holds no finished run of distill(): {claim.RECORD} or {weights.name} is missing"
            )
        try:
            levels = schedule_from_dict(record["schedule"])
            sampler = None if record["sampler"] is None else FewStep(**record["sampler"])
        except (TypeError, ValueError, AttributeError) as error:
            raise Refusal(f"{folder / claim.RECORD} is damaged, or of another version ({error})") from error
        _load(student, weights)
        if said := claim.behind(folder, weights):
            warnings.warn(said, OlderStudent, stacklevel=2)
        return cls(student.eval(), folder, levels, sampler, None)

    @classmethod
    @arguments.checked()
    def exported(cls, file: str | Path) -> Distilled:
        """A student that the export stage of a recipe wrote, on the accelerator if there is one.

        Raises:
            Refusal: the file is no export, or damaged.
        """
        from cosmos_distill.run.networks import DTYPES, load
        from cosmos_distill.sampling.exported import read

        arguments.path("file", file)
        file = Path(file)
        said = read(file)
        sampler = said.sampler if isinstance(said.sampler, FewStep) else None
        network = load(said.network, (file,), DTYPES[said.precision])
        return cls(network, file.parent, said.schedule, sampler, None)


@arguments.checked(student=_NETWORK, teacher=f"{_NETWORK}, or None", method=_METHOD, data=_DATA)
def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    method: MethodConfig,
    data: given.Source | Sequence[given.Sample] | Iterable[given.Sample],
    folder: str | Path,
    *,
    trainer: Trainer | None = None,
    schedule: EDM | TrigFlow | None = None,
    parallel: Parallel | None = None,
    seed: Seed = 0,
    watch: Callable[[int], None] | None = None,
) -> Distilled:
    """Train ``student``, in place, by ``method``; called again with the same arguments, go on from the newest
    checkpoint in ``folder`` and end with the same weights, bit for bit.

    Ctrl-C and SIGTERM save a checkpoint and raise :class:`~cosmos_distill.Interrupted`.

    Args:
        student: the network to train, behind an :class:`~cosmos_distill.Adapter` unless it is one of this
            package's. It usually starts as ``copy.deepcopy(teacher)``.
        teacher: likewise; left frozen, in evaluation mode. The fake score of DMD2 starts as a copy of it.
            None for a method without a teacher (``Denoising``, or ``KD`` on :func:`pairs`).
        method: ``DMD2(...)``, ``KD(...)``, ``Denoising(...)``, or a method of your own.
        data: latents and what the network is told of them, as :mod:`cosmos_distill.data.given` describes: a
            sequence of samples, which is shuffled; an iterable of samples or batches, which has to give the
            same ones every time that it is iterated; or a source of your own with ``batch(first, count)``.
            Latents have a standard deviation of about the schedule's ``sigma_data``.
        folder: of this run; made if missing.
        trainer: length, batch and bookkeeping; None: 1000 steps of 8 samples. Its precision is ignored: the
            networks are trained in the type that they have, half-precision ones with fp32 masters.
        schedule: noise coordinate of the networks; None: that of the student's adapter, and of
            the teacher's.
        parallel: what ranks under ``torchrun`` share. Adapters take ``Parallel(data=...)``: whole copies, a
            share of the optimiser (ZeRO-1), or FSDP2. Rank 0's weights are those that all start from.
        seed: of everything random: order, noise, the discriminator's first weights.
        watch: called with the number of steps done every ``trainer.sample_every`` of them and at the end,
            while the student holds its averaged weights, on all ranks: to draw and look.

    Returns:
        The student and how it is sampled; give it to :func:`sample`.

    Raises:
        Refusal: before any work, with what to change: something does not fit together, or ``folder`` belongs
            to another run.
        DataError: a sample cannot be used.
        Interrupted: asked to stop; the same call goes on.
        NonFiniteError: losses are not finite; see :func:`cosmos_distill.fit`.
        ResumeError: ``folder`` holds checkpoints of other numbers, all of them named.
    """
    arguments.path("folder", folder)
    folder, trainer = Path(folder), trainer or Trainer(max_steps=1000, global_batch=8)
    schedule = schedule or fitting.schedule_of(student, teacher)
    if schedule is None:
        raise Refusal(
            "schedule: say which noise coordinate the networks were trained in, EDM() or TrigFlow()"
        )
    trainer = replace(trainer, precision=fitting.precision_of(student))
    source = fitting.source_of(data, seed)
    fitting.require_roles(student, teacher)
    with fitting.laid_out(parallel) as layout, ExitStack() as stack:
        fitting.require_layout(layout, trainer, student, teacher)
        first = source.batch(0, 1)
        fitting.require_fit(method, student, schedule, trainer, first)
        before = random_state()
        stack.callback(set_random_state, before)
        if groups.world_group().size() > 1:
            _share_weights(student, teacher)
        levels = build_schedule(schedule)
        try:
            built = methods.build(method, _networks(student, teacher, trainer), levels, seed=seed)
        except ValueError as error:  # the teacher's blocks, for instance
            raise Refusal(f"{type(method).__name__}: {error}") from error
        on_rank_zero(lambda: claim.claim(stack, folder, claim.described(student, teacher, method, schedule)))
        for network in built.roles.values():
            if not fsdp.is_sharded(network):
                data_parallel.shard(network, layout)
        stop = stack.enter_context(StopFlag())
        training = fit(
            built, source, trainer, folder, seed=seed, sampler_grid=watch if trainer.sample_every else None,
            stop=stop,
        )  # fmt: skip
        _load(student, training.student)
    sampler = None if method.pretrains else method.sampler
    return Distilled(student.eval(), folder, levels, sampler, training)


@arguments.checked(
    student=f"give what distill() returned, or {_NETWORK.removeprefix('give ')}",
    sampler="give FewStep(n), or a number of steps of the teacher's sampler",
)
@torch.no_grad()
def sample(
    student: Distilled | nn.Module,
    conditioning: Mapping[str, Tensor],
    shape: Sequence[int] | None = None,
    *,
    sampler: FewStep | int | None = None,
    schedule: EDM | TrigFlow | None = None,
    guidance: Guidance = _OFF,
    given_frames: int = 0,
    seed: Seed = 0,
    first: Start = 0,
    batch: int | None = None,
) -> Tensor:
    """Draw clips: latents, fp32 [B, C, T, H, W], on the student's device.

    Clip n is a function of seed, n and its conditioning, whatever is drawn together.

    Args:
        student: what :func:`distill` returned, or :meth:`Distilled.open` or :meth:`Distilled.exported`; or a
            network, whose sampler has to be given.
        conditioning: tensors with B samples first: ``text`` [B, L, D], and what else the network is told, as
            in the training data (:mod:`cosmos_distill.data.given`).
        shape: of a latent, (C, T, H, W); None: that of ``conditioning["latents"]``.
        sampler: a student's (``FewStep(4)``), or a number of steps of the teacher's sampler; None: the one
            that the student was trained with.
        schedule: None: the one it was trained with, or that of the adapter.
        guidance: classifier-free guidance against ``negative_text``, in two evaluations a step; a student
            needs none.
        given_frames: leading latent frames of ``conditioning["latents"]`` that stay as they are.
        seed: of the noise.
        first: number of the first clip.
        batch: clips drawn at once; None: all.

    Raises:
        Refusal: sampler, schedule or shape cannot be known, or do not go together.
    """
    network = student.student if isinstance(student, Distilled) else student
    if isinstance(student, Distilled):
        levels = student.schedule if schedule is None else build_schedule(schedule)
        sampler = student.sampler if sampler is None else sampler
    else:
        found = schedule or getattr(network, "schedule", None)
        if found is None:
            raise Refusal(
                "schedule: say which noise coordinate the network was trained in, EDM() or TrigFlow()"
            )
        levels = build_schedule(found)
    if sampler is None:
        raise Refusal("sampler: FewStep(n) samples a student, a number of steps a teacher")
    tensors = dict(conditioning)
    count = fitting.require_together(tensors)
    if "latents" not in tensors:
        if shape is None or given_frames:
            raise Refusal("shape: give (C, T, H, W) of a latent, or latents, whose first frames can be given")
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise Refusal(
                f"shape: {list(shape)} are no sizes: give (C, T, H, W) of a latent, integers above 0"
            )
        tensors["latents"] = torch.zeros(count, *shape)
    size = list(tensors["latents"].shape[1:])
    if len(size) != 4 or (shape is not None and list(shape) != size):
        asked = "" if shape is None else f", shape {list(shape)}"
        raise Refusal(f"shape: latents are {size}{asked}, and should be one (C, T, H, W)")
    if not 0 <= given_frames <= size[1]:
        raise Refusal(f"given_frames: {given_frames} of a latent of {size[1]} frames")
    if given_frames and isinstance(network, Adapter) and network.given_frames is None:
        raise Refusal("given_frames: this network cannot be given frames")
    if batch is not None and batch < 1:
        raise Refusal(f"batch: {batch} clips at once cannot be drawn: give at least 1, or None for all")
    if not isinstance(sampler, FewStep) and (not isinstance(sampler, int) or sampler < 1):
        raise Refusal(f"sampler: {sampler!r} is neither FewStep(n) nor a number of steps, at least 1")
    device = next(network.parameters()).device
    whole = given.complete(first, tensors).to(device)
    frames = torch.full((count,), given_frames) if given_frames else None
    noise = samplers.noise_of(seed, "sample", whole)
    drawn = []
    for begin in range(0, count, batch or count):
        part = slice(begin, begin + (batch or count))
        some = _part(whole, part)
        given_of = None if frames is None else frames[part]
        if isinstance(sampler, FewStep):
            x0 = samplers.few_steps(network, levels, some, noise[part], sampler, guidance, given_of, seed)
        else:
            x0 = samplers.many_steps(
                network,
                levels,
                some,
                noise[part],
                guidance,
                _TEACHERS[type(levels.config)],
                sampler,
                given_of,
            )
        drawn.append(x0)
    return torch.cat(drawn)


@arguments.checked(teacher=_NETWORK, data=_DATA)
def pairs(
    teacher: nn.Module,
    data: given.Source | Sequence[given.Sample] | Iterable[given.Sample],
    count: Start,
    *,
    steps: Evaluations = 35,
    guidance: Guidance = _OFF,
    schedule: EDM | TrigFlow | None = None,
    seed: Seed = 0,
    batch: BatchSize = 8,
) -> list[given.Sample]:
    """What ``KD`` learns from: ``count`` clips of the teacher's many-step sampler, each with the noise that
    it began with, for the conditioning of ``data``, whose latents give the size.

    Args:
        teacher: the network, behind an adapter.
        data: as for :func:`distill`.
        count: number of pairs, all of them kept in memory.
        steps: of the teacher's sampler.
        guidance: what the student is to need no more.
        schedule: None: that of the adapter.
        seed: of order and noise.
        batch: clips drawn at once.

    Returns:
        Samples for :func:`distill`.
    """
    source, found = fitting.source_of(data, seed), schedule or getattr(teacher, "schedule", None)
    if found is None:
        raise Refusal("schedule: say which noise coordinate the teacher was trained in, EDM() or TrigFlow()")
    levels, device = build_schedule(found), next(teacher.parameters()).device
    made: list[given.Sample] = []
    for begin in range(0, count, batch):
        some = source.batch(begin, min(batch, count - begin)).to(device)
        noise = samplers.noise_of(seed, "pairs", some)
        x0 = samplers.many_steps(teacher, levels, some, noise, guidance, _TEACHERS[type(found)], steps)
        tensors = replace(some, latents=x0, noise=noise).to("cpu").tensors()
        made += [{name: value[i] for name, value in tensors.items()} for i in range(len(some))]
    return made


def _networks(student: nn.Module, teacher: nn.Module | None, trainer: Trainer) -> Callable[[str], nn.Module]:
    """networks(role) for :func:`cosmos_distill.methods.build`: who is neither student nor teacher starts as a
    copy of the teacher."""

    def networks(role: str) -> nn.Module:
        network: Any = student if role == "student" else teacher
        if network is None:
            raise Refusal(f"teacher: this method needs one, as its {role}")
        if role not in ("student", "teacher"):
            if fsdp.is_sharded(network):
                raise Refusal(
                    f"teacher: its {role} is a copy of it, and FSDP has spread it already: load it anew"
                )
            network = copy.deepcopy(network)
        if trainer.activation_checkpointing != "none":
            try:
                network.activation_checkpointing = trainer.activation_checkpointing
            except ValueError as error:
                raise Refusal(str(error)) from error
        if isinstance(network, Parallelised):
            network.micro_batch = trainer.micro_batch  # type: ignore[attr-defined]
        return cast(nn.Module, network)

    return networks


@torch.no_grad()
def _share_weights(*networks: nn.Module | None) -> None:
    """Give all ranks rank 0's weights, as DistributedDataParallel does."""
    for network in networks:
        if network is not None and not fsdp.is_sharded(network) and not isinstance(network, Parallelised):
            for tensor in network.state_dict().values():
                dist.broadcast(tensor, src=0)


@torch.no_grad()
def _load(network: nn.Module, file: Path) -> None:
    """Put the whole tensors of ``file`` into a network, or this rank's share of them.

    Raises:
        Refusal: they are another network's, or damaged.
    """
    try:
        own, tensors = network.state_dict(), load_file(file)
    except (SafetensorError, OSError) as error:
        raise Refusal(f"{file} cannot be read ({error}): make the same call of distill() again") from error
    wrong = sorted(own.keys() ^ tensors.keys()) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise Refusal(f"{file} holds the weights of another network: they differ in {wrong[0]!r}")
    for name, value in own.items():
        held, span = fsdp.local(value)
        whole = tensors[name].reshape(-1)
        held.view(-1).copy_(whole[span.first : span.first + held.numel()])


def _part(batch: Batch, part: slice) -> Batch:
    return replace(batch.map(lambda value: value[part]), first=batch.first + part.start)

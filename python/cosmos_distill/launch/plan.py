"""What a run will need on so many GPUs: bytes of a rank, seconds of a step and of a stage, and the layouts
that fit, the fastest first. Everything is counted (:mod:`cosmos_distill.launch.on_rank`); seconds are made of
counts by assumptions that are said (:class:`cosmos_distill.launch.devices.Gpu`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cosmos_distill.config import ONE_STEP, Evaluate, Generate, Parallel, Recipe, Train
from cosmos_distill.launch.cost import Count
from cosmos_distill.launch.devices import NODE, Gpu
from cosmos_distill.launch.layout import problems
from cosmos_distill.launch.layouts import possible, sharing
from cosmos_distill.launch.on_rank import Counter, OnRank, Phase, Subject
from cosmos_distill.launch.updates import ADAMW, EMA
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.train import plan as state

MODES = ("none", "selective", "full")
"""Of activation checkpointing, the fastest first."""
SHOWN, LOOKS = 6, 9
"""Layouts that are searched for, and such that are counted at most."""


@dataclass(frozen=True)
class Held:
    """Bytes of one rank in a stage, at the phase that needs most."""

    roles: tuple[state.RolePlan, ...]
    gradients: int
    """Of the phase's roles."""
    activations: int
    """At the moment of most."""
    kept: int
    """Of them, from the forward to the backward pass."""
    gathered: int
    """Blocks that fsdp has whole for a while, with their gradients."""

    @property
    def state(self) -> int:
        """Weights, optimisers and averages."""
        return sum(role.total - role.gradients for role in self.roles)

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.gradients + self.activations + self.gathered


@dataclass(frozen=True)
class StagePlan:
    """A stage under a layout."""

    held: Held | None
    """None: no training stage."""
    step_seconds: Mapping[str, float]
    """Roles of a phase, joined by +, -> seconds of an optimiser step. Of other stages: of a clip."""
    seconds: float
    """Of the whole stage."""


@dataclass(frozen=True)
class LayoutPlan:
    """A layout and what every stage needs under it."""

    parallel: Parallel
    checkpointing: str
    gpus: int
    stages: Mapping[str, StagePlan]
    room: float
    """Bytes that there are."""

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return self.gpus // self.parallel.model

    @property
    def bytes(self) -> int:
        """Of a rank, in the stage that needs most."""
        return max(stage.held.total for stage in self.stages.values() if stage.held is not None)

    @property
    def fits(self) -> bool:
        """Whether there is room for that."""
        return self.bytes <= self.room

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages.values())

    @property
    def gpu_hours(self) -> float:
        """Of all stages."""
        return self.seconds * self.gpus / 3600

    @property
    def options(self) -> str:
        """As it is typed."""
        plain, words = Parallel(), []
        for name, value in vars(self.parallel).items():
            if value != getattr(plain, name):
                option = f"--parallel.{name.replace('_', '-')}"
                words.append(option if value is True else f"{option} {value}")
        return " ".join([*words, f"--trainer.activation-checkpointing {self.checkpointing}"])


class Planner:
    """Plans of one recipe on one kind of GPU.

    Args:
        latent: (channels, frames, height, width) of a clip; of several shapes the largest.
    """

    def __init__(
        self, recipe: Recipe, latent: tuple[int, int, int, int], gpus: int, gpu: Gpu, room: float
    ) -> None:
        assert isinstance(recipe.network, DiTConfig)
        self.recipe, self.gpus, self.gpu, self.room = recipe, gpus, gpu, room
        self._counter = Counter()
        self._subjects = {
            name: Subject(recipe.network, recipe.schedule, latent, stage)
            for name, stage in recipe.stages.items()
            if isinstance(stage, Train)
        }

    def saved(self) -> dict[str, int]:
        """Training stage -> bytes of one of its checkpoints."""
        sizes = {name: self._counter.trained(subject) for name, subject in self._subjects.items()}
        return saved_bytes(self.recipe, sizes)

    def own(self) -> LayoutPlan | None:
        """The recipe's layout, with what it says of checkpointing; None if it cannot be on so many GPUs."""
        if any(problems(self.recipe, self.gpus)):
            return None
        (mode,) = {s.stage.trainer.activation_checkpointing for s in list(self._subjects.values())[-1:]}
        return self.look(self.recipe.parallel, mode)

    def modes(self, like: LayoutPlan) -> dict[str, LayoutPlan]:
        """A layout under every mode of checkpointing."""
        return {mode: self.look(like.parallel, mode) for mode in MODES}

    def search(self) -> list[LayoutPlan]:
        """Layouts that fit, the fastest first; where none does, the one that is nearest to it."""
        found: list[LayoutPlan] = []
        closest: LayoutPlan | None = None
        known: dict[str, float] = {}
        """Mode -> activations, of all ranks of a model group, in a layout that was counted."""
        looks = 0
        for layout in possible(self.recipe, self.gpus):
            for mode in MODES:
                if known.get(mode, 0) / layout.model > self.room:
                    continue  # splitting cannot save more than that
                if looks == LOOKS or len(found) == SHOWN:
                    break
                looks += 1
                kinds = [self.look(kind, mode) for kind in sharing(layout, self.gpus)]
                least = min(kinds, key=lambda plan: plan.bytes)
                held = [s.held for s in least.stages.values() if s.held is not None]
                known.setdefault(mode, layout.model * max(of.activations for of in held))
                if closest is None or least.bytes < closest.bytes:
                    closest = least
                if fitting := [plan for plan in kinds if plan.fits]:
                    found.append(min(fitting, key=lambda plan: plan.seconds))
                    break
        found.sort(key=lambda plan: plan.seconds)
        return found or ([closest] if closest is not None else [])

    def look(self, parallel: Parallel, checkpointing: str) -> LayoutPlan:
        """One layout."""
        stages: dict[str, StagePlan] = {}
        forward = 0.0
        for name, subject in self._subjects.items():
            stages[name], seconds = self._train(name, subject, parallel, checkpointing)
            forward = max(forward, seconds)
        for name, stage in self.recipe.stages.items():
            if (calls := self._calls(stage)) is not None:
                each, clips = calls
                # These stages' networks are fp32, and their batches are spread over data-parallel ranks.
                of_clip = 2 * forward * each
                data = self.gpus // parallel.model
                stages[name] = StagePlan(None, {"clip": of_clip}, of_clip * -(-clips // data))
        ordered = {name: stages[name] for name in self.recipe.stages if name in stages}
        return LayoutPlan(parallel, checkpointing, self.gpus, ordered, self.room)

    def _calls(self, stage: object) -> tuple[int, int] | None:
        """Calls of a network for a clip, and clips, of a stage that draws."""
        teacher = self.recipe.network.family.teacher
        if isinstance(stage, Generate):
            return teacher.calls(stage.steps) * _twice(stage), stage.pairs
        if isinstance(stage, Evaluate):
            few = [
                getattr(of.method, "sampler", ONE_STEP).steps
                for name in stage.students.values()
                if isinstance(of := self.recipe.stages.get(name), Train)
            ]
            steps = few[-1] if few else 1
            plain = 1 + _twice(stage) if steps == 1 else teacher.calls(steps) * _twice(stage)
            return (
                sum(few) + steps + plain + teacher.calls(stage.steps) * _twice(stage),
                stage.clips * stage.draws,
            )
        return None

    def _train(
        self, name: str, subject: Subject, parallel: Parallel, checkpointing: str
    ) -> tuple[StagePlan, float]:
        """The stage, and the seconds of one pass of a network without a graph, of one clip."""
        trainer, data = subject.stage.trainer, self.gpus // parallel.model
        share = trainer.global_batch // data
        samples = share if parallel.pipeline > 1 else min(share, trainer.micro_batch)
        on = self._counter.on_rank(name, subject, parallel, checkpointing, samples)
        calls = share // samples
        alone = parallel.context * data == 1
        held = max(
            (self._held(on, phase, count, subject.stage, parallel, first=alone and calls == 1)
             for phase, count in on.phases.items()),
            key=lambda of: of.total,
        )  # fmt: skip
        seconds = {
            phase: self._step(on, phase, count, subject.stage, parallel, calls)
            for phase, count in on.phases.items()
        }
        forward = max(
            self._pass(count, trainer.precision == "fp32") / samples for count in on.phases.values()
        )
        named = {"+".join(phase): value for phase, value in seconds.items()}
        return StagePlan(held, named, sum(on.steps[p] * s for p, s in seconds.items())), forward

    def _held(
        self, on: OnRank, phase: Phase, count: Count, stage: Train, parallel: Parallel, *, first: bool
    ) -> Held:
        trainer, fsdp = stage.trainer, parallel.data == "fsdp"
        # What tensor and pipeline ranks have is counted already.
        rest = replace(parallel, tensor=1, sequence=False, pipeline=1, virtual_pipeline=1)
        data = self.gpus // parallel.model
        memory = state.plan(
            {role: (size, on.trained[role]) for role, size in on.parameters.items()},
            trainer.precision,
            parallel=rest,
            data_parallel=data,
            ema=trainer.averages,
            phases=[phase],
            whole=on.whole,
        )
        gradients, activations = memory.peak_gradients, count.activations.peak
        if first:  # they come while activations go
            activations = max(0, count.activations.peak_with_gradients - gradients)
        width = state.WEIGHT[trainer.precision]
        shared = fsdp and (parallel.fsdp_shards or data * parallel.context) > 1
        # This block and the next, their gradients, and these in fp32 on their way.
        gathered = on.block * (2 * width + width + 4) if shared else 0
        return Held(memory.roles, gradients, activations, count.activations.kept, gathered)

    def _step(
        self, on: OnRank, phase: Phase, count: Count, stage: Train, parallel: Parallel, calls: int
    ) -> float:
        """Seconds of an optimiser step."""
        gpu, trainer = self.gpu, stage.trainer
        data, fp32 = self.gpus // parallel.model, trainer.precision == "fp32"
        busy = gpu.seconds(count, fp32=fp32) * calls
        if parallel.pipeline > 1:
            under_way = trainer.global_batch // data // trainer.micro_batch * parallel.virtual_pipeline
            busy *= 1 + (parallel.pipeline - 1) / under_way
        near = {
            "tensor": parallel.tensor <= NODE,
            "tokens": parallel.tensor * parallel.context <= NODE,
            "context": parallel.tensor * parallel.context <= NODE,
        }
        waits = sum(
            gpu.sent(size * calls, within=near.get(group, self.gpus <= NODE))
            for group, size in count.sent.items()
        )
        sharers = data * parallel.context
        others, width = (sharers - 1) / sharers, state.WEIGHT[trainer.precision]
        within = self.gpus // parallel.pipeline <= NODE
        trained = sum(on.parameters[role] for role in phase)
        if parallel.data == "fsdp":
            gathers = sum(
                width * on.parameters[role] * (2 if graph else 1) * number
                for (role, graph), number in count.passes.items()
                if role not in on.whole
            )
            moved = gpu.sent((gathers + 4 * trained) * others * calls, within=within)
            waits += max(0.0, moved - busy)  # prefetched while the block before computes
        else:
            factor = 8 if parallel.data == "replicated" else 4 + width
            waits += gpu.sent(factor * trained * others, within=within)
        mine = trained / (1 if parallel.data == "replicated" else sharers)
        moments = ADAMW * mine
        if trainer.averages and "student" in phase:
            moments += EMA * mine
        return busy + waits + gpu.streamed(moments)

    def _pass(self, count: Count, fp32: bool) -> float:
        """Seconds of one pass of a network without a graph, or with one where there is none without."""
        for graph in (False, True):
            for role in ("teacher", "student"):
                number = count.passes[role, graph]
                if number:
                    keys = [k for k in count.work if k[:2] == (role, "forward") and k.graph is graph]
                    only = Count(work={key: count.work[key] for key in keys})
                    return self.gpu.seconds(only, fp32=fp32) / number
        return 0.0


def _twice(stage: Generate | Evaluate) -> int:
    """Calls of an evaluation: two with guidance."""
    return 1 if stage.guidance.as_added().scale == 0 else 2


def saved_bytes(recipe: Recipe, sizes: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Training stage -> bytes of one checkpoint on disk: networks, masters, moments and average of all
    trained roles, once however many ranks hold copies.

    Args:
        sizes: training stage -> trained role -> parameters of the whole network.
    """
    found = {}
    for name, of in sizes.items():
        stage = recipe.stages[name]
        assert isinstance(stage, Train)
        each = state.WEIGHT[stage.trainer.precision] + state.OPTIMIZER[stage.trainer.precision]
        average = state.EMA * of["student"] if stage.trainer.averages else 0
        found[name] = each * sum(of.values()) + average
    return found


def disk_bytes(recipe: Recipe, saved: Mapping[str, int]) -> int:
    """Bytes that a run needs on disk: of every training stage the checkpoints that it keeps, and one that is
    being written."""
    total = 0
    for name, size in saved.items():
        stage = recipe.stages[name]
        assert isinstance(stage, Train)
        trainer = stage.trainer
        kept = trainer.keep_checkpoints + 1
        if trainer.keep_every:
            kept += trainer.max_steps // trainer.keep_every
        total += size * min(kept, _saves(trainer.max_steps, trainer.save_every) + 1)
    return total


def _saves(steps: int, every: int) -> int:
    return 1 if not every else -(-steps // every)

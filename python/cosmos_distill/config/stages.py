"""The stages of a recipe, and the base of what methods are told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cosmos_distill.config.diffusion import EDM, ONE_STEP, FewStep, Guidance, TrigFlow
from cosmos_distill.config.keep import Keep
from cosmos_distill.config.numbers import BatchSize, ClipFrames, Drawn, Evaluations, Exported, Share
from cosmos_distill.config.training import Trainer
from cosmos_distill.ranges import Checked, Problem, Range, effect


@dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """One step of a recipe with its own folder, manifest and outputs. Subclasses say what it does."""


@dataclass(frozen=True, kw_only=True)
class Encode(Stage):
    """Turn clips, their controls and prompts into latents and embeddings once, in shards that are read in
    their place."""

    variants: Annotated[int, Range(1, 10**4)] = 4
    """Windows of each clip to train on, one in each of as many parts of it, with settings of its control of
    their own. Fewer where a clip has no more windows, and nothing of its control is drawn."""
    held_out_variants: Annotated[int, Range(1, 10**4)] = 1
    """Likewise of each clip that is held out; controls have their presets."""
    control: Literal["latents", "drawn"] = "latents"
    """``latents``: a computed control is encoded with each window, with settings drawn for it. ``drawn``: the
    pixels of the windows are kept instead, and the control is drawn anew whenever one is read, which takes
    the tokenizer in training. A control from files is encoded in either case."""
    pixels: Literal["held_out", "none"] = "held_out"
    """Whether the pixels of held-out windows are kept, without loss: scores compare with them. ``none``:
    with what the tokenizer makes of the latents."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the latents. What bf16 holds exactly takes no more than that in either case."""
    clips_per_shard: Annotated[int, Range(1, 10**6)] = 64
    batch: BatchSize = field(default=4, metadata=effect("none"))
    """Windows that the tokenizer encodes at once."""


@dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """Draw (noise, teacher clip) pairs with the teacher's many-step sampler."""

    pairs: Annotated[int, Range(1, 10**7)]
    guidance: Guidance
    steps: Evaluations = 35
    """Second-order steps; one clean denoise follows, so 35 steps are 36 evaluations (72 with guidance)."""
    batch: BatchSize = 32
    precision: Drawn = "fp32"
    """Of the teacher that draws."""
    condition_frames: ClipFrames = (0,)
    """Leading latent frames given of clip 0, 1, 2, ..., again from the first number after the last."""

    clips_from: str | None = None
    """Encode stage whose shards are read in place of the clips of ``Recipe.data``; None: the clips."""

    def rules(self) -> Iterator[Problem]:
        """Every clip has a number of given frames."""
        return _some_frames(self.condition_frames)


@dataclass(frozen=True)
class Setting:
    """What a method's numbers have to suit: all that is known of a training stage before it starts."""

    schedule: EDM | TrigFlow
    blocks: int
    """Of the network."""
    width: int
    """Of a token."""
    grid: tuple[int, int, int]
    """Tokens of a clip: latent frames, height, width."""
    max_steps: int
    pairs: bool
    """The training data are a teacher's clips with their noise."""
    recipe: bool = True
    """The stage is of a recipe; False: :func:`cosmos_distill.distill` was called."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(Checked):
    """Base of every method's Config (they live in :mod:`cosmos_distill.methods`, one file each)."""

    def misfits(self, setting: Setting) -> Iterator[Problem]:
        """What does not suit the stage's network, data and length; asked before a run."""
        return iter(())

    @property
    def pretrains(self) -> bool:
        """Whether it trains a teacher, which is sampled in many steps, from clips alone."""
        return False

    @property
    def reads_teacher(self) -> bool:
        """Whether it starts from the teacher's weights, or learns from them."""
        return not self.pretrains

    @property
    def sampler(self) -> FewStep:
        """How the student that it trains is sampled."""
        return ONE_STEP


@dataclass(frozen=True, kw_only=True)
class GivesFrames(MethodConfig):
    """Base of the methods that train a network to go on from given frames."""

    condition_frames: tuple[Share, ...] = (1 / 3, 1 / 3, 1 / 3)
    """Probabilities that a sample's first 0, 1, 2, ... latent frames are given clean."""

    def rules(self) -> Iterator[Problem]:
        """Probabilities add up to one."""
        if abs(sum(self.condition_frames) - 1) > 1e-9:
            yield "condition_frames", f"must add up to 1, not {self.condition_frames}"


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Train with one method."""

    method: MethodConfig
    trainer: Trainer
    start_from: str | None = None
    """Stage whose student this one starts from; None: the teacher, or fresh weights where there is none."""
    student: Path | None = field(default=None, metadata=effect("place"))
    """Weights that the student starts from, such as a student that was released, in any form that a teacher
    may have; None: those of ``start_from``."""
    teacher_from: str | None = None
    """Train stage whose result is the teacher here; None takes ``Recipe.teacher``."""
    pairs_from: str | None = None
    """Generate stage whose pairs are the training data; None trains on the clips of ``Recipe.data``."""
    keep_pairs: Keep = field(default_factory=Keep)
    """Which of these pairs are trained on, by the numbers of ``cosmos-distill inspect``."""

    clips_from: str | None = None
    """Encode stage whose shards are read in place of the clips of ``Recipe.data``; None: the clips."""

    def rules(self) -> Iterator[Problem]:
        """The method is one that can be built, its student starts from one place, there is one kind of
        training data, and pairs are judged where there are some."""
        if self.student is not None and self.start_from is not None:
            yield "student", f"and start_from {self.start_from} are two starts: set start_from to None"
        if self.clips_from is not None and self.pairs_from is not None:
            yield "clips_from", "and pairs_from are two kinds of training data: choose one"
        if not hasattr(self.method, "build"):
            yield (
                "method",
                f"is a {type(self.method).__name__}, which describes no method",
            )
        if self.pairs_from is None:
            for name, value in vars(self.keep_pairs).items():
                if value is not None:
                    yield (
                        f"keep_pairs.{name}",
                        "judges pairs, of which there are none: clips have data.keep",
                    )


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Score teacher and students on held-out clips and write the report."""

    clips: Annotated[int, Range(2, 10**5)]
    """Held-out clips of a draw. A distance compares covariances, which one clip does not have."""
    draws: Annotated[int, Range(1, 1000)] = 1
    """Independent draws of held-out clips; the spread over draws is in the report."""
    guidance: Guidance
    steps: Evaluations = 35
    batch: BatchSize = 32
    precision: Drawn = "fp32"
    """Of all networks that draw, and whose latency is measured; metrics are fp32 and fp64."""
    students: Mapping[str, str]
    """Column of the report -> Train stage whose student it is, e.g. {"kd_student": "kd"}."""
    condition_frames: ClipFrames = (0,)
    """Leading latent frames given of clip 0, 1, 2, ..., again from the first number after the last."""
    teacher_from: str | None = None
    """Train stage whose result is the teacher here; None takes ``Recipe.teacher``."""
    metrics: tuple[str, ...] | None = None
    """Metrics by name, files of :mod:`cosmos_distill.eval.metrics`. The report then has schema 2, intervals
    are over shots, and draws are of noise under the same clips. None: the Fréchet distance of random
    filters, with Canny-F1 and blur-SSIM where there is a control and motion where there is none, and draws
    of other clips."""
    split: Literal["hard", "validation", "out_of_domain"] | None = None
    """Which held-out clips, of data that have several kinds (the film); None: those of the headline. Settings
    are chosen on ``validation``."""
    clips_from: str | None = None
    """Encode stage whose shards are read in place of the clips of ``Recipe.data``; None: the clips."""
    networks: Mapping[str, Path] | None = None
    """Metric -> file or folder of the network that it looks through, for fid, fvd, depth_rmse and
    seg_miou."""
    fp8: tuple[str, ...] | None = None
    """Students, by their columns, that are scored a second time with the weights of an export in fp8, as
    NAME_fp8; None: none."""

    def rules(self) -> Iterator[Problem]:
        """Every clip has a number of given frames, and who is scored in fp8 is a student."""
        yield from _some_frames(self.condition_frames)
        for who in self.fp8 or ():
            if who not in self.students:
                yield "fp8", f"names {who!r}, which is none of the students {', '.join(self.students)}"
            if f"{who}_fp8" in self.students:
                yield "fp8", f"needs the column {who}_fp8, which is a student's: rename that"


@dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Write one student as a file that needs nothing else."""

    student_from: str
    precision: Exported = "fp32"
    names: Literal["own", "official", "diffusers"] = "own"
    """``official`` writes student.pt, from which the official inference takes a distilled network (of a
    teacher, the published layout), with the tensors that the teacher's file carries besides; ``diffusers`` a
    pipeline folder. ``cosmos-distill sample`` and ``--teacher`` read all three."""

    def rules(self) -> Iterator[Problem]:
        """Only our own files have weights in eight bits."""
        if self.precision == "fp8" and self.names != "own":
            yield (
                "precision",
                f"fp8 is read from our own files alone: choose bf16 for {self.names}, or names own",
            )


def _some_frames(frames: ClipFrames) -> Iterator[Problem]:
    if not frames:
        yield "condition_frames", "must name at least one number: (0,) gives none of any clip"


KINDS = (Encode, Generate, Train, Evaluate, Export)
"""The stages that there are."""

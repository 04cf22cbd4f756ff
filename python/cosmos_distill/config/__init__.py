"""What a recipe is made of: frozen, typed, torch-free numbers.

A recipe file holds one function, ``recipe(scale=..., control=..., ...) -> Recipe``. Everything here
only *describes*; the objects that compute are built from it in one place each. Every field is checked
against its type and range when it is set (:mod:`cosmos_distill.ranges`) and never converted, so a value
printed is the value used. What depends on the network, the data or other stages is checked before a run
(:mod:`cosmos_distill.run.checks`).
"""

from cosmos_distill.config.data import Data
from cosmos_distill.config.diffusion import EDM, GUIDANCE, ONE_STEP, FewStep, Guidance, TrigFlow
from cosmos_distill.config.keep import Keep, KeepClips
from cosmos_distill.config.numbers import (
    BatchSize,
    ClipFrames,
    Control,
    Decay,
    Evaluations,
    Factor,
    GivenFrames,
    Interval,
    PixelSize,
    Precision,
    Ranks,
    Rate,
    Scale,
    Seed,
    Share,
    SigmaData,
    Start,
    Steps,
    Stored,
    Strength,
    TokenizerName,
    UnconditionalFrames,
    Weight,
)
from cosmos_distill.config.parallel import Parallel
from cosmos_distill.config.recipe import Recipe
from cosmos_distill.config.stages import (
    KINDS,
    Encode,
    Evaluate,
    Export,
    Generate,
    GivesFrames,
    MethodConfig,
    Setting,
    Stage,
    Train,
)
from cosmos_distill.config.training import LambdaLinear, Optim, Trainer

__all__ = [
    "EDM",
    "GUIDANCE",
    "KINDS",
    "ONE_STEP",
    "BatchSize",
    "ClipFrames",
    "Control",
    "Data",
    "Decay",
    "Encode",
    "Evaluate",
    "Evaluations",
    "Export",
    "Factor",
    "FewStep",
    "Generate",
    "GivenFrames",
    "GivesFrames",
    "Guidance",
    "Interval",
    "Keep",
    "KeepClips",
    "LambdaLinear",
    "MethodConfig",
    "Optim",
    "Parallel",
    "PixelSize",
    "Precision",
    "Ranks",
    "Rate",
    "Recipe",
    "Scale",
    "Seed",
    "Setting",
    "Share",
    "SigmaData",
    "Stage",
    "Start",
    "Steps",
    "Stored",
    "Strength",
    "TokenizerName",
    "Train",
    "Trainer",
    "TrigFlow",
    "UnconditionalFrames",
    "Weight",
]

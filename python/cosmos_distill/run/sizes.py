"""Sizes of a recipe's clips in latents, tokens and bytes, and what of them fits in this machine."""

from __future__ import annotations

import os
from pathlib import Path

from cosmos_distill.config import Data, Evaluate, Generate, Recipe, Stage, Train
from cosmos_distill.models.presets import PRESETS, NetworkConfig

# Pixels per latent element (time, space).
STRIDES = {
    "haar": (2, 4),
    "mini-cv4x4x4": (4, 4),
    "pixels": (1, 1),
    "cosmos-cv8x8x8": (8, 8),
    "wan2.1": (4, 8),
}
MINI = ("haar", "mini-cv4x4x4", "pixels")
"""Tokenizers of the small scales, which run where clips are read and turn pixels into fp32."""
LATENT_CHANNELS = 16
"""Of all tokenizers that networks are trained on."""
COSMOS_CHUNK = 121
"""Most frames of a clip that the Cosmos tokenizer takes at once."""


def latent_frames(recipe: Recipe) -> int:
    """T of the recipe's latent clips."""
    return latents_of(recipe.data)


def latents_of(data: Data) -> int:
    """T of a latent clip: the first frame alone, then one per temporal stride. Of several chunks of the
    Cosmos tokenizer each is such a clip."""
    if data.tokenizer == "cosmos-cv8x8x8" and whole_chunks(data):
        return data.frames // COSMOS_CHUNK * (1 + (COSMOS_CHUNK - 1) // STRIDES["cosmos-cv8x8x8"][0])
    return 1 + (data.frames - 1) // STRIDES[data.tokenizer][0]


def pixel_frames(recipe: Recipe, latents: int) -> int:
    """Frames of a clip that its first ``latents`` latent frames stand for."""
    return 1 + (latents - 1) * STRIDES[recipe.data.tokenizer][0] if latents else 0


def whole_chunks(data: Data) -> bool:
    """Whether a clip is cut into chunks of the Cosmos tokenizer without a rest."""
    return data.frames % COSMOS_CHUNK == 0


def token_grid(config: NetworkConfig, recipe: Recipe) -> tuple[int, int, int]:
    """Tokens of a clip: latent frames, height, width."""
    side = STRIDES[recipe.data.tokenizer][1] * config.patch
    return latent_frames(recipe), recipe.data.height // side, recipe.data.width // side


def batch_of(stage: Stage) -> tuple[str, int] | None:
    """The field that says how many clips a stage has in memory at once, and that number; None: no clips."""
    match stage:
        case Train():
            return "trainer.micro_batch", stage.trainer.micro_batch
        case Generate():
            return "batch", min(stage.batch, stage.pairs)
        case Evaluate():
            return "batch", stage.batch  # timed even where fewer are scored
    return None


def batch_bytes(recipe: Recipe, stage: Stage) -> int:
    """Least memory per clip of a stage's batch: of the clip, and at the mini scale, whose networks run where
    clips are read, of the network."""
    each = clip_bytes(recipe.data, recipe.control is not None)
    if recipe.data.tokenizer in MINI and recipe.network in PRESETS and not Path("/dev/nvidiactl").exists():
        each += _activations(PRESETS[recipe.network], recipe, isinstance(stage, Train))
    return each


def clip_bytes(data: Data, control: bool) -> int:
    """Least memory that reading one clip takes: its pixels, which the mini tokenizer turns into fp32 all at
    once, and latents."""
    pixels = 3 * data.frames * data.height * data.width
    time, space = STRIDES[data.tokenizer]
    latents = LATENT_CHANNELS * (1 + data.frames // time) * (data.height // space) * (data.width // space)
    return (1 + control) * (pixels * (5 if data.tokenizer in MINI else 1) + 4 * latents)


def too_large(count: int, each: int) -> str | None:
    """Why a batch of ``count`` clips of ``each`` bytes does not fit in this machine; None if it may."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if count == 1 or count * each <= memory:
        return None
    gib = 2**30
    return (
        f"so many clips at once take at least {count * each / gib:,.0f} GiB, and this machine has "
        f"{memory / gib:,.0f} GiB. Choose a number from 1 to {max(1, memory // each):,}."
    )


def _activations(config: NetworkConfig, recipe: Recipe, trained: bool) -> int:
    """Least memory that a network needs per clip beside its weights, in fp32: a few tensors of all tokens,
    and in training a few of every block."""
    frames, height, width = token_grid(config, recipe)
    return 4 * 4 * frames * height * width * config.width * (config.blocks if trained else 1)

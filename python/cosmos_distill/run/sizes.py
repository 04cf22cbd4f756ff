"""Sizes of a recipe's clips in latents, tokens and bytes, and what of them fits in this machine."""

from __future__ import annotations

import os
from pathlib import Path

from cosmos_distill.config import Data, Encode, Evaluate, Generate, Recipe, Stage, Train
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.mini_tokenizer.config import AutoencoderConfig
from cosmos_distill.tokenizers import TokenizerKind, find


def denoiser(recipe: Recipe) -> DiTConfig | None:
    """Sizes of the network that the recipe trains to denoise; None: it trains a tokenizer."""
    return recipe.network if isinstance(recipe.network, DiTConfig) else None


def trains_tokenizer(recipe: Recipe) -> bool:
    """Whether the network is a tokenizer, which is trained on pixels."""
    return isinstance(recipe.network, AutoencoderConfig)


def tokenizer(data: Data) -> TokenizerKind:
    """What is known of the tokenizer of these clips."""
    return find(data.tokenizer)


def latent_frames(recipe: Recipe) -> int:
    """T of the recipe's latent clips."""
    return tokenizer(recipe.data).latent_frames(recipe.data.frames)


def pixel_frames(recipe: Recipe, latents: int) -> int:
    """Frames of a clip that its first ``latents`` latent frames stand for."""
    return tokenizer(recipe.data).frames(latents)


def latent_shape(data: Data) -> tuple[int, int, int, int]:
    """(channels, frames, height, width) of a latent clip of these data."""
    kind = tokenizer(data)
    return (
        kind.channels,
        kind.latent_frames(data.frames),
        data.height // kind.space,
        data.width // kind.space,
    )


def token_grid(config: DiTConfig, recipe: Recipe) -> tuple[int, int, int]:
    """Tokens of a clip: latent frames, height, width."""
    side = tokenizer(recipe.data).space * config.patch
    return latent_frames(recipe), recipe.data.height // side, recipe.data.width // side


def batch_of(stage: Stage) -> tuple[str, int] | None:
    """The field that says how many clips a stage has in memory at once, and that number; None: no clips."""
    match stage:
        case Train():
            return "trainer.micro_batch", stage.trainer.micro_batch
        case Encode():
            return "batch", stage.batch
        case Generate():
            return "batch", min(stage.batch, stage.pairs)
        case Evaluate():
            return "batch", stage.batch  # timed even where fewer are scored
    return None


def batch_bytes(recipe: Recipe, stage: Stage) -> int:
    """Least memory per clip of a stage's batch: of the clip, and at the mini scale, whose networks run where
    clips are read, of the network."""
    each = clip_bytes(recipe.data, controls_of(recipe))
    network = denoiser(recipe)
    if network is not None and tokenizer(recipe.data).local and not Path("/dev/nvidiactl").exists():
        each += _activations(network, recipe, isinstance(stage, Train))
    return each


def controls_of(recipe: Recipe) -> int:
    """Controls of one clip."""
    network = denoiser(recipe)
    return 0 if recipe.control is None else 1 if network is None else max(1, network.controls)


def clip_bytes(data: Data, controls: int) -> int:
    """Least memory that reading one clip with its controls takes: its pixels, which a local tokenizer turns
    into fp32 all at once, and latents."""
    kind, pixels = tokenizer(data), 3 * data.frames * data.height * data.width
    area = (data.height // kind.space) * (data.width // kind.space)
    latents = kind.channels * (1 + data.frames // kind.time) * area
    return (1 + controls) * (pixels * (5 if kind.local else 1) + 4 * latents)


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


def _activations(config: DiTConfig, recipe: Recipe, trained: bool) -> int:
    """Least memory that a network needs per clip beside its weights, in fp32: a few tensors of all tokens,
    and in training a few of every block."""
    frames, height, width = token_grid(config, recipe)
    return 4 * 4 * frames * height * width * config.width * (config.blocks if trained else 1)

"""Where a recipe trains a tokenizer instead of a denoiser: its network, pictures of it, its file and
scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cosmos_distill import __version__
from cosmos_distill.config import Export, Recipe
from cosmos_distill.families import described, title
from cosmos_distill.launch import ranks
from cosmos_distill.models.common import files
from cosmos_distill.models.mini_tokenizer.config import AutoencoderConfig
from cosmos_distill.models.mini_tokenizer.network import Autoencoder
from cosmos_distill.run.manifest import ExportedFile, File, Student
from cosmos_distill.run.networks import DTYPES, device, open_clips
from cosmos_distill.run.runner import Run
from cosmos_distill.storage import publish_json, publish_tensors
from cosmos_distill.tokenizers.mini_cv4x4x4 import Learned
from cosmos_distill.tokenizers.pixels import Pixels
from cosmos_distill.train.visuals import GRID_CLIPS, grid

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.clips import FilmSplit
    from cosmos_distill.tokenizers import Tokenizer

COMPONENT_CLIPS = 512
"""Training clips whose principal components a new tokenizer starts from."""
SCORED_CLIPS = 192
"""Held-out clips of each split that a tokenizer is scored on."""


def networks(recipe: Recipe, student: tuple[Path, ...] | None) -> Callable[[str], Autoencoder]:
    """networks(role) for :func:`cosmos_distill.methods.build`; None starts from the components of the
    clips."""

    def build(role: str) -> Autoencoder:
        network = Autoencoder(_sizes(recipe))
        if student is not None:
            network.load_state_dict({k: v.float() for k, v in files.read(student[0]).items()})
        else:
            clips = open_clips(recipe, "train")
            pixels = torch.cat([clips.pixels(n, 64)[0] for n in range(0, COMPONENT_CLIPS, 64)])
            network.initialize(recipe.seed, Pixels().encode(pixels))
        return network.to(device())

    return build


def sampler_grid(network: torch.nn.Module, recipe: Recipe, folder: Path) -> Callable[[int], None]:
    """Held-out clips and their controls beside what comes back of them."""
    clips = open_clips(recipe, "eval")
    batch = clips.batch(0, GRID_CLIPS).to(device())

    def draw(step: int) -> None:
        rows = {}
        for label, x in (("clip", batch.latents), ("control", batch.conditioning.hint)):
            if x is not None:
                back = network.decode(network.encode(x))  # type: ignore[operator]
                rows[f"{label}, back"], rows[label] = clips.decode(back), clips.decode(x)
        if ranks.is_main():
            grid(rows, folder / "grids" / f"step_{step:09d}.png")

    return draw


def export(stage: Export, run: Run, folder: Path) -> ExportedFile:
    """Write tokenizer.safetensors and, beside it, report.json with its scores on held-out clips."""
    recipe = run.recipe
    state = files.read(run.student(stage.student_from))
    dtype = DTYPES[stage.precision]
    said = {"network": title(recipe.network), "version": __version__, "seed": recipe.seed}
    network = Autoencoder(_sizes(recipe))
    network.load_state_dict(state)
    network.rescale(_rms(network, recipe) ** -1)
    tensors = {name: value.to(dtype) for name, value in network.state_dict().items()}
    about = said | {"network": described(recipe.network)}
    path = publish_tensors(tensors, folder / "tokenizer.safetensors", about)
    tokenizer = Learned(path, device())
    splits: tuple[FilmSplit, ...] = ("eval", "hard", "validation", "out_of_domain")
    scores = {split: _scores(tokenizer, recipe, split) for split in splits}
    trained = run.outputs[stage.student_from]
    assert isinstance(trained, Student)
    report = {**said, "steps": trained.steps, "clips": SCORED_CLIPS, "scores": scores}
    publish_json(folder / "report.json", report, indent=2)
    return ExportedFile(student=File.of(path, run.out))


def _sizes(recipe: Recipe) -> AutoencoderConfig:
    assert isinstance(recipe.network, AutoencoderConfig)
    return recipe.network


@torch.no_grad()
def _rms(network: Autoencoder, recipe: Recipe) -> float:
    """Root mean square of the latents of training clips."""
    clips = open_clips(replace(recipe, control=None), "train")
    parts = [network.encode(clips.batch(n, 64).latents) for n in range(0, COMPONENT_CLIPS, 64)]
    return torch.cat(parts).square().mean().sqrt().item()


def _scores(tokenizer: Tokenizer, recipe: Recipe, split: FilmSplit) -> dict[str, Any]:
    """What the round trip keeps of ``SCORED_CLIPS`` clips."""
    clips = open_clips(replace(recipe, control=None), split)
    errors, motions, slopes, step = [], [], [], 32
    for first in range(0, SCORED_CLIPS, step):
        real = clips.pixels(first, step)[0]
        back = tokenizer.decode(tokenizer.encode(real)).cpu().float()
        errors.append((back - real).square().flatten(1).mean(1))
        motions.append(torch.stack([_energy(v, 2) for v in (back, real.float())]))
        slopes.append(torch.stack([_energy(v, 3) + _energy(v, 4) for v in (back, real.float())]))
    ratio = {
        name: (values[0].sum() / values[1].sum()).item()
        for name, values in (("motion", torch.cat(motions, 1)), ("gradient_energy", torch.cat(slopes, 1)))
    }
    return {"psnr": 10 * torch.log10(255**2 / torch.cat(errors).mean()).item(), **ratio}


def _energy(video: Tensor, dim: int) -> Tensor:
    """Mean square of differences along ``dim``, [B]."""
    return video.diff(dim=dim).square().flatten(1).mean(1)

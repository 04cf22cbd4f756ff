"""While a teacher learns: its error at fixed noise levels on clips held out for that, beside clips it trains
on.

Where the two part, it is memorising; the 36-step samples of a teacher hang on the error at little noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos_distill.config import Recipe
from cosmos_distill.data.batch import Batch
from cosmos_distill.diffusion import EDMSchedule, Schedule
from cosmos_distill.launch import ranks
from cosmos_distill.launch.shared import Shared
from cosmos_distill.methods.denoiser import Denoiser
from cosmos_distill.run.networks import device, open_clips, schedule
from cosmos_distill.sampling.samplers import noise_of

LEVELS = (80.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""Noise over signal, sigma under EDM."""
CLIPS, BATCH = 48, 16
FILE = "held_out.jsonl"


def errors(network: nn.Module, recipe: Recipe, folder: Path) -> Callable[[int], None]:
    """A function of the number of steps done that appends a line to held_out.jsonl.

    A line has ``step`` and, by split and level, the mean of loss_weight (x0 - denoised)^2: 1 where the
    network's own output is of no use. Clips and noise are the same every time. All ranks call it, rank 0
    writes.
    """
    levels = schedule(recipe)
    sources = {
        split: Shared(open_clips(recipe, split) if Shared.reads() else None)
        for split in ("validation", "train")
    }
    batches = {
        split: [source.batch(n, BATCH).to(device()) for n in range(0, CLIPS, BATCH)]
        for split, source in sources.items()
    }

    def score(step: int) -> None:
        network.eval()
        found = {
            split: {f"{level:g}": _error(network, levels, parts, level, recipe.seed) for level in LEVELS}
            for split, parts in batches.items()
        }
        network.train()
        if ranks.is_main():
            with (folder / FILE).open("a") as file:
                file.write(json.dumps({"step": step, **found}) + "\n")

    return score


@torch.no_grad()
def _error(network: nn.Module, levels: Schedule, batches: list[Batch], level: float, seed: int) -> float:
    t = level if isinstance(levels, EDMSchedule) else math.atan(level)
    return torch.cat([_errors(network, levels, batch, t, seed) for batch in batches]).mean().item()


def _errors(network: nn.Module, levels: Schedule, batch: Batch, level: float, seed: int) -> Tensor:
    x0 = batch.latents
    t = torch.full((len(batch),), level, dtype=torch.float64, device=x0.device)
    alpha, sigma = (c.to(x0).reshape(-1, 1, 1, 1, 1) for c in levels.noising(t))
    noisy = alpha * x0 + sigma * noise_of(seed, "held_out", batch)
    denoised = Denoiser(network, levels)(noisy, t, batch.conditioning)
    return levels.loss_weight(t).to(x0) * (denoised - x0).square().flatten(1).mean(1)

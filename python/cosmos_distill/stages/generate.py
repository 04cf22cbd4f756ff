"""Generate stage: clips of the teacher's many-step sampler, kept with the noise they started from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from cosmos_distill.config import Generate
from cosmos_distill.data.pairs import PairWriter
from cosmos_distill.files import sha256
from cosmos_distill.stages import Run
from cosmos_distill.stages.manifest import Pairs, sha256_of_listing
from cosmos_distill.stages.networks import device, load_teacher, open_clips, schedule
from cosmos_distill.stages.progress import Log, work
from cosmos_distill.stages.sampling import evaluations, many_steps, noise_of, teacher_calls


def run(name: str, stage: Generate, run: Run, folder: Path) -> Pairs:
    """Draw what is missing of ``stage.pairs`` pairs; a shard is one batch and is published whole.

    Batches always begin at a multiple of ``stage.batch``, so that an interrupted run computes every pair
    in the same company as an uninterrupted one, and gets the same bits.
    """
    recipe, levels = run.recipe, schedule(run.recipe)
    clips = open_clips(recipe, "train")
    writer = PairWriter(folder / "pairs")
    log = Log(folder)
    per_batch = teacher_calls(levels, stage.steps)
    missing = range(writer.done(), stage.pairs, stage.batch)
    if len(missing):
        teacher = load_teacher(recipe)
        kept = "whole batches are kept, the same command draws the rest"
        with work(run.console, name, len(missing) * per_batch, run.stop, kept) as bar:
            for first in missing:
                batch = clips.batch(first, min(stage.batch, stage.pairs - first)).to(device())
                noise = noise_of(recipe.seed, name, batch)
                frames = torch.full((len(batch),), stage.condition_frames) if stage.condition_frames else None
                latents = many_steps(
                    teacher, levels, batch, noise, stage.guidance, stage.steps, frames, bar.advance
                )
                writer.write(dataclasses.replace(batch.to("cpu"), latents=latents.cpu(), noise=noise.cpu()))
                log.line(pairs=writer.done())
    run.details["data"] = clips.description()
    run.details["evaluations_per_pair"] = evaluations(per_batch, stage.guidance)
    shards = sorted((folder / "pairs").glob("*.safetensors"))
    digest = sha256_of_listing([json.dumps([p.name, sha256(p)]) for p in shards])
    return Pairs(
        folder=(folder / "pairs").relative_to(run.out).as_posix(), count=writer.done(), sha256=digest
    )

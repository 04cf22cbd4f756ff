"""Generate stage: clips of the teacher's many-step sampler, kept with the noise they started from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from cosmos_distill.config import Generate
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.pairs import PairWriter
from cosmos_distill.files import sha256
from cosmos_distill.launch import ranks
from cosmos_distill.launch.shared import Shared, drawn
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run.checks import teacher_files
from cosmos_distill.run.manifest import Pairs, sha256_of_listing
from cosmos_distill.run.networks import collective, computing, device, load_to_draw, open_clips, schedule
from cosmos_distill.run.progress import Log, work
from cosmos_distill.run.runner import Run
from cosmos_distill.sampling.samplers import evaluations, frames_of, many_steps, noise_of


def run(name: str, stage: Generate, run: Run, folder: Path) -> Pairs:
    """Draw what is missing of ``stage.pairs`` pairs; a shard is one batch and is published whole.

    Batches always begin at a multiple of ``stage.batch``, so that an interrupted run computes every pair
    in the same company as an uninterrupted one, and gets the same bits. Data-parallel ranks draw a batch
    each, and rank 0 writes them in order.
    """
    recipe, levels = run.recipe, schedule(run.recipe)
    source = Shared(open_clips(recipe, "train") if Shared.reads() else None)
    writer, log = PairWriter(folder / "pairs") if ranks.is_main() else None, Log(folder)
    many_step = recipe.network.family.teacher
    per_batch = many_step.calls(stage.steps)
    missing = on_rank_zero(lambda: writer.missing(stage.pairs, stage.batch) if writer else [])
    if missing:
        teacher = load_to_draw(recipe, teacher_files(recipe), stage.batch, stage.precision)
        kept = "whole batches are kept, the same command draws the rest"
        total = -(-len(missing) // groups.data_size()) * per_batch
        with work(run.console, name, total, run.stop, kept) as bar, computing(stage.precision):

            def draw(first: int, count: int) -> Batch:
                batch = source.batch(first, count).to(device())
                noise = noise_of(recipe.seed, name, batch)
                frames = frames_of(stage.condition_frames, range(first, first + count))
                latents = many_steps(
                    teacher, levels, batch, noise, stage.guidance, many_step, stage.steps, frames, bar.advance
                )
                return dataclasses.replace(batch.to("cpu"), latents=latents.cpu(), noise=noise.cpu())

            for batch in drawn(missing, draw, bar.together, collective(recipe)):
                assert writer is not None
                writer.write(batch)
                log.line(pairs=writer.done())
    run.details["data"] = source.description()
    run.details["evaluations_per_pair"] = evaluations(per_batch, stage.guidance)

    def output() -> Pairs:
        assert writer is not None
        shards = sorted(writer.folder.glob("*.safetensors"))
        digest = sha256_of_listing([json.dumps([p.name, sha256(p)]) for p in shards])
        return Pairs(writer.folder.relative_to(run.out).as_posix(), writer.done(), digest)

    return on_rank_zero(output)

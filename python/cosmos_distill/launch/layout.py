"""Whether a layout suits the ranks, the network and the batch; asked before anything starts. Torch-free."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence

from cosmos_distill.config import Parallel, Recipe, Train
from cosmos_distill.families import title
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.parallel import environment
from cosmos_distill.parallel.runs import split_blocks
from cosmos_distill.train.plan import launch_line


def smallest_world(parallel: Parallel) -> int:
    """Ranks that a layout takes at least."""
    shards = parallel.fsdp_shards or 1
    # shards have to divide data-parallel ranks x context.
    return parallel.model * (shards // math.gcd(shards, parallel.context))


def launch(parallel: Parallel, args: Sequence[str]) -> str:
    """The line that starts a command under a layout, on as many ranks as it takes at least or as there are.

    Args:
        args: What follows ``cosmos-distill``.
    """
    ranks = max(environment.launch().world, smallest_world(parallel))
    command = shlex.join(a for a in args if a != "--dry-run")
    try:
        return launch_line(parallel, command, data_parallel=ranks // parallel.model)
    except ValueError as error:
        return str(error)


def problems(recipe: Recipe, ranks: int, args: Sequence[str] = ()) -> Iterator[str]:
    """What is wrong with the layout on so many ranks, and what to do about it, one by one."""
    parallel = recipe.parallel
    if ranks % parallel.model:
        asked = f"tensor {parallel.tensor} x context {parallel.context} x pipeline {parallel.pipeline}"
        if ranks == 1:
            yield (
                f"--parallel: {asked} takes {parallel.model} processes, and this is one. Start it with\n  "
                f"{launch(parallel, args)}"
            )
        else:
            yield (
                f"{ranks} processes were launched, which is not a multiple of {asked} = {parallel.model}: "
                f"launch a multiple of {parallel.model}, or choose sizes whose product divides {ranks}."
            )
        return
    data = ranks // parallel.model
    if isinstance(recipe.network, DiTConfig):
        yield from _network(parallel, recipe.network)
    shards, sharers = parallel.fsdp_shards, data * parallel.context
    if shards and sharers % shards:
        yield (
            f"--parallel.fsdp-shards {shards} does not divide {data} data-parallel ranks x context "
            f"{parallel.context}: choose a divisor of {sharers}."
        )
    for name, stage in recipe.stages.items():
        if isinstance(stage, Train):
            yield from _batch(f"--stages.{name}.trainer", stage, parallel, data)


def _network(parallel: Parallel, config: DiTConfig) -> Iterator[str]:
    heads, name = config.heads, title(config)
    if heads % parallel.tensor:
        yield (
            f"--parallel.tensor {parallel.tensor} does not divide the {heads} heads of {name}: choose one of "
            f"{', '.join(map(str, _divisors(heads)))}."
        )
    elif parallel.context_attention == "ulysses" and heads // parallel.tensor % parallel.context:
        own = heads // parallel.tensor
        yield (
            f"--parallel.context {parallel.context} does not divide the {own} heads that a tensor-parallel "
            f"rank has of {name}, which exchanging tokens for heads needs: choose one of "
            f"{', '.join(map(str, _divisors(own)))}, or --parallel.context-attention ring."
        )
    if parallel.pipeline > 1:
        runs = parallel.pipeline * parallel.virtual_pipeline
        try:
            split_blocks(config.blocks, config.leading_blocks, runs)
        except ValueError as error:
            yield f"--parallel.pipeline {parallel.pipeline}: {name}: {error}."


def _batch(option: str, stage: Train, parallel: Parallel, data: int) -> Iterator[str]:
    trainer = stage.trainer
    each = data * trainer.micro_batch
    if trainer.global_batch % each:
        yield (
            f"{option}.global-batch {trainer.global_batch} is not a multiple of {data} data-parallel ranks x "
            f"micro-batch {trainer.micro_batch}: choose a multiple of {each}."
        )
    elif parallel.virtual_pipeline > 1 and (count := trainer.global_batch // each) % parallel.pipeline:
        yield (
            f"{option}: a data-parallel rank has {count} micro-batches a step, and the interleaved pipeline "
            f"takes {parallel.pipeline} at a time: choose a global-batch that is a multiple of "
            f"{each * parallel.pipeline}."
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]

"""The layouts that a recipe can have on so many GPUs, the plainest first. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from cosmos_distill.config import Parallel, Recipe
from cosmos_distill.launch.devices import NODE
from cosmos_distill.launch.layout import problems

ATTENTION: tuple[Literal["ulysses", "ring"], ...] = ("ulysses", "ring")
"""How tokens of several context ranks meet, what sends less first."""


def possible(recipe: Recipe, gpus: int) -> Iterator[Parallel]:
    """Layouts that nothing is wrong with, one of each split of the networks, those that split them least
    first: what fewer ranks share costs fewer messages. How data-parallel ranks share is left to the caller.

    Tensor parallelism stays in a machine and comes with sequence parallelism; a pipeline is not interleaved.
    """
    powers = [2**n for n in range(gpus.bit_length())]
    splits = [
        (tensor * context * pipeline, pipeline, tensor, context)
        for tensor in powers
        for context in powers
        for pipeline in powers
        if tensor <= NODE and tensor * context * pipeline <= gpus and context <= 16 and pipeline <= 8
    ]
    for _, pipeline, tensor, context in sorted(splits):
        plain = Parallel(tensor=tensor, sequence=tensor > 1, pipeline=pipeline, context=context)
        for attention in ATTENTION[: 1 if context == 1 else 2]:
            layout = replace(plain, context_attention=attention)
            if not any(problems(replace(recipe, parallel=layout), gpus)):
                yield layout
                break


def sharing(parallel: Parallel, gpus: int) -> Iterator[Parallel]:
    """The layout with each way in which data-parallel ranks can share what they have, the fastest first."""
    yield replace(parallel, data="replicated", fsdp_shards=None)
    if gpus // parallel.model * parallel.context > 1:
        yield replace(parallel, data="sharded_optimizer", fsdp_shards=None)
        yield replace(parallel, data="fsdp", fsdp_shards=None)

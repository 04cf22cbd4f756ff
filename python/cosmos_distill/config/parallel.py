"""How the networks are spread over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cosmos_distill.config.numbers import Ranks
from cosmos_distill.ranges import Checked, Problem


@dataclass(frozen=True)
class Parallel(Checked):
    """How the networks are spread over ranks. The layout never changes the result.

    What the launcher's ranks leave after tensor x context x pipeline is data parallelism.
    """

    tensor: Ranks = 1
    """Ranks that share every matrix of a block."""
    sequence: bool = False
    """Split the tokens between those matrices over the tensor-parallel ranks as well."""
    pipeline: Ranks = 1
    """Ranks that share the blocks, one after the other (1F1B)."""
    virtual_pipeline: Ranks = 1
    """Runs of blocks on every pipeline rank; above 1 their schedule is interleaved."""
    context: Ranks = 1
    """Ranks that share the tokens of a clip."""
    context_attention: Literal["ulysses", "ring"] = "ulysses"
    """How tokens of different context ranks meet: by exchanging tokens for heads (all-to-all), which needs
    heads / tensor to be a multiple of context, or by passing keys and values around."""
    data: Literal["replicated", "sharded_optimizer", "fsdp"] = "replicated"
    """What data-parallel ranks hold: a whole copy; a copy of the weights with a share of the optimiser
    (ZeRO-1, on Megatron's gradient buffers); or a share of everything (torch FSDP2)."""
    fsdp_shards: Ranks | None = None
    """Ranks over which fsdp splits, with copies over the others (hybrid sharding); None: all."""

    def rules(self) -> Iterator[Problem]:
        """What one kind of parallelism needs of another."""
        if self.sequence and self.tensor == 1:
            yield "sequence", "needs tensor above 1"
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            yield "virtual_pipeline", "needs pipeline above 1: it divides a pipeline rank's blocks"
        if self.fsdp_shards is not None and self.data != "fsdp":
            yield "fsdp_shards", 'belongs to data "fsdp"'

    @property
    def model(self) -> int:
        """Ranks that together are one data-parallel rank."""
        return self.tensor * self.context * self.pipeline

"""Tensor names in the official files of Cosmos-Predict2.5, whose one network is under ``net.``.
Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cosmos_distill.families import InDiffusers, Translation
from cosmos_distill.models.common.names import (
    MATRICES,
    SUBLAYERS,
    DiffusersNames,
    Row,
    Table,
    is_carried,
    transformer_configuration,
    understood,
)

if TYPE_CHECKING:
    from cosmos_distill.models.common.config import DiTConfig

PREFIX = "net."
"""Of the files that we write."""
_MARK = re.compile(r"((?:net|net_ema)\.|)(?:t_embedding_norm\.weight|blocks\.\d+\.self_attn\.q_proj\.weight)")


def block(ours: str, theirs: str) -> list[Row]:
    """A block's tensors."""
    attention = [
        (f"{ours}.{part}.{mine}", f"{theirs}.{part}.{other}")
        for part in SUBLAYERS[:2]
        for mine, other in [
            *((f"{x}.weight", f"{x}_proj.weight") for x in MATRICES),
            *((f"{x}_norm", f"{x}_norm.weight") for x in "qk"),
            ("out.weight", "output_proj.weight"),
        ]
    ]
    mlp = [
        (f"{ours}.mlp.{mine}.weight", f"{theirs}.mlp.{other}.weight")
        for mine, other in (("up", "layer1"), ("down", "layer2"))
    ]
    modulations = [
        (f"{ours}.modulations.{s}.linear_{k}.weight", f"{theirs}.adaln_modulation_{part}.{k}.weight")
        for s, part in enumerate(SUBLAYERS)
        for k in (1, 2)
    ]
    return attention + mlp + modulations


BASE: list[Row] = [
    ("base.patch_embed.proj.weight", "x_embedder.proj.1.weight"),
    *((f"base.time_embed.{x}.weight", f"t_embedder.1.{x}.weight") for x in ("linear_1", "linear_2")),
    ("base.time_embed.norm.weight", "t_embedding_norm.weight"),
    *block("base.blocks.{i}", "blocks.{i}"),
    *(
        (f"base.final_layer.modulation.linear_{k}.weight", f"final_layer.adaln_modulation.{k}.weight")
        for k in (1, 2)
    ),
    ("base.final_layer.linear.weight", "final_layer.linear.weight"),
    *((f"base.text_projection.proj.{x}", f"crossattn_proj.0.{x}") for x in ("weight", "bias")),
]


def prefix_of(names: Iterable[str]) -> str | None:
    """The prefix of the network in a file: ``net.``, ``net_ema.`` or none; None: it holds no such network.

    A second network in the file keeps its prefix, and so is unknown.
    """
    marks = {match[1] for name in names if (match := _MARK.fullmatch(name))}
    return min(marks) if marks else None


class Predict25Names(DiffusersNames):
    """Cosmos-Predict2.5's."""

    title = "Predict2.5"
    table = Table(BASE)

    def from_official(self, names: Sequence[str]) -> Translation:
        """Understand the names of one official file."""
        prefix = prefix_of(names)
        if prefix is None:
            return Translation({}, {}, list(names))
        return self.below(prefix, names, self.table)

    def below(self, prefix: str, names: Sequence[str], table: Table) -> Translation:
        """Understand the names of the network that is under ``prefix``."""

        def carried(name: str) -> str | None:
            rest = name.removeprefix(prefix)
            return PREFIX + rest if is_carried(rest) else None

        return understood(names, lambda name: table.ours(name.removeprefix(prefix)), carried)

    def to_official(self, names: Iterable[str]) -> dict[str, str]:
        """Our names -> those of the official file."""
        return {name: PREFIX + self._theirs(name, self.table) for name in names}

    def in_diffusers(self, sizes: DiTConfig) -> InDiffusers:
        """One network."""
        transformer = "CosmosTransformer3DModel", transformer_configuration(sizes)
        return InDiffusers("Cosmos2_5_PredictBasePipeline", {"transformer": transformer})

    def _theirs(self, name: str, table: Table) -> str:
        theirs = table.theirs(name)
        if theirs is None:
            raise ValueError(f"{name} has no official name; it is not a tensor of a {self.title} network")
        return theirs

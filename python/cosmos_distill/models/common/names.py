"""Tensor names of the video DiT in the formats that it is exchanged in: what the families' tables are made
of. Torch-free.

A row is (ours, theirs); ``{i}`` and ``{j}`` stand for numbers that are the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.families import InDiffusers, Translation

if TYPE_CHECKING:
    from cosmos_distill.models.common.config import DiTConfig

Row = tuple[str, str]
SUBLAYERS = ("self_attn", "cross_attn", "mlp")
MATRICES = ("q", "k", "v")


def block_in_diffusers(ours: str, theirs: str) -> list[Row]:
    """A block's tensors in diffusers' CosmosTransformerBlock."""
    attention = [
        (f"{ours}.{part}.{mine}", f"{theirs}.attn{n + 1}.{other}")
        for n, part in enumerate(SUBLAYERS[:2])
        for mine, other in [
            *((f"{x}.weight", f"to_{x}.weight") for x in MATRICES),
            *((f"{x}_norm", f"norm_{x}.weight") for x in "qk"),
            ("out.weight", "to_out.0.weight"),
        ]
    ]
    mlp = [
        (f"{ours}.mlp.{mine}.weight", f"{theirs}.ff.{other}.weight")
        for mine, other in (("up", "net.0.proj"), ("down", "net.2"))
    ]
    modulations = [
        (f"{ours}.modulations.{s}.linear_{k}.weight", f"{theirs}.norm{s + 1}.linear_{k}.weight")
        for s in range(len(SUBLAYERS))
        for k in (1, 2)
    ]
    return attention + mlp + modulations


EMBEDDINGS_IN_DIFFUSERS: list[Row] = [
    *((f"base.time_embed.{x}.weight", f"time_embed.t_embedder.{x}.weight") for x in ("linear_1", "linear_2")),
    ("base.time_embed.norm.weight", "time_embed.norm.weight"),
    *((f"base.positions.{x}", f"learnable_pos_embed.pos_emb_{x}") for x in "thw"),
    *((f"base.text_projection.proj.{x}", f"crossattn_proj.0.{x}") for x in ("weight", "bias")),
]
TRANSFORMER_IN_DIFFUSERS: list[Row] = [
    ("base.patch_embed.proj.weight", "patch_embed.proj.weight"),
    *EMBEDDINGS_IN_DIFFUSERS,
    *block_in_diffusers("base.blocks.{i}", "transformer_blocks.{i}"),
    *((f"base.final_layer.modulation.linear_{k}.weight", f"norm_out.linear_{k}.weight") for k in (1, 2)),
    ("base.final_layer.linear.weight", "proj_out.weight"),
]
"""The base network as CosmosTransformer3DModel."""

_CARRIED = re.compile(
    r"(?:.*\.)?(?:logvar\..*|pos_embedder\.(?:seq|dim_spatial_range|dim_temporal_range)|accum_\w+|_extra_state)"
)


def is_carried(name: str) -> bool:
    """Whether official files hold such a tensor that no forward pass reads (buffers, counters)."""
    return bool(_CARRIED.fullmatch(name))


def _patterns(rows: Iterable[Row]) -> list[tuple[re.Pattern[str], str]]:
    found = []
    for one, other in rows:
        pattern = re.escape(one)
        for letter in "ij":
            pattern = pattern.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>0|[1-9]\d*)")
            other = other.replace(f"{{{letter}}}", rf"\g<{letter}>")
        found.append((re.compile(pattern), other))
    return found


def _translate(name: str, table: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in table:
        if match := pattern.fullmatch(name):
            return match.expand(target)
    return None


class Table:
    """Rows, read in both directions."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self._theirs = _patterns(rows)
        self._ours = _patterns((theirs, ours) for ours, theirs in rows)

    def theirs(self, ours: str) -> str | None:
        """Their name of a tensor of ours; None where they have none."""
        return _translate(ours, self._theirs)

    def ours(self, theirs: str) -> str | None:
        """Our name of a tensor of theirs; None where we have none."""
        return _translate(theirs, self._ours)


TRANSFORMER = Table(TRANSFORMER_IN_DIFFUSERS)


def understood(
    names: Iterable[str], ours: Callable[[str], str | None], carried: Callable[[str], str | None]
) -> Translation:
    """Sort the names of a file. A second name for one tensor is unknown.

    Args:
        ours: their name -> ours.
        carried: their name -> the one under which a tensor that no forward pass reads is written back.
    """
    found = Translation({}, {}, [])
    taken: set[str] = set()
    for name in names:
        mine = ours(name)
        if mine is not None and mine not in taken:
            found.ours[name] = mine
            taken.add(mine)
        elif mine is None and (written := carried(name)) is not None:
            found.carried[name] = written
        else:
            found.unknown.append(name)
    return found


def common_configuration(sizes: DiTConfig) -> dict[str, Any]:
    """What diffusers' CosmosTransformer3DModel and CosmosControlNetModel are both told of a network.

    Raises:
        ValueError: they cannot be told all of it.
    """
    if sizes.timestep_scale != 1:
        raise ValueError(
            f"diffusers' networks embed times as they are, and this one has timestep_scale "
            f"{sizes.timestep_scale:g}"
        )
    if sizes.fps_modulation:
        raise ValueError("diffusers' pipelines tell networks no fps, and this one has fps_modulation")
    return {
        "num_attention_heads": sizes.heads,
        "attention_head_dim": sizes.head_dim,
        "mlp_ratio": sizes.mlp_ratio,
        "text_embed_dim": sizes.text_dim,
        "adaln_lora_dim": sizes.adaln_rank,
        "patch_size": (1, sizes.patch, sizes.patch),
        "max_size": (sizes.max_frames, sizes.max_height, sizes.max_width),
        "rope_scale": (sizes.rope_ratio_t, sizes.rope_ratio_hw, sizes.rope_ratio_hw),
        "extra_pos_embed_type": "learnable" if sizes.learnable_positions else None,
        "use_crossattn_projection": sizes.text_projection is not None,
        "crossattn_proj_in_channels": sizes.text_channels,
        "encoder_hidden_states_channels": sizes.text_dim,
    }


def transformer_configuration(sizes: DiTConfig) -> dict[str, Any]:
    """That of CosmosTransformer3DModel. Raises ValueError as :func:`common_configuration` does."""
    return {
        "in_channels": sizes.latent_channels + 1,  # and the mask of given frames
        "out_channels": sizes.latent_channels,
        "num_layers": sizes.blocks,
        **common_configuration(sizes),
    }


class DiffusersNames:
    """Names of a family that diffusers knows as a CosmosTransformer3DModel."""

    def in_distilled(self, official: str) -> str:
        """The same."""
        return official

    def in_diffusers(self, sizes: DiTConfig) -> InDiffusers:
        """No pipeline."""
        raise ValueError(f"diffusers has no pipeline for {sizes.family.title}")

    def from_diffusers(self, names: Sequence[str]) -> Translation:
        """Understand the names of CosmosTransformer3DModel."""
        return understood(names, TRANSFORMER.ours, lambda name: None)

    def to_diffusers(self, names: Iterable[str]) -> dict[tuple[str, str], str]:
        """The base network's tensors, as the pipeline's ``transformer``."""
        found = ((name, TRANSFORMER.theirs(name)) for name in names)
        return {("transformer", theirs): name for name, theirs in found if theirs is not None}

    def files(self, folder: Path, control: str | None) -> tuple[Path, ...] | None:
        """No folder holds more than one file of it."""
        return None

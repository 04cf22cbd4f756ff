"""Tensor names in the official files of Cosmos-Transfer1: base and control branch, apart or merged.
Torch-free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cosmos_distill.families import Translation
from cosmos_distill.models.common.names import (
    MATRICES,
    SUBLAYERS,
    DiffusersNames,
    Row,
    Table,
    is_carried,
    understood,
)

PREFIXES = {"base": "base_model.net.", "control": "net."}
"""Of the files that we write, which are merged teacher files."""
DISTILLED = {"base": "net.base_model.net.", "control": "net.net_ctrl."}
"""Of the file that the official inference of a distilled network reads; it passes over all other tensors
without a word."""
_READ = (
    *((prefix, role) for role, prefix in DISTILLED.items()),
    ("base_model.net.", "base"),
    ("net_ctrl.", "control"),
)
_CONTROL_MARK = re.compile(r"(?:net\.)?(?:x_embedder2|input_hint_block|zero_blocks)\.")

_BLOCKS: list[Row] = [
    *(
        (f"blocks.{{i}}.{part}.{mine}", f"blocks.block{{i}}.blocks.{n}.block.attn.{other}")
        for n, part in enumerate(SUBLAYERS[:2])
        for mine, other in [
            *((f"{x}.weight", f"to_{x}.0.weight") for x in MATRICES),
            *((f"{x}_norm", f"to_{x}.1.weight") for x in "qk"),
            ("out.weight", "to_out.0.weight"),
        ]
    ),
    *(
        (f"blocks.{{i}}.mlp.{mine}.weight", f"blocks.block{{i}}.blocks.2.block.{other}.weight")
        for mine, other in (("up", "layer1"), ("down", "layer2"))
    ),
    *(
        (
            f"blocks.{{i}}.modulations.{s}.linear_{k}.weight",
            f"blocks.block{{i}}.blocks.{s}.adaLN_modulation.{k}.weight",
        )
        for s in range(len(SUBLAYERS))
        for k in (1, 2)
    ),
]
_TRUNK: list[Row] = [
    ("patch_embed.proj.weight", "x_embedder.proj.1.weight"),
    *((f"time_embed.{x}.weight", f"t_embedder.1.{x}.weight") for x in ("linear_1", "linear_2")),
    ("time_embed.norm.weight", "affline_norm.weight"),  # sic
    *((f"positions.{x}", f"extra_pos_embedder.pos_emb_{x}") for x in "thw"),
    *_BLOCKS,
]
_FINAL: list[Row] = [
    *(
        (f"final_layer.modulation.linear_{k}.weight", f"final_layer.adaLN_modulation.{k}.weight")
        for k in (1, 2)
    ),
    ("final_layer.linear.weight", "final_layer.linear.weight"),
]
_HINT: list[Row] = [
    ("hint_embed.proj.weight", "x_embedder2.proj.1.weight"),
    *((f"hint_encoder.{{i}}.{x}", f"input_hint_block.{{i}}.{x}") for x in ("weight", "bias")),
    *((f"zero_blocks.{{i}}.{x}", f"zero_blocks.block{{i}}.{x}") for x in ("weight", "bias")),
]
_TABLES = {"base": Table([*_TRUNK, *_FINAL]), "control": Table([*_TRUNK, *_HINT])}


class Transfer1Names(DiffusersNames):
    """Cosmos-Transfer1's. diffusers knows the base network only."""

    def from_official(self, names: Sequence[str]) -> Translation:
        """Understand the names of ``base_model.pt``, ``<control>_control.pt``, their merged teacher file, or
        the distilled export."""
        parts = _split(list(names))

        def ours(name: str) -> str | None:
            role, rest, _ = parts[name]
            found = _TABLES[role].ours(rest)
            return found and f"{role}.{found}"

        def carried(name: str) -> str | None:
            role, rest, merged = parts[name]
            unread = is_carried(rest) or (role == "control" and rest.startswith("final_layer."))
            return merged if unread else None

        return understood(names, ours, carried)

    def to_official(self, names: Iterable[str]) -> dict[str, str]:
        """Our names -> those of the merged file.

        Raises:
            ValueError: there are several branches, each of which has a file of its own there.
        """
        names = list(names)
        if any(name.startswith("control.branches.") for name in names):
            raise ValueError("official files of Cosmos-Transfer1 have one control, and this network several")
        return {name: _theirs(name) for name in names}

    def in_distilled(self, official: str) -> str:
        """Both parts have prefixes of their own."""
        for role, prefix in PREFIXES.items():  # that of the base first
            if official.startswith(prefix):
                return DISTILLED[role] + official.removeprefix(prefix)
        return f"net.{official}"

    def files(self, folder: Path, control: str | None) -> tuple[Path, ...] | None:
        """A published folder has ``base_model`` beside one ``<control>_control`` per control."""
        name = "4kupscaler" if control == "upscale" else control
        for ending in (".safetensors", ".pt"):
            pair = folder / f"base_model{ending}", folder / f"{name}_control{ending}"
            if pair[0].is_file():
                return pair
        return None


def _theirs(name: str) -> str:
    role, _, rest = name.partition(".")
    theirs = _TABLES[role].theirs(rest) if role in _TABLES else None
    if theirs is None:
        raise ValueError(f"{name} has no official name; it is not a tensor of a Transfer1 network")
    return PREFIXES[role] + theirs


def _split(names: list[str]) -> dict[str, tuple[str, str, str]]:
    """(role, unprefixed name, name in a merged file) of every tensor of one file.

    ``net.`` and no prefix at all mean the base in ``base_model.pt`` and the control branch in a control or
    merged file; the file's other tensors tell which.
    """
    found: dict[str, tuple[str, str]] = {}
    plain: list[str] = []
    for name in names:
        for prefix, role in _READ:
            if name.startswith(prefix):
                found[name] = (role, name.removeprefix(prefix))
                break
        else:
            plain.append(name)
    control = bool(found) or any(_CONTROL_MARK.match(name) for name in plain)
    # Beside prefixed network tensors, a name without prefix is a tensor of the model around the network.
    prefixed = bool(found) or any(name.startswith("net.") for name in plain)
    role = "control" if control else "base"
    split = {}
    for name in names:
        if name in found:
            split[name] = (*found[name], PREFIXES[found[name][0]] + found[name][1])
            continue
        rest = name.removeprefix("net.")
        if rest.startswith("base_model."):
            merged = rest
        elif prefixed and rest == name:
            merged = name if control else f"base_model.{name}"
        else:
            merged = PREFIXES[role] + rest
        split[name] = (role, rest, merged)
    return split

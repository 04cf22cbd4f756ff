"""Tensor names of the networks in the formats they are exchanged in. Torch-free.

A row is (ours, Cosmos-Transfer1, Cosmos-Predict2.5, diffusers' CosmosTransformer3DModel), None where a
network has no such tensor; ``{i}`` stands for a number that is the same in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Layout = Literal["transfer1", "predict2.5"]
"""Whose official names: Transfer1's base and control branch, or Predict2.5's single network."""

_Row = tuple[str, str | None, str | None, str | None]

_SUBLAYERS = ("self_attn", "cross_attn", "mlp")

_ATTENTION: list[_Row] = [
    (
        f"blocks.{{i}}.{part}.{ours}",
        f"blocks.block{{i}}.blocks.{n}.block.attn.{transfer1}",
        f"blocks.{{i}}.{part}.{predict}",
        f"transformer_blocks.{{i}}.attn{n + 1}.{diffusers}",
    )
    for n, part in enumerate(_SUBLAYERS[:2])
    for ours, transfer1, predict, diffusers in [
        *((f"{x}.weight", f"to_{x}.0.weight", f"{x}_proj.weight", f"to_{x}.weight") for x in "qkv"),
        *((f"{x}_norm", f"to_{x}.1.weight", f"{x}_norm.weight", f"norm_{x}.weight") for x in "qk"),
        ("out.weight", "to_out.0.weight", "output_proj.weight", "to_out.0.weight"),
    ]
]

_TRUNK: list[_Row] = [
    ("patch_embed.proj.weight", *(2 * ("x_embedder.proj.1.weight",)), "patch_embed.proj.weight"),
    *(
        (f"time_embed.{x}.weight", *(2 * (f"t_embedder.1.{x}.weight",)), f"time_embed.t_embedder.{x}.weight")
        for x in ("linear_1", "linear_2")
    ),
    ("time_embed.norm.weight", "affline_norm.weight", "t_embedding_norm.weight",  # sic
     "time_embed.norm.weight"),
    *(
        (f"positions.{x}", f"extra_pos_embedder.pos_emb_{x}", None, f"learnable_pos_embed.pos_emb_{x}")
        for x in "thw"
    ),
    *_ATTENTION,
    *(
        (f"blocks.{{i}}.mlp.{ours}.weight", f"blocks.block{{i}}.blocks.2.block.{official}.weight",
         f"blocks.{{i}}.mlp.{official}.weight", f"transformer_blocks.{{i}}.ff.{diffusers}.weight")
        for ours, official, diffusers in (("up", "layer1", "net.0.proj"), ("down", "layer2", "net.2"))
    ),
    *(
        (f"blocks.{{i}}.modulations.{s}.linear_{k}.weight",
         f"blocks.block{{i}}.blocks.{s}.adaLN_modulation.{k}.weight",
         f"blocks.{{i}}.adaln_modulation_{part}.{k}.weight",
         f"transformer_blocks.{{i}}.norm{s + 1}.linear_{k}.weight")
        for s, part in enumerate(_SUBLAYERS)
        for k in (1, 2)
    ),
]  # fmt: skip

_BASE: list[_Row] = [
    *_TRUNK,
    *(
        (f"final_layer.modulation.linear_{k}.weight", f"final_layer.adaLN_modulation.{k}.weight",
         f"final_layer.adaln_modulation.{k}.weight", f"norm_out.linear_{k}.weight")
        for k in (1, 2)
    ),
    ("final_layer.linear.weight", *(2 * ("final_layer.linear.weight",)), "proj_out.weight"),
    *((f"text_projection.proj.{x}", None, *(2 * (f"crossattn_proj.0.{x}",))) for x in ("weight", "bias")),
]  # fmt: skip

_HINT = [
    ("hint_embed.proj.weight", "x_embedder2.proj.1.weight"),
    *((f"hint_encoder.{{i}}.{x}", f"input_hint_block.{{i}}.{x}") for x in ("weight", "bias")),
    *((f"zero_blocks.{{i}}.{x}", f"zero_blocks.block{{i}}.{x}") for x in ("weight", "bias")),
]

_Table = list[tuple[re.Pattern[str], str]]


def _table(pairs: Iterable[tuple[str, str]]) -> _Table:
    number = r"(0|[1-9]\d*)"
    return [(re.compile(re.escape(a).replace(r"\{i\}", number)), b.replace("{i}", r"\1")) for a, b in pairs]


def _translate(name: str, table: _Table) -> str | None:
    for pattern, target in table:
        if match := pattern.fullmatch(name):
            return match.expand(target)
    return None


def _pairs(rows: list[_Row], column: int) -> list[tuple[str, str]]:
    return [(row[0], theirs) for row in rows if (theirs := row[column]) is not None]


_TRANSFER1 = {"base": _pairs(_BASE, 1), "control": [*_pairs(_TRUNK, 1), *_HINT]}
_PREDICT = {"base": _pairs(_BASE, 2)}
_TO_OFFICIAL = {
    "transfer1": {role: _table(pairs) for role, pairs in _TRANSFER1.items()},
    "predict2.5": {role: _table(pairs) for role, pairs in _PREDICT.items()},
}
# The two official layouts contradict each other nowhere: what a name means does not depend on the file.
_FROM_OFFICIAL = {
    "base": _table((b, a) for a, b in {*_TRANSFER1["base"], *_PREDICT["base"]}),
    "control": _table((b, a) for a, b in _TRANSFER1["control"]),
}
_TO_DIFFUSERS = _table(_pairs(_BASE, 3))
_FROM_DIFFUSERS = _table((b, a) for a, b in _pairs(_BASE, 3))

_CARRIED = re.compile(
    r"(?:.*\.)?(?:logvar\..*|pos_embedder\.(?:seq|dim_spatial_range|dim_temporal_range)|accum_\w+|_extra_state)"
)
OFFICIAL_PREFIX = {
    "transfer1": {"base": "base_model.net.", "control": "net."},
    "predict2.5": {"base": "net."},
}
"""Prefixes in the official files that we write (Transfer1: the merged teacher file)."""

_PREFIXES = (
    ("net.base_model.net.", "base"),
    ("net.net_ctrl.", "control"),
    ("base_model.net.", "base"),
    ("net_ctrl.", "control"),
)  # the first two: what the official conversion of a distilled checkpoint writes
_PREDICT_MARK = re.compile(
    r"((?:net|net_ema)\.|)(?:t_embedding_norm\.weight|blocks\.\d+\.self_attn\.q_proj\.weight)"
)
_CONTROL_MARK = re.compile(r"(?:net\.)?(?:x_embedder2|input_hint_block|zero_blocks)\.")


def split_official(names: list[str]) -> dict[str, tuple[str, str, str]]:
    """(role, unprefixed name, name in a merged file) of every tensor of one official file.

    ``net.`` and no prefix at all mean the base in ``base_model.pt`` and the control branch in a control or
    merged file; the file's other tensors tell which. A Predict2.5 file has one network, under ``net.``,
    ``net_ema.`` or no prefix.
    """
    if marks := {match[1] for name in names if (match := _PREDICT_MARK.fullmatch(name))}:
        prefix = min(marks)  # a second network in the file keeps its prefix, and so is refused
        rests = {name: name.removeprefix(prefix) for name in names}
        return {
            name: ("base", rest, OFFICIAL_PREFIX["predict2.5"]["base"] + rest) for name, rest in rests.items()
        }
    prefixes = OFFICIAL_PREFIX["transfer1"]
    found: dict[str, tuple[str, str]] = {}
    plain: list[str] = []
    for name in names:
        for prefix, role in _PREFIXES:
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
            split[name] = (*found[name], prefixes[found[name][0]] + found[name][1])
            continue
        rest = name.removeprefix("net.")
        if rest.startswith("base_model."):
            merged = rest
        elif prefixed and rest == name:
            merged = name if control else f"base_model.{name}"
        else:
            merged = prefixes[role] + rest
        split[name] = (role, rest, merged)
    return split


def from_official(role: str, name: str) -> str | None:
    """Our name of an unprefixed official tensor; None if the network has no such tensor."""
    ours = _translate(name, _FROM_OFFICIAL[role])
    return ours and f"{role}.{ours}"


def layout_of(names: Iterable[str]) -> Layout:
    """Whose network tensors of our names make: only Transfer1's has learnable positions."""
    return "transfer1" if any(".positions." in name for name in names) else "predict2.5"


def to_official(name: str, layout: Layout = "transfer1") -> str:
    """Name of one of our tensors in the official file of ``layout`` (Transfer1: the merged one)."""
    role, _, rest = name.partition(".")
    official = _translate(rest, _TO_OFFICIAL[layout].get(role, []))
    if official is None:
        raise ValueError(f"{name} has no official name; it is not a tensor of a {layout.title()} network")
    return OFFICIAL_PREFIX[layout][role] + official


def is_carried(role: str, name: str) -> bool:
    """True for tensors that official files hold and no forward pass reads (buffers, counters, heads)."""
    return bool(_CARRIED.fullmatch(name)) or (role == "control" and name.startswith("final_layer."))


def from_diffusers(name: str) -> str | None:
    """Our name of a tensor of diffusers' base network, or None."""
    ours = _translate(name, _FROM_DIFFUSERS)
    return ours and f"base.{ours}"


def to_diffusers(name: str) -> str:
    """diffusers' name of one of our base tensors; it has no network with this control branch."""
    role, _, rest = name.partition(".")
    theirs = _translate(rest, _TO_DIFFUSERS) if role == "base" else None
    if theirs is None:
        raise ValueError(f"{name} has no name in diffusers, which knows the base network only")
    return theirs

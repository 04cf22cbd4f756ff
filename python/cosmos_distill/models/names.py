"""Tensor names of the network in the three formats it is exchanged in. Torch-free.

A row is (ours, Cosmos-Transfer1, diffusers' CosmosTransformer3DModel) for the tensors that base and control
branch share; ``{i}`` stands for a number that is the same in all three.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ATTENTION = [
    (
        f"blocks.{{i}}.{part}.{ours}",
        f"blocks.block{{i}}.blocks.{n}.block.attn.{official}",
        f"transformer_blocks.{{i}}.attn{n + 1}.{diffusers}",
    )
    for n, part in enumerate(("self_attn", "cross_attn"))
    for ours, official, diffusers in [
        *((f"{x}.weight", f"to_{x}.0.weight", f"to_{x}.weight") for x in "qkv"),
        *((f"{x}_norm", f"to_{x}.1.weight", f"norm_{x}.weight") for x in "qk"),
        ("out.weight", "to_out.0.weight", "to_out.0.weight"),
    ]
]

_TRUNK = [
    ("patch_embed.proj.weight", "x_embedder.proj.1.weight", "patch_embed.proj.weight"),
    *(
        (f"time_embed.{x}.weight", f"t_embedder.1.{x}.weight", f"time_embed.t_embedder.{x}.weight")
        for x in ("linear_1", "linear_2")
    ),
    ("time_embed.norm.weight", "affline_norm.weight", "time_embed.norm.weight"),  # sic
    *(
        (f"positions.{x}", f"extra_pos_embedder.pos_emb_{x}", f"learnable_pos_embed.pos_emb_{x}")
        for x in "thw"
    ),
    *_ATTENTION,
    *(
        (f"blocks.{{i}}.mlp.{ours}.weight", f"blocks.block{{i}}.blocks.2.block.{official}.weight",
         f"transformer_blocks.{{i}}.ff.{diffusers}.weight")
        for ours, official, diffusers in (("up", "layer1", "net.0.proj"), ("down", "layer2", "net.2"))
    ),
    *(
        (f"blocks.{{i}}.modulations.{s}.linear_{k}.weight",
         f"blocks.block{{i}}.blocks.{s}.adaLN_modulation.{k}.weight",
         f"transformer_blocks.{{i}}.norm{s + 1}.linear_{k}.weight")
        for s in range(3)
        for k in (1, 2)
    ),
]  # fmt: skip

_FINAL = [
    *(
        (f"final_layer.modulation.linear_{k}.weight", f"final_layer.adaLN_modulation.{k}.weight",
         f"norm_out.linear_{k}.weight")
        for k in (1, 2)
    ),
    ("final_layer.linear.weight", "final_layer.linear.weight", "proj_out.weight"),
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


_BASE_PAIRS = [(row[0], row[1]) for row in [*_TRUNK, *_FINAL]]
_CONTROL_PAIRS = [*((row[0], row[1]) for row in _TRUNK), *_HINT]
_FROM_OFFICIAL = {
    "base": _table((b, a) for a, b in _BASE_PAIRS),
    "control": _table((b, a) for a, b in _CONTROL_PAIRS),
}
_TO_OFFICIAL = {"base": _table(_BASE_PAIRS), "control": _table(_CONTROL_PAIRS)}
_FROM_DIFFUSERS = _table((row[2], row[0]) for row in [*_TRUNK, *_FINAL])
_TO_DIFFUSERS = _table((row[0], row[2]) for row in [*_TRUNK, *_FINAL])

_CARRIED = re.compile(
    r"(?:.*\.)?(?:logvar\..*|pos_embedder\.(?:seq|dim_spatial_range|dim_temporal_range)|accum_\w+|_extra_state)"
)
OFFICIAL_PREFIX = {"base": "base_model.net.", "control": "net."}
"""Prefixes of the merged teacher file, the form we write."""

_PREFIXES = (
    ("net.base_model.net.", "base"),
    ("net.net_ctrl.", "control"),
    ("base_model.net.", "base"),
    ("net_ctrl.", "control"),
)  # the first two: what the official conversion of a distilled checkpoint writes
_CONTROL_MARK = re.compile(r"(?:net\.)?(?:x_embedder2|input_hint_block|zero_blocks)\.")


def split_official(names: list[str]) -> dict[str, tuple[str, str, str]]:
    """(role, unprefixed name, name in a merged file) of every tensor of one official file.

    ``net.`` and no prefix at all mean the base in ``base_model.pt`` and the control branch in a control or
    merged file; the file's other tensors tell which.
    """
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
            split[name] = (*found[name], OFFICIAL_PREFIX[found[name][0]] + found[name][1])
            continue
        rest = name.removeprefix("net.")
        if rest.startswith("base_model."):
            merged = rest
        elif prefixed and rest == name:
            merged = name if control else f"base_model.{name}"
        else:
            merged = OFFICIAL_PREFIX[role] + rest
        split[name] = (role, rest, merged)
    return split


def from_official(role: str, name: str) -> str | None:
    """Our name of an unprefixed official tensor; None if the network has no such tensor."""
    ours = _translate(name, _FROM_OFFICIAL[role])
    return ours and f"{role}.{ours}"


def to_official(name: str) -> str:
    """Merged-file name of one of our tensors."""
    role, _, rest = name.partition(".")
    official = _translate(rest, _TO_OFFICIAL.get(role, []))
    if official is None:
        raise ValueError(f"{name} has no official name; it is not a tensor of a Transfer1 network")
    return OFFICIAL_PREFIX[role] + official


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

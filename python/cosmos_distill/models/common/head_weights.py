"""Official weights of discriminator heads, in and out of our own names.

Transfer1 lists the heads of its blocks as ``cls_pred_heads``; Predict2.5 has ``branches``, ``final_norm``
and ``final_linear``. Both count the blocks from zero, in their order in the network. Transfer1's
``attention`` head keeps running statistics of its BatchNorm, which training never reads: they are left behind
on reading, and written as they are at the start.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from cosmos_distill.models.common.files import State, read, write_safetensors
from cosmos_distill.models.common.heads import Discriminator

PREFIXES = ("net_discriminator_head.", "model.discriminator.", "discriminator.", "")
"""Of the head's tensors in official files; the first two kinds also hold other networks."""
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _both(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.{x}", f"{theirs}.{x}") for x in ("weight", "bias")]


def _convolutions(ours: str, theirs: str) -> list[tuple[str, str]]:
    """Convolution, normalisation and the convolution to a logit."""
    pairs = (("0", "0"), ("1.0", "1"), ("2", "3"))
    return [pair for a, b in pairs for pair in _both(f"{ours}{a}", f"{theirs}.{b}")]


_HEADS: dict[str, list[tuple[str, str]]] = {
    "conv3d": _convolutions("", "net"),
    "conv2d": _convolutions("", "net"),
    "spatial_temporal": [
        *_convolutions("spatial.", "net_spatial"),
        *_convolutions("temporal.", "net_temporal"),
    ],
    "attention": [
        *_both("down.0", "input_proj.0"),
        *_both("down.1.0", "input_proj.1"),
        *_both("norm", "norm"),
        ("attention.in_proj_weight", "attention.in_proj_weight"),
        ("attention.in_proj_bias", "attention.in_proj_bias"),
        *_both("attention.out_proj", "attention.out_proj"),
        *_convolutions("out.", "final"),
    ],
    "query_token": [
        ("query", "cross_attention.query_token"),
        ("norm.weight", "cross_attention.pre_norm_kv.weight"),
        *((f"{x}.weight", f"cross_attention.to_{x}.weight") for x in "qkv"),
        *((f"{x}_norm.weight", f"cross_attention.post_norm_{x}.weight") for x in "qk"),
        *_both("out", "cross_attention.to_out"),
        ("mlp.0.weight", "mlp.norm.weight"),
        *_both("mlp.1", "mlp.fc1"),
        *_both("mlp.3", "mlp.fc2"),
    ],
}
"""Tensors of one block's head: (ours, official)."""
_BATCH_NORMS = ("input_proj.1", "final.1")


def official_names(discriminator: Discriminator) -> dict[str, str]:
    """The official name of every tensor of ``discriminator``, by our own."""
    query = discriminator.head == "query_token"
    names = {
        f"heads.{block}.{ours}": f"{'branches' if query else 'cls_pred_heads'}.{i}.{theirs}"
        for i, block in enumerate(discriminator.blocks)
        for ours, theirs in _HEADS[discriminator.head]
    }
    if query:
        names |= dict([*_both("joint.0", "final_norm"), *_both("joint.1", "final_linear")])
    return names


def to_official(discriminator: Discriminator) -> State:
    """The weights of ``discriminator`` as an official head of the same kind takes them, on the CPU."""
    state = {name: value.detach().cpu() for name, value in discriminator.state_dict().items()}
    official = {
        theirs: state[ours].view(_official_shape(theirs, state[ours])).contiguous()
        for ours, theirs in official_names(discriminator).items()
    }
    if discriminator.head == "attention":
        for norm in (
            f"cls_pred_heads.{i}.{name}" for i in range(len(discriminator.blocks)) for name in _BATCH_NORMS
        ):
            like = official[f"{norm}.weight"]
            fresh = (torch.zeros_like(like), torch.ones_like(like), torch.tensor(0))
            official |= {f"{norm}.{name}": value for name, value in zip(_STATISTICS, fresh, strict=True)}
    return official


def from_official(
    discriminator: Discriminator, state: Mapping[str, torch.Tensor], source: str = "the state"
) -> None:
    """Fill ``discriminator`` with official weights, cast to its dtype. It is untouched if they do not fit.

    Args:
        state: the head's tensors, with or without the prefix of an official file; a file that names the head
            by a prefix may hold other networks, too.
        source: where they come from, for errors.

    Raises:
        ValueError: missing, unexpected, wrongly shaped or non-finite tensors, all listed.
    """
    prefix = next(p for p in PREFIXES if any(name.startswith(p) for name in state) or not p)
    given = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    given = {name: value for name, value in given.items() if not name.endswith(_STATISTICS)}
    ours = {theirs: name for name, theirs in official_names(discriminator).items()}
    own = discriminator.state_dict()
    problems = [f"{name} is missing" for name in sorted(ours.keys() - given.keys())]
    problems += [f"{name} is unexpected" for name in sorted(given.keys() - ours.keys())]
    for name in sorted(ours.keys() & given.keys()):
        shape = _official_shape(name, own[ours[name]])
        if given[name].shape != shape:
            problems.append(f"{name} is {list(given[name].shape)}, not {list(shape)}")
        elif not given[name].isfinite().all():
            problems.append(f"{name} is not finite")
    if problems:
        raise ValueError(
            f"{source} does not fit a {discriminator.head!r} discriminator of blocks {discriminator.blocks}: "
            f"{'; '.join(problems[:20])}{', ...' if len(problems) > 20 else ''}. Use the head, width and "
            "feature blocks that these weights were made with."
        )
    discriminator.load_state_dict(
        {ours[name]: value.view_as(own[ours[name]]) for name, value in given.items()}
    )


def load_official(discriminator: Discriminator, path: str | os.PathLike[str]) -> None:
    """Fill ``discriminator`` from a file of official weights (.safetensors, .pt); see :func:`from_official`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a pickle that asks for code, or weights that do not fit.
    """
    from_official(discriminator, read(Path(path)), str(path))


def save_official(discriminator: Discriminator, path: str | os.PathLike[str]) -> None:
    """Write ``discriminator`` under its official names as safetensors, without a prefix. Rank 0 writes."""
    write_safetensors(to_official(discriminator), Path(path), "cosmos-discriminator")


def _official_shape(name: str, value: torch.Tensor) -> torch.Size:
    return torch.Size((1, 1, *value.shape)) if name.endswith(".query_token") else value.shape

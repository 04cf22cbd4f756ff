"""Weights in eight bits: float8_e4m3 with a scale for every row, of the matrices in blocks.

Only what is stored is small: a network computes with the weights times their scales, in bf16
(:mod:`~cosmos_distill.models.common.forms` reads them). Embeddings, norms, modulations and the final layer
are a small share of a network, and stay in bf16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import parts_of

SCALE = "_scale"
"""What follows the name of a matrix in that of its scales."""
_LARGEST = 448.0
"""Of float8_e4m3fn."""
_SMALLEST_SCALE = 1e-12
_MATRIX = re.compile(r".*\bblocks\.\d+\.(?:self_attn|cross_attn|mlp)\.\w+\.weight")


def is_stored_so(name: str, value: Tensor) -> bool:
    """Whether a tensor of a network, in our names, is one of these matrices."""
    return value.ndim == 2 and _MATRIX.fullmatch(name) is not None


def stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` (our names, whole) as it is written: matrices in eight bits beside their scales, fp32 [rows];
    all else in bf16."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if not is_stored_so(name, value):
            found[name] = value.bfloat16().contiguous()
            continue
        scale = _scales(value.abs().amax(1))
        found[name] = _rounded(value, scale)
        found[name + SCALE] = scale
    return found


@torch.no_grad()
def round_weights(network: nn.Module) -> None:
    """Give a network the weights that it would have from such a file, each rank its own part."""
    parts, group = parts_of(network), groups.tensor_group()
    for name, value in network.named_parameters():
        if not is_stored_so(name, value):
            value.copy_(value.bfloat16())
            continue
        peak = value.abs().amax(1)
        if parts[name].split == 1 and group.size() > 1:  # each rank has some columns of all rows
            dist.all_reduce(peak, dist.ReduceOp.MAX, group=group)
        scale = _scales(peak)
        value.copy_((_rounded(value, scale).float() * scale[:, None]).bfloat16())


def _scales(peak: Tensor) -> Tensor:
    return (peak.float() / _LARGEST).clamp_min(_SMALLEST_SCALE)


def _rounded(value: Tensor, scale: Tensor) -> Tensor:
    return (value.float() / scale[:, None]).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)

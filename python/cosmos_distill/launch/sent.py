"""What a collective sends to other ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cosmos_distill.parallel import groups

_KINDS = ("tensor", "context", "pipeline", "data", "gradient", "tokens", "model", "world")


def sent(func: Any, args: tuple[Any, ...]) -> tuple[str, float]:
    """The ranks that take part, and the bytes that each of them sends in a c10d operation: of an all-reduce
    of n bytes 2 n (r-1)/r, of a gather, a scatter or an exchange (r-1)/r of the whole, of which a rank has
    or gets n; of a message n (Patarasuk & Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).

    Raises:
        ValueError: the operation is unknown.
    """
    group = _group(args)
    ranks = group.size()
    name = func.overloadpacket.__name__.strip("_")
    share = _SHARES.get(name)
    if share is None:
        raise ValueError(f"what {name} sends is not known")
    of, factor = share
    tensors = [leaf for leaf in tree_leaves(args[of]) if isinstance(leaf, Tensor)]
    size = sum(tensor.nbytes for tensor in tensors)
    whole = factor * (1.0 if name in ("send", "recv", "broadcast") else (ranks - 1) / ranks)
    return _kind(group), size * whole


_SHARES = {
    # name: which argument holds the whole (gathered, or to be scattered), how often it is sent
    "allreduce": (0, 2.0),
    "allgather_base": (0, 1.0),
    "allgather": (0, 1.0),
    "reduce_scatter_base": (1, 1.0),
    "alltoall_base": (1, 1.0),
    "broadcast": (0, 1.0),
    "send": (0, 1.0),
    "recv": (0, 0.0),
    "barrier": (0, 0.0),
}


def _group(args: tuple[Any, ...]) -> Any:
    for arg in tree_leaves(args):
        if isinstance(arg, torch.ScriptObject):
            try:
                return torch._C._distributed_c10d.ProcessGroup.unbox(arg)
            except RuntimeError:
                continue  # the operation of a reduction
    raise ValueError("a collective without a group")


def _kind(group: Any) -> str:
    """What the ranks of a group share."""
    for kind in _KINDS:
        if getattr(groups, f"{kind}_group")().group_name == group.group_name:
            return kind
    return "others"

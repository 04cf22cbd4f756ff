"""Which channels a rotary table pairs, told by its numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..library import PLAIN

_seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Tables on the CPU -> the version of their memory when they were looked at, and how they were taken."""
_kinds: set[tuple[object, ...]] = set()
"""Device, shape, dtype and layout of tables elsewhere: to look at numbers there, everything has to wait."""


def check_pairs(cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """The angles of the last token are the same for the channels of a pair, if they are for those of any.

    Tables of a tracer, of a transform or of another type are not looked at, nor are those on a GPU but for
    the first of a shape.

    Raises:
        ValueError: they pair channels in the other way.
    """
    if torch.compiler.is_compiling() or type(cos) not in PLAIN or cos.is_meta or not cos.numel():
        return
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    if cos.device.type == "cpu":
        state = (cos._version, interleaved) if not cos.is_inference() else (0, interleaved)
        if _seen.get(cos) == state:
            return
    else:
        kind = cos.device, cos.shape, cos.dtype, interleaved
        if kind in _kinds or (cos.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
    with torch.no_grad():
        last = [table.detach().flatten(0, -2)[-1] for table in (cos, sin)]
        halves = all(torch.equal(*row.chunk(2)) for row in last)
        neighbours = all(torch.equal(row[0::2], row[1::2]) for row in last)
    if halves == neighbours or neighbours == interleaved:
        if cos.device.type == "cpu":
            _seen[cos] = state
        else:
            _kinds.add(kind)
        return
    pairs, other = ("2i and 2i + 1", "i and i + Dh/2") if interleaved else ("i and i + Dh/2", "2i and 2i + 1")
    raise ValueError(
        f"cos and sin have the same angle for channels {other}, but interleaved={interleaved} turns channels "
        f"{pairs} with each other: pass interleaved={not interleaved}, or tables for that layout"
    )

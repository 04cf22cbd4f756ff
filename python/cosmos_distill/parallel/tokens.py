"""How the tokens of a clip are split over ranks: every frame into as many parts as there are ranks.

Tokens [B, T * h*w, ...] come in (t, h, w) order. Part p of a frame is positions ``p * width ..`` of its h*w,
with ``width = ceil(h*w / parts)`` and zeros behind the last position, so that all parts are equal and every
part has every frame: any number of frames and any frame size can be split, and what differs from frame to
frame (modulation by a frame's own noise level) is applied to a part as to the whole.

The context rank is the slower index of a part, the tensor rank (with sequence parallelism) the faster.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from cosmos_distill.parallel import groups

# Its name up to torch 2.12, where the new one does not exist.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TokenSplit:
    """The split of a grid under the layout in force, and this rank's part of it.

    Args:
        grid: tokens of a clip along (t, h, w).
    """

    def __init__(self, grid: tuple[int, int, int]) -> None:
        self.frames, self.area = grid[0], grid[1] * grid[2]
        self.group = groups.tokens_group()
        self.parts = self.group.size()
        self.part = self.group.rank()
        self.width = -(-self.area // self.parts)
        self.inside = self.parts // groups.context_group().size()
        """Parts that a rank has inside the tensor-parallel linears."""

    def take(self, tokens: Tensor) -> Tensor:
        """This rank's part of [B, T*h*w, ...], which every rank has: [B, T*width, ...]. Backward, the parts'
        gradients are put together again."""
        return _Take.apply(tokens, self) if self.parts > 1 else tokens

    def gather(self, part: Tensor) -> Tensor:
        """The whole [B, T*h*w, ...] on every rank from the parts [B, T*width, ...]. Backward, each rank
        goes on with its own part of a gradient that all have."""
        return _Gather.apply(part, self) if self.parts > 1 else part

    def local(self, values: Tensor) -> Tensor:
        """The part of per-token values [..., T*h*w, D] that go with this rank's tokens: [..., T*width, D].
        Differentiable; what it is made from gets this rank's share of the gradient only."""
        return self._cut(values, self.part)

    def local_inside(self, values: Tensor) -> Tensor:
        """The same for the tokens inside tensor-parallel linears: [..., inside * T*width, D]."""
        if self.inside == 1:
            return self.local(values)
        first = self.part // self.inside * self.inside
        return torch.cat([self._cut(values, p) for p in range(first, first + self.inside)], dim=-2)

    def local_area(self, values: Tensor) -> Tensor:
        """The part of values per position [h*w, D] that this rank has in every frame: [width, D]."""
        return self._columns(values, self.part) if self.parts > 1 else values

    def real(self, context_rank: int, device: torch.device) -> Tensor | None:
        """Which of the tokens inside on a context rank are tokens of the clip and not padding: indices, or
        None where all are."""
        return _real(self.frames, self.area, self.width, context_rank * self.inside, self.inside, str(device))

    def real_of_all(self, device: torch.device) -> Tensor | None:
        """The same for the tokens of all context ranks, one after the other."""
        return _real(self.frames, self.area, self.width, 0, self.parts, str(device))

    def _cut(self, values: Tensor, part: int) -> Tensor:
        if self.parts == 1:
            return values
        framed = values.unflatten(-2, (self.frames, self.area))
        return self._columns(framed, part).flatten(-3, -2)

    def _columns(self, values: Tensor, part: int) -> Tensor:
        first = min(part * self.width, self.area)
        own = values.narrow(-2, first, min(self.width, self.area - first))
        missing = self.width - own.shape[-2]
        return F.pad(own, (0, 0, 0, missing)) if missing else own

    def own_part(self, tokens: Tensor) -> Tensor:
        """:meth:`take` without a gradient of its own."""
        flat = tokens.flatten(2) if tokens.ndim > 3 else tokens
        return self._cut(flat, self.part).contiguous().unflatten(-1, tokens.shape[2:])

    def whole(self, part: Tensor) -> Tensor:
        """:meth:`gather` without a gradient of its own."""
        part = part.contiguous()
        parts = part.new_empty(self.parts, *part.shape)
        _all_gather(parts.flatten(0, 1), part, group=self.group)
        # [parts, B, T, width, ...] -> [B, T, parts * width, ...]
        framed = parts.unflatten(2, (self.frames, self.width)).movedim(0, 2).flatten(2, 3)
        return framed[:, :, : self.area].flatten(1, 2)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, split: TokenSplit) -> Tensor:
        ctx.split = split
        return split.own_part(tokens)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.split.whole(grad), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, split: TokenSplit) -> Tensor:
        ctx.split = split
        return split.whole(part)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.split.own_part(grad), None


@lru_cache(maxsize=64)
def _real(frames: int, area: int, width: int, first: int, count: int, device: str) -> Tensor | None:
    """Indices of real tokens in parts first .. first+count-1, each [T, width], one after the other."""
    if (first + count) * width <= area:
        return None
    positions = torch.arange(count * width).view(count, 1, width) + first * width
    real = (positions < area).expand(count, frames, width).reshape(-1)
    return real.nonzero()[:, 0].to(device)

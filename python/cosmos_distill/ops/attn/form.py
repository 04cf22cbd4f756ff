"""Which keys a query attends to, and how its scores are bent: what :func:`cosmos_distill.ops.attention` takes
beside q, k and v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import beside, flag, number

Window = int | tuple[int | None, int | None] | None
Lengths = Tensor | tuple[Tensor, Tensor] | None
_COUNTS = (torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Form:
    """As checked; queries and keys are aligned at their ends, those of each packed sequence by itself."""

    mask: Tensor | None = None
    """Broadcast to [B, H, Sq, Sk]: bool, True where a query attends to a key, or what is added to scores."""
    left: int | None = None
    """Keys before a query that it attends to at most, None for all."""
    right: int | None = None
    """Keys behind it."""
    softcap: float | None = None
    packed: tuple[Tensor, Tensor] | None = None
    """Where packed sequences start and the last ends, of queries and of keys."""

    @property
    def plain(self) -> bool:
        """Every query attends to every key, and nothing bends its scores."""
        return not self.banded and self.mask is None and self.softcap is None and self.packed is None

    @property
    def banded(self) -> bool:
        return self.left is not None or self.right is not None

    @property
    def wanted(self) -> tuple[str, ...]:
        """What a backend has to have, in words."""
        found = []
        if self.mask is not None:
            learned = torch.is_grad_enabled() and self.mask.requires_grad
            found.append("gradient of a mask" if learned else "mask")
        if self.right == 0:
            found.append("causal mask")
        if self.left is not None or self.right:
            found.append("window")
        if self.softcap is not None:
            found.append("soft cap")
        if self.packed is not None:
            found.append("packed sequences")
        return tuple(found)

    def allowed(
        self, first: int, queries: int, all_queries: int, keys: int, device: torch.device
    ) -> Tensor | None:
        """bool [queries, keys], the queries those from ``first`` on; None where all attend to all."""
        if not self.banded and self.packed is None:
            return None
        q = torch.arange(first, first + queries, device=device)
        k = torch.arange(keys, device=device)
        q_end, k_end = torch.tensor(all_queries, device=device), torch.tensor(keys, device=device)
        together: Tensor | None = None
        if self.packed is not None:
            starts_q, starts_k = (starts.to(device, torch.int64) for starts in self.packed)
            of_q = torch.searchsorted(starts_q, q, right=True)
            of_k = torch.searchsorted(starts_k, k, right=True)
            together = of_q[:, None] == of_k[None, :]
            # The ends of each one's sequence; what lies behind the last ends with the tensor.
            q_end = torch.cat([starts_q, q_end[None]])[of_q]
            k_end = torch.cat([starts_k, k_end[None]])[of_k]
        ahead = (k - k_end)[None, :] - (q - q_end)[:, None]
        for inside in (
            None if self.left is None else ahead >= -self.left,
            None if self.right is None else ahead <= self.right,
        ):
            if inside is not None:
                together = inside if together is None else together & inside
        return together

    def of(self, queries: slice) -> Tensor | None:
        """The mask of some queries."""
        if self.mask is None or self.mask.dim() < 2 or self.mask.shape[-2] == 1:
            return self.mask
        return self.mask[..., queries, :]


PLAIN = Form()


def checked(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None,
    causal: bool,
    window: Window,
    softcap: float | None,
    cu_seqlens: Lengths,
) -> Form:
    """What was asked for.

    Raises:
        ValueError: an argument is none of what it may be, or contradicts another; the message names it.
    """
    flag("causal", causal)
    left, right = _window(window)
    if causal:
        right = 0 if right is None else min(right, 0)
    if softcap is not None:
        number("softcap", softcap)
        if softcap <= 0:
            raise ValueError(f"softcap must be above 0, not {softcap}: leave it out for none")
    if mask is not None:
        _check_mask(mask, q, k)
    packed = None if cu_seqlens is None else _packed(cu_seqlens, q, k)
    if packed is not None and mask is not None:
        raise ValueError("mask and cu_seqlens together are not served: let one of the two say both")
    return Form(mask, left, right, softcap, packed)


def _window(window: Window) -> tuple[int | None, int | None]:
    if window is None:
        return None, None
    sides: Sequence[int | None] = (window, window) if isinstance(window, int) else window
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise ValueError(f"window must be a number of keys, (before, behind) or None, not {window!r}")
    for side in sides:
        if side is not None and (isinstance(side, bool) or not isinstance(side, int)):
            raise ValueError(f"window must be of whole numbers or None, not {window!r}")
        if side is not None and side < 0:
            raise ValueError(f"window must be at least 0 on each side, None for no limit, not {window!r}")
    return sides[0], sides[1]


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    whole = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a tensor of torch.bool (True: attend) or floating-point, not {kind}")
    beside("mask", mask, "q", q)
    sizes = zip(reversed(mask.shape), reversed(whole), strict=False)
    if not 2 <= mask.dim() <= 4 or not all(n in (1, most) for n, most in sizes):
        raise ValueError(f"mask must broadcast to [B, H, Sq, Sk] {list(whole)}, not {list(mask.shape)}")


def _packed(cu_seqlens: object, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    both: tuple[Any, ...] = cu_seqlens if isinstance(cu_seqlens, tuple) else (cu_seqlens, cu_seqlens)
    if len(both) != 2:
        raise ValueError(f"cu_seqlens must be one tensor or those of queries and of keys, not {len(both)}")
    for x, of, starts in ((q, "q", both[0]), (k, "k", both[1])):
        if not isinstance(starts, Tensor) or starts.dtype not in _COUNTS or starts.dim() != 1:
            is_tensor = isinstance(starts, Tensor)
            shown = f"{starts.dtype} {list(starts.shape)}" if is_tensor else type(starts).__name__
            raise ValueError(f"cu_seqlens must be int32 or int64 [sequences + 1], not {shown}")
        beside("cu_seqlens", starts, of, x)
    if q.shape[0] != 1:
        raise ValueError(f"cu_seqlens must be of sequences packed in a batch of 1, but q has {q.shape[0]}")
    first, second = both
    for x, of, starts in ((q, "q", first), (k, "k", second)):
        _check_starts(starts, of, x)
    if first.shape != second.shape:
        raise ValueError(f"cu_seqlens has {len(first)} numbers for q and {len(second)} for k: as many each")
    return first, second


def _check_starts(starts: Tensor, of: str, x: Tensor) -> None:
    """On the CPU, and not while tracing: elsewhere everything would have to wait."""
    if starts.device.type != "cpu" or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return
    found = starts.tolist()
    rising = all(a <= b for a, b in pairwise(found))
    if not found or found[0] != 0 or found[-1] != x.shape[1] or not rising:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the length of {of}, {x.shape[1]}, not {found[:8]}"
            f"{' ...' if len(found) > 8 else ''}"
        )

"""From the host's memory to a device, without waiting: the one way for what a step needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sent(value: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """``value`` on ``device``; from the host to an accelerator by page-locked memory, in the order of the
    current stream. A plain copy would have the host wait for all that is queued there.

    Its page-locked copy is torch's to keep: it is not used again before the accelerator has read it.
    """
    import torch

    where = torch.device(device)
    if where.type != "cuda" or value.device.type != "cpu":
        return value.to(where)
    return value.pin_memory().to(where, non_blocking=True)

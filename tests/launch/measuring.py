"""What a step that computes holds, by two independent ways: every operation's results, and autograd's own
word of what it saves."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_distill.data.batch import Batch
from cosmos_distill.launch.cost import FixedSteps, taken_away
from cosmos_distill.launch.live import Live
from cosmos_distill.methods.base import Method


class Watching(TorchDispatchMode):
    """Inside the block ``live`` sees what every operation makes."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.live.see(out)
        return out


@dataclass(frozen=True)
class Held:
    """Bytes."""

    saved: int
    """That autograd says it saves, parameters and the batch left out."""
    kept: int
    """Alive between forward and backward pass, beside parameters and the batch."""
    peak: int
    """Alive at the moment of most, beside parameters."""


def held(method: Method, batch: Batch, step: int, n: int = 1) -> Held:
    """One step of a micro-batch on real tensors."""
    live, saved = Live(), Live()
    inputs = list(batch.tensors().values())
    given = [p for network in method.roles.values() for p in (*network.parameters(), *network.buffers())]
    live.leave_out(given)
    saved.leave_out([*given, *inputs])
    live.see(inputs)
    start = live.now

    def pack(tensor: Tensor) -> Tensor:
        saved.see(tensor)
        return tensor.detach()  # an output with its graph would keep itself alive

    method.enable_gradients(method.phase(step))
    with ExitStack() as stack:
        for network in method.roles.values():
            for handle in taken_away(network, live):
                stack.callback(handle.remove)
        stack.enter_context(Watching(live))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = method.losses(batch, step, FixedSteps(n, len(batch.latents)))
        said, kept = saved.now, live.now - start
        losses["total"].sum().backward()
    return Held(said, kept, live.peak)

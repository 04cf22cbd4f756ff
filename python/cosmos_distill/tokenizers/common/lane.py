"""Where a tokenizer on an accelerator works: on its own device, whichever is current in the calling thread,
and there in a stream of its own, behind the work that its caller has queued."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from cosmos_distill.tokenizers import Tokenizer


class OnLane:
    """A tokenizer whose work is queued in a stream of its own; what it returns is ready for the caller's.

    Args:
        tokenizer: On ``device``.
        device: An accelerator, by its index.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"{device} has no index, and is another device in another thread")
        self._tokenizer = tokenizer
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """As the tokenizer does."""
        return self._queued(self._tokenizer.encode, video)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """As the tokenizer does."""
        return self._queued(self._tokenizer.decode, latents)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """As the tokenizer says."""
        return self._tokenizer.latent_shape(frames, height, width)

    def _queued(self, work: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> torch.Tensor:
        with torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)  # which may still be making what is given
            with torch.cuda.stream(self._stream):
                made = work(given)
            caller.wait_stream(self._stream)
            # The allocator gives memory back to the stream it was asked for in, and has to know of the other.
            for tensor, stream in ((given, self._stream), (made, caller)):
                if tensor.is_cuda:
                    tensor.record_stream(stream)
        return made

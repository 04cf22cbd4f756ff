"""The one thing that passes between data and training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch


@dataclass
class Batch:
    """B samples, encoded. Every tensor is fp32 unless stated.

    A latent is ``tokenizer(video) * sigma_data``, so its standard deviation is about sigma_data.
    """

    first: int
    """Global index of the first sample: samples first .. first+B-1 of the endless, seeded stream."""
    latents: torch.Tensor
    """Clip (real, or the teacher's in pairs), [B, C, T, H, W]."""
    hint: torch.Tensor | None
    """Control video through the same tokenizer, [B, C, T, H, W]; None where there is no control."""
    text: torch.Tensor
    """Prompt embedding, [B, tokens, channels]."""
    negative_text: torch.Tensor
    """Embedding of the unconditional branch, [B, tokens, channels]."""
    fps: torch.Tensor
    """Frames per second of the decoded video, [B]."""
    padding_mask: torch.Tensor
    """1 where the latent is padding, [B, 1, H, W]."""
    noise: torch.Tensor | None = None
    """Unit Gaussian noise the teacher started from, [B, C, T, H, W]; pairs only."""
    names: tuple[str, ...] = ()
    """Where each sample comes from, for error messages and the report."""

    def __len__(self) -> int:
        return self.latents.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **moved)

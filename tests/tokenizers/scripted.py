"""Tiny stand-ins of the Cosmos tokenizer's published TorchScript files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


class Encoder(nn.Module):
    """Every eighth frame and pixel, repeated to 16 channels; a tuple, as the published encoder gives."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = x[:, :1, ::8, ::8, ::8].repeat(1, 16, 1, 1, 1)
        return z, z


class Decoder(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = z[:, :1].repeat(1, 3, 1, 1, 1)
        x = x.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.cat([x[:, :, :1], x[:, :, 1:].repeat_interleave(8, 2)], dim=2)


def write(folder: Path, encoder: nn.Module | None = None) -> Path:
    """The three files, with ``encoder`` in place of the harmless one."""
    folder.mkdir(exist_ok=True)
    torch.jit.script(encoder or Encoder()).save(str(folder / "encoder.jit"))
    torch.jit.script(Decoder()).save(str(folder / "decoder.jit"))
    rows = torch.arange(16 * 20).reshape(16, 20).float()  # the published file has more frames than a chunk
    torch.save((rows / 100, 1 + rows / 50), folder / "mean_std.pt")
    return folder

"""Tiny stand-ins of the published tokenizers: CV8x8x8's TorchScript files, Wan 2.1's VAE in both
its forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def cosmos(folder: Path, encoder: nn.Module | None = None) -> Path:
    """The three files, with ``encoder`` in place of the harmless one."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.jit.script(encoder or Encoder()).save(str(folder / "encoder.jit"))
    torch.jit.script(Decoder()).save(str(folder / "decoder.jit"))
    rows = torch.arange(16 * 20).reshape(16, 20).float()  # the published file has more frames than a chunk
    torch.save((rows / 100, 1 + rows / 50), folder / "mean_std.pt")
    return folder


_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6",
             "conv_shortcut": "shortcut"}  # fmt: skip
_WHOLE = {
    "quant_conv": "conv1", "post_quant_conv": "conv2", "encoder.conv_in": "encoder.conv1",
    "decoder.conv_in": "decoder.conv1", "encoder.norm_out": "encoder.head.0",
    "decoder.norm_out": "decoder.head.0", "encoder.conv_out": "encoder.head.2",
    "decoder.conv_out": "decoder.head.2",
}  # fmt: skip


def official_name(name: str) -> str:
    """What Wan's own code calls a tensor of diffusers' AutoencoderKLWan."""
    module, _, leaf = name.rpartition(".")
    if module in _WHOLE:
        return f"{_WHOLE[module]}.{leaf}"
    side, place, *rest = name.split(".")
    if place == "mid_block":
        kind, number, *inner = rest
        inner = [_RESIDUAL.get(part, part) for part in inner]
        return ".".join([side, "middle", "1" if kind == "attentions" else str(2 * int(number)), *inner])
    if place == "down_blocks":
        return ".".join([side, "downsamples", *(_RESIDUAL.get(part, part) for part in rest)])
    block, kind, number, *inner = rest
    index = 4 * int(block) + (3 if kind == "upsamplers" else int(number))
    return ".".join([side, "upsamples", str(index), *(_RESIDUAL.get(part, part) for part in inner)])


def wan(file: Path | None, folder: Path | None, seed: int = 0) -> Any:
    """Wan 2.1's VAE, two channels wide where the published one has 96: as the official ``file``, and as the
    ``folder`` of a diffusers model. Returns diffusers' model."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    vae = AutoencoderKLWan(base_dim=2)
    if folder is not None:
        vae.save_pretrained(folder)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({official_name(name): value for name, value in vae.state_dict().items()}, file)
    return vae

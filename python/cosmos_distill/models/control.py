"""The control branch (ControlNet) and the network made of base and branch.

The branch copies the first blocks of the base, reads the hint once, and hands one residual per block
to the base through zero-initialised linears, so that an untrained branch changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from cosmos_distill.models.dit import PatchEmbed, Recompute, Trunk, VideoDiT, linear
from cosmos_distill.models.presets import NetworkConfig


class HintEncoder(nn.Sequential):
    """SiLU MLP over each hint token, ending in a zero-initialised linear: [B, N, D] -> [B, N, D]."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((config.width, *config.hint_widths)):
            layers += [linear(a, b, dtype, bias=True), nn.SiLU()]
        layers.append(linear(config.hint_widths[-1], config.width, dtype, bias=True))
        super().__init__(*layers)


class ControlBranch(Trunk):
    """Noisy latent and hint -> residuals for the first blocks of the base."""

    def __init__(self, config: NetworkConfig, *, dtype: torch.dtype) -> None:
        super().__init__(
            config,
            blocks=config.control_blocks,
            channels=config.latent_channels + 2,
            rope_ratio_t=config.control_rope_ratio_t,
            dtype=dtype,
        )
        self.hint_embed = PatchEmbed(config.hint_channels + 1, config, dtype)  # + padding mask
        self.hint_encoder = HintEncoder(config, dtype)
        self.zero_blocks = nn.ModuleList(
            linear(config.width, config.width, dtype, bias=True) for _ in range(config.control_blocks)
        )

    def forward(
        self,
        x: torch.Tensor,
        c_noise: torch.Tensor,
        text: torch.Tensor,
        hint: torch.Tensor,
        padding_mask: torch.Tensor,
        *,
        fps: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """x [B, C+2, T, H, W], hint [B, C, T, H, W], padding_mask [B, 1, T, H, W] -> residuals [B, N, D]."""
        missing = self.config.hint_channels - hint.shape[1]
        if missing < 0:
            raise ValueError(
                f"hint has {hint.shape[1]} channels, the network takes {self.config.hint_channels}"
            )
        hint = F.pad(hint, (0, 0, 0, 0, 0, 0, 0, missing))
        guide = self.hint_encoder(self.hint_embed(torch.cat([hint, padding_mask], dim=1)))
        h, (positions, activated, shared), (cos, sin) = self.embed(x, c_noise, fps)
        residuals = []
        for i, zero in enumerate(self.zero_blocks):
            h = self.run_block(i, h, positions, activated, shared, text, cos, sin)
            if i == 0:
                h = h + guide
            residuals.append(zero(h))
        return residuals


class ControlledDiT(nn.Module):
    """Base network and, if the configuration has one, control branch, trained together: what student,
    teacher and fake score are."""

    def __init__(self, config: NetworkConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.base = VideoDiT(config, dtype=dtype)
        self.control = ControlBranch(config, dtype=dtype) if config.control_blocks else None
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let gradients reach every weight but the text projection, which stays frozen in all roles."""
        super().requires_grad_(requires_grad)
        if self.base.text_projection is not None:
            self.base.text_projection.requires_grad_(False)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.base.final_layer.linear.weight.dtype

    @property
    def activation_checkpointing(self) -> Recompute:
        """What the backward pass computes again instead of finding it stored: nothing, the inside of every
        block (``full``), or that without its attention (``selective``)."""
        return self.base.activation_checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, what: Recompute) -> None:
        self.base.activation_checkpointing = what
        if self.control is not None:
            self.control.activation_checkpointing = what

    def forward(
        self,
        x: torch.Tensor,
        c_noise: torch.Tensor,
        text: torch.Tensor,
        *,
        hint: torch.Tensor | None = None,
        condition_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        control_weight: float | torch.Tensor = 1.0,
        features: Sequence[int] = (),
        features_only: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor | None, dict[int, torch.Tensor]]:
        """Network output F for an input already scaled by c_in.

        Args:
            x: latent, [B, C, T, H, W].
            c_noise: noise level as the schedule encodes it, [B], or [B, T] per latent frame.
            text: prompt embedding, [B, L, text_channels].
            hint: control latent, [B, C', T, H, W] with C' <= hint_channels; None runs the base alone.
            condition_mask: 1 on clean leading frames, [B, 1, T, H, W]; default zeros.
            padding_mask: 1 on padding, [B, 1, H, W]; default zeros.
            fps: frames per second of the decoded video, [B]; default 24. Without meaning, and not read, in a
                network without fps modulation.
            control_weight: scales the residuals; a number or a map [B, T, H/p, W/p].
            features: base blocks whose output is returned as well.
            features_only: stop after the last of them; F is then None.

        Returns:
            F [B, C, T, H, W], or (F, {block: [B, T, H/p, W/p, D]}) when features are asked for.
        """
        if x.ndim != 5 or x.shape[1] != self.config.latent_channels:
            raise ValueError(f"x must be [B, {self.config.latent_channels}, T, H, W], not {tuple(x.shape)}")
        if features_only and not features:
            raise ValueError("features_only needs at least one block in features")
        b, _, t, h, w = x.shape
        condition = x.new_zeros(b, 1, t, h, w) if condition_mask is None else condition_mask.to(x.dtype)
        padding = x.new_zeros(b, 1, h, w) if padding_mask is None else padding_mask.to(x.dtype)
        padding = padding[:, :, None].expand(b, 1, t, h, w)
        x = torch.cat([x, condition, padding], dim=1)
        residuals: list[torch.Tensor] = []
        if hint is not None:
            if self.control is None:
                raise ValueError("this network has no control branch: leave the hint out")
            weight = (
                control_weight.flatten(1)[..., None]
                if isinstance(control_weight, torch.Tensor)
                else control_weight
            )
            residuals = [r * weight for r in self.control(x, c_noise, text, hint, padding, fps=fps)]
        out, found = self.base(
            x, c_noise, text, fps=fps, residuals=residuals, features=features, features_only=features_only
        )
        if features:
            return out, found
        assert out is not None
        return out

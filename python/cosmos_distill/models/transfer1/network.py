"""Transfer1's control branch (ControlNet) and the network made of base and branch, or branches.

The branch copies the first blocks of the base, reads the hint once, and hands one residual per block
to the base through zero-initialised linears, so that an untrained branch changes nothing. What several
branches make, each of its own control and with its own embeddings, is multiplied by their weights and added,
as the published inference does with the networks of one control each.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F

from cosmos_distill.models.common.blocks import linear
from cosmos_distill.models.common.branches import Branches, hints_of, weight_of_each
from cosmos_distill.models.common.dit import Context, PatchEmbed, Residuals, Steering, Trunk
from cosmos_distill.models.common.network import ControlledDiT, Inputs
from cosmos_distill.models.transfer1.config import Transfer1Config


class HintEncoder(nn.Sequential):
    """SiLU MLP over each hint token, ending in a zero-initialised linear: [B, N, D] -> [B, N, D]."""

    def __init__(self, config: Transfer1Config, dtype: torch.dtype) -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((config.width, *config.hint_widths)):
            layers += [linear(a, b, dtype, bias=True), nn.SiLU()]
        layers.append(linear(config.hint_widths[-1], config.width, dtype, bias=True))
        super().__init__(*layers)


class ControlBranch(Trunk):
    """Noisy latent and hint -> residuals for the first blocks of the base."""

    config: Transfer1Config

    def __init__(self, config: Transfer1Config, *, dtype: torch.dtype) -> None:
        super().__init__(
            config,
            blocks=range(config.control_blocks),
            first=True,
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
        weight: float | torch.Tensor = 1.0,
    ) -> list[torch.Tensor]:
        """x [B, C+2, T, H, W], hint [B, C, T, H, W], padding_mask [B, 1, T, H, W] -> residuals [B, N, D],
        times ``weight``, a number or [B, 1 or T * H/p * W/p, 1]."""
        missing = self.config.hint_channels - hint.shape[1]
        if missing < 0:
            raise ValueError(
                f"hint has {hint.shape[1]} channels, the network takes {self.config.hint_channels}"
            )
        assert self.patch_embed is not None
        activated, shared = self.times(c_noise, x)
        places = self.places(x, fps)
        context = Context(text, activated, shared, places)
        hint = F.pad(hint, (0, 0, 0, 0, 0, 0, 0, missing))
        guide = self.hint_encoder(self.hint_embed(torch.cat([hint, padding_mask], dim=1), places.split))
        h = self.patch_embed(x, places.split)
        if isinstance(weight, torch.Tensor) and weight.shape[1] > 1:
            weight = places.split.local(weight)
        residuals = []
        for i, zero in enumerate(self.zero_blocks):
            h = self.run_block(i, h, context)
            if i == 0:
                h = h + guide
            residuals.append(zero(h) * weight)
        return residuals


class Transfer1(ControlledDiT):
    """Base network and, if the configuration has some, control branches, trained together. The branches are
    part of the first run of blocks. The hint of several holds the latents of the controls one after the other
    along the channels, [B, branches * C, T, H, W]."""

    config: Transfer1Config
    control: ControlBranch | Branches | None

    def make_control(self, dtype: torch.dtype) -> ControlBranch | Branches | None:
        """The branches, on the rank that has the first blocks; one by itself."""
        config = self.config
        if not config.control_blocks or 0 not in self.runs:
            return None
        if config.branches == 1:
            return ControlBranch(config, dtype=dtype)
        return Branches(ControlBranch(config, dtype=dtype) for _ in range(config.branches))

    def starts_at_zero(self, name: str) -> bool:
        """The residuals' projections, and the last layer of the hint's encoder."""
        last = f".hint_encoder.{len(self.config.hint_widths) * 2}."
        return ".zero_blocks." in name or (name.startswith("control.") and last in name)

    def control_weight(self, weight: float | torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
        """Of several by branch; see :func:`cosmos_distill.models.common.branches.weight_of_each`."""
        if self.config.branches == 1:
            return super().control_weight(weight, x)
        return weight_of_each(weight, x, self.config.branches)

    def steering(self, number: int, inputs: Inputs) -> Steering | None:
        """The branches' residuals for the first run, added."""
        if number or inputs.hint is None:
            return None
        assert self.control is not None
        if isinstance(self.control, ControlBranch):
            return Residuals(self._residuals(self.control, inputs, inputs.hint, inputs.weight))
        hints = hints_of(inputs.hint, self.config.branches, self.config.hint_channels)
        total: list[torch.Tensor] = []
        for n, branch in enumerate(self.control.branches):
            weight = inputs.weight[:, n] if isinstance(inputs.weight, torch.Tensor) else inputs.weight
            found = self._residuals(branch, inputs, hints[n], weight)
            total = [a + b for a, b in zip(total, found, strict=True)] if total else found
        return Residuals(total)

    def _residuals(
        self, branch: nn.Module, inputs: Inputs, hint: torch.Tensor, weight: float | torch.Tensor
    ) -> list[torch.Tensor]:
        found: list[torch.Tensor] = branch(
            inputs.x, inputs.c_noise, inputs.text, hint, inputs.padding, fps=inputs.fps, weight=weight
        )
        return found

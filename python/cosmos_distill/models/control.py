"""The control branch (ControlNet) and the network made of base and branch.

The branch copies the first blocks of the base, reads the hint once, and hands one residual per block
to the base through zero-initialised linears, so that an untrained branch changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from cosmos_distill.models.blocks import linear
from cosmos_distill.models.dit import PatchEmbed, Recompute, Trunk, VideoDiT
from cosmos_distill.models.presets import NetworkConfig
from cosmos_distill.parallel import groups, pipeline
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear
from cosmos_distill.parallel.parts import Part
from cosmos_distill.parallel.tokens import TokenSplit


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
        times ``weight``, a number or [B, T * H/p * W/p, 1]."""
        missing = self.config.hint_channels - hint.shape[1]
        if missing < 0:
            raise ValueError(
                f"hint has {hint.shape[1]} channels, the network takes {self.config.hint_channels}"
            )
        assert self.patch_embed is not None
        activated, shared = self.times(c_noise, x)
        places = self.places(x, fps)
        hint = F.pad(hint, (0, 0, 0, 0, 0, 0, 0, missing))
        guide = self.hint_encoder(self.hint_embed(torch.cat([hint, padding_mask], dim=1), places.split))
        h = self.patch_embed(x, places.split)
        if isinstance(weight, torch.Tensor):
            weight = places.split.local(weight)
        residuals = []
        for i, zero in enumerate(self.zero_blocks):
            h = self.run_block(i, h, text, activated, shared, places)
            if i == 0:
                h = h + guide
            residuals.append(zero(h) * weight)
        return residuals


@dataclass(frozen=True)
class Inputs:
    """What a network computes from, checked and completed; the batch is the first dimension of all."""

    x: torch.Tensor
    """Latent with condition and padding mask, [B, C+2, T, H, W]."""
    c_noise: torch.Tensor
    text: torch.Tensor
    hint: torch.Tensor | None
    padding: torch.Tensor
    """[B, 1, T, H, W]"""
    fps: torch.Tensor | None
    weight: float | torch.Tensor
    """Of the control, a number or [B, T * H/p * W/p, 1]."""

    def with_x(self, x: torch.Tensor) -> Inputs:
        """The same with another latent."""
        return replace(self, x=x)

    def pick(self, samples: torch.Tensor) -> Inputs:
        """Samples by index."""
        tensors = {name: v[samples] for name, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **tensors)

    def cut(self, size: int) -> list[Inputs]:
        """Micro-batches of ``size`` samples."""
        parts = {name: v.split(size) for name, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return [
            replace(self, **{name: part[i] for name, part in parts.items()})
            for i in range(len(self.x) // size)
        ]


class ControlledDiT(nn.Module):
    """Base network and, if the configuration has one, control branch, trained together: what student,
    teacher and fake score are. Under a pipeline, this rank's runs of blocks."""

    def __init__(self, config: NetworkConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.micro_batch = 1
        """Samples that go through a pipeline together."""
        self.runs = pipeline.own_runs(config.blocks, config.control_blocks)
        self.base = VideoDiT(config, list(self.runs.values()), dtype=dtype)
        control = config.control_blocks and 0 in self.runs
        self.control = ControlBranch(config, dtype=dtype) if control else None
        self.requires_grad_()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let gradients reach every weight but the text projection, which stays frozen in all roles."""
        super().requires_grad_(requires_grad)
        if self.base.text_projection is not None:  # FSDP's tensors in its place know nothing of that
            self.base.text_projection.requires_grad_(False)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.base.time_embed.linear_1.weight.dtype

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

    def parts(self) -> dict[str, Part]:
        """What this rank's tensors are of the whole network's."""
        layout = groups.layout()
        cut = {
            f"{name}.weight": 0 if isinstance(module, ColumnLinear) else 1
            for name, module in self.named_modules()
            if isinstance(module, ColumnLinear | RowLinear)
        }
        everywhere = ("base.time_embed.", "base.positions.", "base.text_projection.")
        return {
            name: Part(
                split=cut.get(name),
                one_stage=not name.startswith(everywhere),
                sum_tensor=layout.tensor > 1
                and name not in cut
                and (layout.sequence or name.endswith(("q_norm", "k_norm"))),
                sum_pipeline=layout.pipeline > 1 and name.startswith(everywhere),
            )
            for name, _ in self.named_parameters()
        }

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

        All arguments and results are whole on every rank of the model group, whatever the layout.

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
        if any(not 0 <= i < self.config.blocks for i in features):
            raise ValueError(f"features {tuple(features)}: blocks are numbered 0..{self.config.blocks - 1}")
        if hint is not None and not self.config.control_blocks:
            raise ValueError("this network has no control branch: leave the hint out")
        b, _, t, h, w = x.shape
        condition = x.new_zeros(b, 1, t, h, w) if condition_mask is None else condition_mask.to(x.dtype)
        padding = x.new_zeros(b, 1, h, w) if padding_mask is None else padding_mask.to(x.dtype)
        padding = padding[:, :, None].expand(b, 1, t, h, w)
        if isinstance(control_weight, torch.Tensor):
            control_weight = control_weight.to(x.dtype).flatten(1)[..., None]
        inputs = Inputs(
            torch.cat([x, condition, padding], dim=1), c_noise, text, hint, padding, fps, control_weight
        )
        piped = groups.layout().pipeline > 1
        out, found = (
            pipeline.call(self, inputs, tuple(features), features_only)
            if piped
            else self.run(0, None, inputs, features, features_only)
        )
        return (None if features_only else out, found) if features else out

    def tokens(self, x: torch.Tensor) -> int:
        """Tokens of a sample that this rank has outside the tensor-parallel linears."""
        split = TokenSplit(self.base.grid(x))
        return split.frames * split.width

    def output(self, x: torch.Tensor) -> tuple[int, ...]:
        """Shape of F."""
        return (x.shape[0], self.config.latent_channels, *x.shape[2:])

    def feature(self, x: torch.Tensor) -> tuple[int, ...]:
        """Shape of a block's feature."""
        return (x.shape[0], *self.base.grid(x), self.config.width)

    def run(
        self,
        number: int,
        h: torch.Tensor | None,
        inputs: Inputs,
        features: Sequence[int],
        features_only: bool,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Run ``number`` of the blocks; see :meth:`VideoDiT.forward`. The first contains the control."""
        residuals: list[torch.Tensor] = []
        if number == 0 and inputs.hint is not None:
            assert self.control is not None
            residuals = self.control(
                inputs.x,
                inputs.c_noise,
                inputs.text,
                inputs.hint,
                inputs.padding,
                fps=inputs.fps,
                weight=inputs.weight,
            )
        return self.base(
            inputs.x,
            inputs.c_noise,
            inputs.text,
            fps=inputs.fps,
            residuals=residuals,
            features=features,
            features_only=features_only,
            run=self.runs[number],
            h=h,
        )

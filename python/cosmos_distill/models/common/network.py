"""The network of all families: a base, and where the family has one, a control branch that steers it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.common.dit import Recompute, Steering, VideoDiT
from cosmos_distill.parallel import groups, pipeline
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear
from cosmos_distill.parallel.parts import Part
from cosmos_distill.parallel.tokens import TokenSplit

if TYPE_CHECKING:
    from cosmos_distill.diffusion import Given
    from cosmos_distill.families import Family


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
    """Of the control, a number or [B, 1 or T * H/p * W/p, 1]."""

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
    """Base network and, in a family that has one, control branch, trained together: what student, teacher and
    fake score are. Under a pipeline, this rank's runs of blocks."""

    def __init__(self, config: DiTConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.micro_batch = 1
        """Samples that go through a pipeline together."""
        self.runs = pipeline.own_runs(config.blocks, config.leading_blocks)
        self.base = VideoDiT(config, list(self.runs.values()), dtype=dtype)
        self.control: nn.Module | None = self.make_control(dtype)
        self.requires_grad_()

    def make_control(self, dtype: torch.dtype) -> nn.Module | None:
        """The control branch, or this rank's part of it; None: there is none."""
        return None

    def steering(self, number: int, inputs: Inputs) -> Steering | None:
        """What the control branch does in run ``number`` of the blocks."""
        return None

    def starts_at_zero(self, name: str) -> bool:
        """Whether a weight of the control branch is zero at first, so that an untrained one changes
        nothing."""
        return False

    @property
    def family(self) -> Family:
        """Whose network it is."""
        return self.config.family

    def give_frames(
        self, schedule: Any, mask: torch.Tensor, clean: torch.Tensor, times: torch.Tensor
    ) -> Given:
        """Show leading frames as the family does; see :class:`cosmos_distill.families.Family`."""
        assert self.family.give_frames is not None
        return self.family.give_frames(self.config, schedule, mask, clean, times)

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
            self.control.activation_checkpointing = what  # type: ignore[assignment]

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
            text: prompt embedding, [B, L, text_channels], or what is behind the text projection.
            hint: control latent, [B, C', T, H, W] with C' <= hint_channels; None runs the base alone.
            condition_mask: 1 on clean leading frames, [B, 1, T, H, W]; default zeros.
            padding_mask: 1 on padding, [B, 1, H, W]; default zeros.
            fps: frames per second of the decoded video, [B]; default 24. Without meaning, and not read, in a
                network without fps modulation.
            control_weight: scales the residuals; a number, one for each sample, [B, 1], or a map
                [B, T, H/p, W/p].
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
        if hint is not None and not self.config.controls:
            raise ValueError("this network has no control branch: leave the hint out")
        b, _, t, h, w = x.shape
        condition = x.new_zeros(b, 1, t, h, w) if condition_mask is None else condition_mask.to(x.dtype)
        padding = x.new_zeros(b, 1, h, w) if padding_mask is None else padding_mask.to(x.dtype)
        padding = padding[:, :, None].expand(b, 1, t, h, w)
        inputs = Inputs(
            x=torch.cat([x, condition, padding], dim=1),
            c_noise=c_noise,
            text=text,
            hint=hint,
            padding=padding,
            fps=fps,
            weight=self.control_weight(control_weight, x),
        )
        piped = groups.layout().pipeline > 1
        out, found = (
            pipeline.call(self, inputs, tuple(features), features_only)
            if piped
            else self.run(0, None, inputs, features, features_only)
        )
        return (None if features_only else out, found) if features else out

    def control_weight(self, weight: float | torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
        """``control_weight`` as the branch multiplies by it: a number, or [B, 1 or T * H/p * W/p, 1]."""
        if not isinstance(weight, torch.Tensor):
            return weight
        return weight.to(x.dtype).reshape(len(x), -1)[..., None]

    def tokens(self, inputs: Inputs) -> int:
        """Tokens of a sample that this rank passes on, outside the tensor-parallel linears."""
        split = TokenSplit(self.base.grid(inputs.x))
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
        """Run ``number`` of the blocks; see :meth:`VideoDiT.forward`."""
        return self.base(
            inputs.x,
            inputs.c_noise,
            inputs.text,
            fps=inputs.fps,
            steering=self.steering(number, inputs),
            features=features,
            features_only=features_only,
            run=self.runs[number],
            h=h,
        )

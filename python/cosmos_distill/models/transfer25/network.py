"""Transfer2.5's control branches and the network made of base and branches.

A branch is a chain of blocks beside those of the base, one for every ``control_every`` of them. It starts
from the base's embedded latent and the embedded control; what a block of it makes goes to the next one and,
through a linear, onto the output of the base block that it goes with. Noise level, text and positions are the
base's. The linears are zero at first, so that an untrained branch changes nothing.

A control block lives where its base block does: pipeline ranks pass the branches' tokens on beside the
base's.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional as F

from cosmos_distill.models.common.blocks import linear
from cosmos_distill.models.common.branches import Branches, hints_of, weight_of_each
from cosmos_distill.models.common.dit import Context, PatchEmbed, Stack
from cosmos_distill.models.common.network import ControlledDiT, Inputs
from cosmos_distill.models.transfer25.config import Transfer25Config


class Branch(Stack):
    """The blocks of one control that this rank has."""

    config: Transfer25Config

    def __init__(self, config: Transfer25Config, blocks: Iterable[int], dtype: torch.dtype) -> None:
        blocks = list(blocks)
        super().__init__(config, blocks, dtype)
        first, width = 0 in blocks, config.width
        # + condition mask + padding mask
        self.hint_embed = PatchEmbed(config.hint_channels + 2, config, dtype) if first else None
        self.before = linear(width, width, dtype, bias=True) if first else None
        self.after = nn.ModuleDict({str(i): linear(width, width, dtype, bias=True) for i in blocks})

    def forward(
        self, index: int, c: torch.Tensor, hint: torch.Tensor, masks: torch.Tensor, context: Context
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Block ``index``.

        Args:
            c: what the block before returned or, of the first one, the base's embedded latent; this rank's
                tokens, [B, N, D].
            hint: the control's latent, [B, C, T, H, W]; read by the first block, as are the masks.
            masks: condition and padding mask, [B, 2, T, H, W].

        Returns:
            Its tokens, and the residual for the base, both [B, N, D].
        """
        if index == 0:
            assert self.hint_embed is not None and self.before is not None
            missing = self.config.hint_channels - hint.shape[1]
            hint = F.pad(hint, (0, 0, 0, 0, 0, 0, 0, missing))
            tokens = self.hint_embed(torch.cat([hint, masks], dim=1), context.places.split)
            c = self.before(tokens) + c
        c = self.run_block(index, c, context)
        residual: torch.Tensor = self.after[str(index)](c)
        return c, residual


class Steering:
    """The branches in one run of the base's blocks; see
    :class:`cosmos_distill.models.common.dit.Steering`."""

    def __init__(
        self, config: Transfer25Config, branches: Branches | None, inputs: Inputs, chains: list[torch.Tensor]
    ) -> None:
        assert inputs.hint is not None
        self.config, self.branches = config, branches
        self.chains = chains
        """Tokens of each branch, [B, N, D]; none before the first run begins."""
        self.hints = hints_of(inputs.hint, config.branches, config.hint_channels)
        self.masks = inputs.x[:, config.latent_channels :]
        self.weight = inputs.weight

    def start(self, h: torch.Tensor, context: Context) -> None:
        """All branches start from the embedded latent."""
        self.chains = [h] * self.config.branches

    def after(self, block: int, h: torch.Tensor, context: Context) -> torch.Tensor:
        """Run the control blocks that go with ``block``, if it has any, and add their residuals."""
        index, rest = divmod(block, self.config.control_every)
        if rest:
            return h
        assert self.branches is not None
        for n, branch in enumerate(self.branches.branches):
            self.chains[n], residual = branch(index, self.chains[n], self.hints[n], self.masks, context)
            h = h + residual * self._weight(n, context)
        return h

    def _weight(self, branch: int, context: Context) -> torch.Tensor | float:
        """Of a branch's residual, a number or [B, 1 or N, 1]. Of several controls one that is zero everywhere
        in a sample is not there."""
        weight = self.weight
        if isinstance(weight, torch.Tensor):
            weight = weight[:, branch]
            if weight.shape[1] > 1:
                weight = context.places.split.local(weight)
        if self.config.branches > 1:
            there = self.hints[branch].flatten(1).ne(0).any(1)
            weight = there.to(self.hints[branch].dtype)[:, None, None] * weight
        return weight


class Transfer25(ControlledDiT):
    """Base network and control branches, trained together. Its hint holds the latents of the controls one
    after the other along the channels, [B, branches * C, T, H, W]."""

    config: Transfer25Config
    control: Branches | None

    def make_control(self, dtype: torch.dtype) -> Branches | None:
        """The control blocks that go with this rank's blocks."""
        every = self.config.control_every
        numbers = [i // every for run in self.runs.values() for i in run if i % every == 0]
        if not numbers:
            return None
        return Branches(Branch(self.config, numbers, dtype) for _ in range(self.config.branches))

    def starts_at_zero(self, name: str) -> bool:
        """The linears at the beginning of a branch and behind each of its blocks."""
        return name.startswith("control.") and (".before." in name or ".after." in name)

    def control_weight(self, weight: float | torch.Tensor, x: torch.Tensor) -> float | torch.Tensor:
        """By branch; see :func:`cosmos_distill.models.common.branches.weight_of_each`."""
        return weight_of_each(weight, x, self.config.branches)

    def tokens(self, inputs: Inputs) -> int:
        """Those of the base, and of every branch as many beside them."""
        return super().tokens(inputs) * self._parts(inputs)

    def run(
        self,
        number: int,
        h: torch.Tensor | None,
        inputs: Inputs,
        features: Iterable[int],
        features_only: bool,
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Run ``number`` of the blocks; what runs pass on are the tokens of base and branches, one after the
        other: [B, (1 + branches) * N, D]."""
        run, chains = self.runs[number], []
        if h is not None:
            h, *chains = h.chunk(self._parts(inputs), dim=1)
        steering = None
        if inputs.hint is not None:
            steering = Steering(self.config, self.control, inputs, chains)
        out, found = self.base(
            inputs.x,
            inputs.c_noise,
            inputs.text,
            fps=inputs.fps,
            steering=steering,
            features=tuple(features),
            features_only=features_only,
            run=run,
            h=h,
        )
        if steering is not None and run.stop < self.config.blocks:
            out = torch.cat([out, *steering.chains], dim=1)
        return out, found

    def _parts(self, inputs: Inputs) -> int:
        return 1 if inputs.hint is None else 1 + self.config.branches

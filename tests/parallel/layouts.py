"""The layouts that must not change the result, and the training runs that show it.

Three runs of three optimiser steps stand for the recipes: KD, Transfer1's DMD2 (student, critics, student)
and Predict2.5's DMD2. Networks and clips are small, but every part of the real ones is in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from cosmos_distill.config import EDM, FewStep, Guidance, MethodConfig, Optim, Parallel, Trainer, TrigFlow
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.methods.levels import Grid, ShiftedTime
from cosmos_distill.methods.sgmd import SGMD
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.predict25.config import Predict25Config
from cosmos_distill.models.transfer1.config import Transfer1Config
from cosmos_distill.models.transfer25.config import Transfer25Config

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.data.batch import Batch

TOLERANCE = 1e-5
"""Largest difference of a tensor in fp32, relative to the largest number in it."""
STEPS = 3
SEED = 14
"""Of weights and noise. With some seeds hardly anything is left of a gradient when its terms have cancelled
out, and fp32 on one rank is further from fp64 than the tolerance; with this one it is nowhere."""


@dataclass(frozen=True)
class Layout:
    """How many ranks there are and how they share the work."""

    parallel: Parallel
    data: int = 1
    """Data-parallel ranks."""
    recompute: Literal["none", "full", "selective"] = "none"
    micro_batch: int = 1

    @property
    def ranks(self) -> int:
        return self.parallel.model * self.data


ONE = Layout(Parallel())
LAYOUTS: Mapping[str, Layout] = {
    "1 rank, no accumulation": Layout(Parallel(), micro_batch=4),
    "TP2": Layout(Parallel(tensor=2), micro_batch=2),
    "TP2 + SP": Layout(Parallel(tensor=2, sequence=True), micro_batch=2),
    "PP2": Layout(Parallel(pipeline=2)),
    "PP2, recompute full": Layout(Parallel(pipeline=2), recompute="full", micro_batch=2),
    "PP2 interleaved": Layout(Parallel(pipeline=2, virtual_pipeline=2)),
    # One micro-batch, where the interleaved schedule wants two.
    "PP2 interleaved, no accumulation": Layout(Parallel(pipeline=2, virtual_pipeline=2), micro_batch=4),
    "CP2 Ulysses": Layout(Parallel(context=2), micro_batch=2),
    "CP2 ring": Layout(Parallel(context=2, context_attention="ring"), micro_batch=2),
    "CP2 ring, recompute selective": Layout(
        Parallel(context=2, context_attention="ring"), recompute="selective", micro_batch=2
    ),
    "CP4 ring": Layout(Parallel(context=4, context_attention="ring"), micro_batch=2),
    "DP2": Layout(Parallel(), data=2),
    "DP2 sharded optimizer": Layout(Parallel(data="sharded_optimizer"), data=2),
    "FSDP2": Layout(Parallel(data="fsdp"), data=2),
    "FSDP2 x 2 copies": Layout(Parallel(data="fsdp", fsdp_shards=2), data=4),
    "TP2 x PP2 + SP": Layout(Parallel(tensor=2, pipeline=2, sequence=True), micro_batch=2),
    "TP2 x CP2": Layout(Parallel(tensor=2, context=2), micro_batch=2),
    "TP2 x DP2 sharded optimizer": Layout(Parallel(tensor=2, data="sharded_optimizer"), data=2),
    "CP2 x FSDP2": Layout(Parallel(context=2, data="fsdp"), data=2),
    "PP2 x DP2": Layout(Parallel(pipeline=2), data=2),
    "PP2 x DP2 sharded optimizer": Layout(Parallel(pipeline=2, data="sharded_optimizer"), data=2),
    "PP2 x FSDP2": Layout(Parallel(pipeline=2, data="fsdp"), data=2),
    "PP2 interleaved x FSDP2, recompute full": Layout(
        Parallel(pipeline=2, virtual_pipeline=2, data="fsdp"), data=2, recompute="full"
    ),
}


def optim(lr: float, clip_norm: float | None = None, eps: float = 1e-3) -> Optim:
    """AdamW whose step is a smooth function of the gradient.

    With the usual eps of 1e-8 a gradient of that size, which is the rounding error of a sum of larger ones,
    moves its weight by the whole learning rate in the direction of its accidental sign: no two orders of
    summation, hence no two layouts, agree on that, and there is nothing to agree on.
    """
    return Optim(lr=lr, eps=eps, clip_norm=clip_norm)


TRANSFER = Transfer1Config(
    width=72, blocks=4, control_blocks=1, heads=4, head_dim=18, adaln_rank=8, text_dim=16, text_tokens=8,
    max_frames=4, max_height=12, max_width=12, timestep_scale=10.0, hint_channels=20, hint_widths=(16, 24),
)  # fmt: skip
PREDICT = Predict25Config(
    width=72, blocks=4, heads=4, head_dim=18, adaln_rank=8, text_dim=16, text_tokens=8,
    text_projection=20, max_frames=4, max_height=12, max_width=12, timestep_scale=30.0,
    clean_condition_times=True,
)  # fmt: skip

# A control block for base blocks 0 and 2, hence one for each of two pipeline ranks; two controls.
TRANSFER25 = Transfer25Config(
    width=72, blocks=4, control_every=2, branches=2, heads=4, head_dim=18, adaln_rank=8, text_dim=16,
    text_tokens=8, text_projection=20, max_frames=4, max_height=12, max_width=12, timestep_scale=30.0,
    hint_channels=20, clean_condition_times=True,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A training run: everything but the layout."""

    network: DiTConfig
    schedule: EDM | TrigFlow
    method: MethodConfig
    frames: int
    height: int
    width: int
    """Latent size."""

    def trainer(self, layout: Layout) -> Trainer:
        # One sample at a time unless the layout says otherwise, so that gradients are accumulated (and a
        # pipeline is filled) on two data-parallel ranks, too. Where that can be had with two samples at
        # a time, which takes half the calls, the layout says so.
        return Trainer(
            max_steps=STEPS, global_batch=4, micro_batch=layout.micro_batch, precision="fp32",
            activation_checkpointing=layout.recompute, ema_decay=0.5, log_every=1,
        )  # fmt: skip

    @cached_property
    def source(self) -> Clips:
        return Clips(self)


@dataclass(frozen=True)
class Clips:
    """Sample n is a function of n."""

    case: Case

    def batch(self, first: int, count: int) -> Batch:
        import torch

        from cosmos_distill.data.batch import Batch

        case, network = self.case, self.case.network
        size = (case.frames, case.height, case.width)

        def drawn(name: int, *shape: int) -> Tensor:
            return torch.stack(
                [
                    torch.randn(shape, generator=torch.Generator().manual_seed(1000 * name + index))
                    for index in range(first, first + count)
                ]
            )

        padding = torch.zeros(count, 1, *size[1:])
        padding[..., -1] = (torch.arange(first, first + count) % 2)[:, None, None]
        return Batch.of(
            first,
            {
                "latents": 0.5 * drawn(1, network.latent_channels, *size),
                "hint": 0.5 * drawn(2, 16 * network.controls, *size) if network.controls else None,
                "control_weight": drawn(6, network.controls).sigmoid() if network.controls > 1 else None,
                "text": drawn(3, network.text_tokens, network.text_channels),
                "negative_text": drawn(4, network.text_tokens, network.text_channels),
                "fps": 12.0 * (1 + torch.arange(first, first + count) % 3),
                "padding_mask": padding,
                "noise": drawn(5, network.latent_channels, *size) if isinstance(case.method, KD) else None,
            },
        )


GIVEN = (1 / 3, 1 / 3, 1 / 3)
RECTIFIED = TrigFlow("rectified_flow", sigma_data=1.0, shift=5.0)
FOUR_STEPS = DMD2(
    sampler=FewStep(4), guidance=Guidance(2.0, "added", "zeroed"), student_update_freq=2,
    levels=ShiftedTime("uniform"), vsd_form="predict2.5", fake_score_weighting="trigflow",
    mask_given_frames=True, gan_weight=0.5, gan_features="fake_score", head="query_token",
    feature_blocks=(1, 3), condition_frames=GIVEN,
    student=optim(4e-3, 2.0), fake_score=optim(4e-3, 2.0), discriminator=optim(2e-3, 0.5, 1e-2),
)  # fmt: skip
CASES: Mapping[str, Case] = {
    # 3 x 4 x 4 tokens: 2 divides them, but not the frames.
    "KD": Case(TRANSFER, EDM(), KD(condition_frames=GIVEN, student=optim(1e-2, 0.3)), 3, 8, 8),
    # 3 x 3 x 5 tokens: 2 divides nothing.
    "DMD2": Case(
        TRANSFER,
        EDM(),
        DMD2(
            guidance=Guidance(2.0, "added"), student_update_freq=2, levels=Grid(),
            gan_weight=0.5, head="conv2d", head_width=16, feature_blocks=(1, 2), condition_frames=GIVEN,
            student=optim(4e-3, 0.5), fake_score=optim(4e-3), discriminator=optim(1e-4),
        ),
        3, 6, 10,
    ),
    # 3 x 3 x 3 tokens: split over four ranks, one has nothing but padding.
    "Predict2.5": Case(PREDICT, RECTIFIED, FOUR_STEPS, 3, 6, 6),
}  # fmt: skip
FAMILY_CASES: Mapping[str, Case] = {"Transfer2.5": Case(TRANSFER25, RECTIFIED, FOUR_STEPS, 3, 6, 6)}
"""Of families that came later: under :data:`FAMILY_LAYOUTS` alone."""
FAMILY_LAYOUTS = (
    "TP2", "TP2 + SP", "PP2", "PP2 interleaved", "CP2 Ulysses", "CP2 ring", "FSDP2", "PP2 x FSDP2",
    "PP2, recompute full",
)  # fmt: skip
METHOD_CASES: Mapping[str, Case] = {
    "SGMD": Case(
        PREDICT,
        RECTIFIED,
        SGMD(
            sampler=FewStep(4), guidance=Guidance(2.0, "added", "zeroed"), levels=ShiftedTime("uniform"),
            fake_score_weighting="trigflow", mask_given_frames=True, condition_frames=GIVEN, ida_decay=0.9,
            student=optim(4e-3, 2.0), fake_score=optim(4e-3, 2.0),
        ),
        3, 6, 6,
    )
}  # fmt: skip
"""Of methods that came later: under :data:`METHOD_LAYOUTS` alone, and not in the documented table."""
METHOD_LAYOUTS = ("TP2 + SP", "PP2 interleaved", "CP2 ring", "PP2 x DP2 sharded optimizer", "FSDP2")
EVERY_CASE: Mapping[str, Case] = {**CASES, **FAMILY_CASES, **METHOD_CASES}

"""A method with two alternating roles and a source, both tiny and deterministic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_distill.config import EDM, MethodConfig, Optim, Trainer
from cosmos_distill.data.batch import Batch
from cosmos_distill.diffusion import EDMSchedule
from cosmos_distill.methods.base import Method, Noise

SHAPE = (2, 3, 4, 4)


@dataclass(frozen=True, kw_only=True)
class Toy(MethodConfig):
    """Student regresses the latents from noise, the critic regresses the student; every third step is the
    student's."""

    student: Optim = field(default_factory=lambda: Optim(lr=1e-2))
    critic: Optim = field(default_factory=lambda: Optim(lr=1e-2))
    every: int = 3


class Network(nn.Module):
    """Two convolutions with batch norm between, and a parameter that gets no gradient."""

    def __init__(self, seed: int, norm: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Conv3d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm3d(8) if norm else nn.Identity()
        self.last = nn.Conv3d(8, 2, 3, padding=1)
        self.unused = nn.Parameter(torch.ones(3))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


class ToyMethod(Method):
    """See :class:`Toy`. ``bad`` maps a step to what its loss is multiplied with; ``left_out`` to how many
    of its first samples are left out."""

    config: Toy
    trainable = ("student", "critic")
    global_batch = 6

    def __init__(
        self,
        config: Toy | None = None,
        dtype: torch.dtype = torch.float32,
        norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        roles = {
            "student": Network(0, norm).to(dtype),
            "critic": Network(1).to(dtype),
            "teacher": Network(2).to(dtype),
        }
        super().__init__(config or Toy(), roles, EDMSchedule(EDM()))
        self.bad: dict[int, str] = {}
        self.left_out: dict[int, int] = {}
        self.dtype = dtype
        self.dropout = dropout

    def phase(self, step: int) -> tuple[str, ...]:
        return ("student",) if step % self.config.every == 0 else ("critic",)

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        x = noise.normal("x", SHAPE).to(self.dtype)
        # Torch's own generator is used as well, so that its state has to be restored.
        x = nn.functional.dropout(x, self.dropout)
        made = self.roles["student"](x)
        if self.phase(step) == ("student",):
            loss = {"loss/kd": (made.float() - batch.latents).square().flatten(1).mean(1)}
        else:
            scored = self.roles["critic"](x)
            loss = {"loss/fake_score": (scored.float() - made.detach().float()).square().flatten(1).mean(1)}
        if step in self.bad:
            loss = {key: value * float(self.bad[step]) for key, value in loss.items()}
        terms = {**loss, "total": sum(loss.values(), torch.zeros(()))}
        if step in self.left_out:
            position = torch.arange(batch.first, batch.first + len(batch)) % self.global_batch
            terms["nonfinite/kd"] = (position < self.left_out[step]).float()
        return terms


class ToySource:
    """Sample n is a function of n."""

    def batch(self, first: int, count: int) -> Batch:
        latents = torch.stack(
            [
                torch.randn(SHAPE, generator=torch.Generator().manual_seed(index)) * 0.5
                for index in range(first, first + count)
            ]
        )
        return Batch.of(
            first,
            {
                "latents": latents,
                "hint": latents,
                "text": torch.zeros(count, 2, 4),
                "negative_text": torch.zeros(count, 2, 4),
                "fps": torch.full((count,), 24.0),
                "padding_mask": torch.zeros(count, 1, 4, 4),
            },
        )


def trainer(**changes: Any) -> Trainer:
    """Small defaults."""
    values: dict[str, Any] = {
        "max_steps": 9,
        "global_batch": 4,
        "micro_batch": 2,
        "precision": "fp32",
        "ema_decay": 0.9,
        "log_every": 2,
        "save_every": 3,
        "sample_every": 4,
    }
    return Trainer(**(values | changes))

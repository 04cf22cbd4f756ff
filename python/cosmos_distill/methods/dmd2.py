"""DMD2 (Yin et al. 2024, arXiv 2405.14867) as Transfer1 runs it: the second stage of its recipe.

A one-step student G, a frozen teacher T, a fake score network S that follows the distribution of G's
samples, and a discriminator D on features of the teacher. One step in ``student_update_freq`` trains
G, the others train S and D.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cosmos_distill import diffusion, ops
from cosmos_distill.config import Guidance, MethodConfig, Optim
from cosmos_distill.methods.base import Method, Networks, Noise, draw_condition, unit_noise

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.diffusion import EDMSchedule
    from cosmos_distill.methods.denoiser import Condition

FIRST_LEVEL, LAST_LEVEL = 20, 980
"""Levels of the 1000-point grid that are drawn, both included: the middle 96 %."""


@dataclass(frozen=True, kw_only=True)
class DMD2(MethodConfig):
    """Match the distribution of the student's one-step samples to the teacher's."""

    guidance: Guidance = field(default_factory=lambda: Guidance(5.0, "added"))
    """Of the teacher. The student learns the guided prediction and needs none."""
    student_update_freq: int = 5
    """The student's turn is every step that this divides."""
    critic_warmup_steps: int = 0
    """First optimiser steps, which train the fake score and the discriminator only."""
    sigma_schedule: Literal["edm_sampling", "inference"] = "edm_sampling"
    """Where noise levels are drawn: on the teacher's sampling grid, or log-uniform."""
    adjust_video_noise: bool = True
    """Multiply sigma by sqrt(latent frames), as the teacher's training did."""
    fake_score_prediction: Literal["eps", "x0"] = "eps"
    """Error that the fake score network's loss averages."""
    gan_weight: float = 1e-3
    """Of the adversarial term in the student's loss; 0 builds no discriminator."""
    head: Literal["conv3d", "conv2d", "attention", "spatial_temporal"] = "conv3d"
    """Architecture of the discriminator's heads."""
    head_width: int = 320
    head_groups: int = 8
    feature_blocks: tuple[int, ...] = ()
    """Teacher blocks that the discriminator reads; empty: the middle one."""
    feature_t_min: int = 0
    """Leading latent frames that the discriminator does not see."""
    ladd: bool = False
    """Adversarial loss alone, at weight 1 and without a fake score (LADD, arXiv 2403.12015)."""
    recon_loss_weight: float = 0.0
    """Of mean (x_g - real latent)^2 in the student's loss."""
    recon_loss_only: bool = False
    """Reconstruction as the only loss and every step the student's: an alternative warm-up."""
    max_condition_frames: int = 2
    """Leading latent frames given clean, uniform in 0..max per sample."""
    student: Optim = field(default_factory=lambda: Optim(lr=5e-7, clip_norm=10.0))
    fake_score: Optim = field(default_factory=lambda: Optim(lr=5e-7))
    discriminator: Optim = field(default_factory=lambda: Optim(lr=5e-7))

    def __post_init__(self) -> None:
        if self.student_update_freq < 1:
            raise ValueError(f"student_update_freq must be at least 1, not {self.student_update_freq}")
        if min(self.gan_weight, self.recon_loss_weight) < 0:
            raise ValueError("gan_weight and recon_loss_weight must not be negative")
        if self.ladd and self.recon_loss_only:
            raise ValueError("ladd and recon_loss_only exclude each other: switch one off")
        if self.student_update_freq == 1 and not self.recon_loss_only:
            raise ValueError("student_update_freq 1 never trains the critics: choose at least 2")

    @property
    def critics(self) -> tuple[str, ...]:
        """Roles trained between the student's steps."""
        if self.recon_loss_only:
            return ()
        if self.ladd:
            return ("discriminator",)
        return ("fake_score", "discriminator") if self.gan_weight > 0 else ("fake_score",)

    def build(self, networks: Networks, schedule: EDMSchedule, *, seed: int = 0) -> DMD2Method:
        """The method over the networks that its switches need; ``seed`` initialises the discriminator.

        Raises:
            ValueError: a feature block that the teacher does not have.
        """
        roles = {"student": networks("student")}
        if self.critics:
            roles["teacher"] = networks("teacher")
        if "fake_score" in self.critics:
            roles["fake_score"] = networks("fake_score")
        if "discriminator" in self.critics:
            roles["discriminator"] = self._discriminator(roles["teacher"], seed)
        return DMD2Method(self, roles, schedule)

    def _discriminator(self, teacher: nn.Module, seed: int) -> nn.Module:
        from cosmos_distill.models.heads import Discriminator

        network: Any = teacher
        total, width = network.config.blocks, network.config.width
        blocks = self.feature_blocks or (total // 2,)
        if not set(blocks) <= set(range(total)):
            raise ValueError(f"feature_blocks {blocks}: the teacher's blocks are numbered 0..{total - 1}")
        head = Discriminator(
            blocks,
            width,
            head=self.head,
            width=self.head_width,
            groups=self.head_groups,
            t_min=self.feature_t_min,
            seed=seed,
        )
        like = next(teacher.parameters())
        return head.to(like.device, like.dtype)


class DMD2Method(Method):
    """Alternating phases over the four roles."""

    config: DMD2

    def __init__(self, config: DMD2, roles: dict[str, nn.Module], schedule: EDMSchedule) -> None:
        self.trainable = ("student", *config.critics)
        super().__init__(config, roles, schedule)
        self.blocks: tuple[int, ...] = getattr(roles.get("discriminator"), "blocks", ())
        self.levels = schedule.training_sigmas(config.sigma_schedule)[FIRST_LEVEL : LAST_LEVEL + 1]

    def turn(self, step: int) -> tuple[str, ...]:
        """The student where ``student_update_freq`` divides ``step``, the critics everywhere else."""
        if not self.config.critics:
            return ("student",)
        warm = step >= self.config.critic_warmup_steps
        return ("student",) if warm and step % self.config.student_update_freq == 0 else self.config.critics

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """Student phase: ``loss/vsd``, ``loss/gan_generator``, ``loss/recon``.
        Critic phase: ``loss/fake_score``, ``loss/gan_discriminator``. Terms that are off are absent."""
        turn = self.turn(step)
        self.enable_gradients(turn)
        condition = draw_condition(batch, noise, self.config.max_condition_frames)
        phase = self.student_losses if "student" in turn else self.critic_losses
        return phase(batch, condition, noise)

    def student_losses(self, batch: Batch, condition: Condition, noise: Noise) -> dict[str, Tensor]:
        """Losses of G. The total is VSD + gan_weight * GAN + recon_loss_weight * reconstruction."""
        import torch

        config = self.config
        terms: dict[str, Tensor] = {}
        x_g = self.generate(batch, condition, noise)
        if config.recon_loss_only or config.recon_loss_weight > 0:
            terms["loss/recon"] = (x_g - batch.latents).square().flatten(1).mean(1)
        if config.recon_loss_only:
            return {**terms, "total": terms["loss/recon"]}

        sigma = self.draw_sigma(batch, noise)
        x_t = ops.renoise(x_g, unit_noise(batch, noise, "renoise"), sigma)
        x0_teacher, features = self.conditional_teacher(x_t, sigma, condition)
        if features is not None:
            terms["loss/gan_generator"] = ops.generator_loss(self.roles["discriminator"](features))
        if x0_teacher is not None:
            with torch.no_grad():
                x0_teacher = self.guide(x0_teacher, x_t, sigma, condition.with_text(batch.negative_text))
                x0_fake = self.denoiser("fake_score")(x_t, sigma, condition)
            terms["loss/vsd"] = ops.vsd_loss(x_g, x0_teacher, x0_fake)

        weights = {
            "loss/vsd": 1.0,
            "loss/gan_generator": 1.0 if config.ladd else config.gan_weight,
            "loss/recon": config.recon_loss_weight,
        }
        return {**terms, "total": torch.stack([weights[name] * term for name, term in terms.items()]).sum(0)}

    def critic_losses(self, batch: Batch, condition: Condition, noise: Noise) -> dict[str, Tensor]:
        """Losses of S and D on fresh samples of G; their sum is the total."""
        import torch

        terms: dict[str, Tensor] = {}
        sigma = self.draw_sigma(batch, noise)
        with torch.no_grad():
            x_g = self.generate(batch, condition, noise)
            x_t = ops.renoise(x_g, unit_noise(batch, noise, "renoise"), sigma)
        if "fake_score" in self.roles:
            x0_fake = self.denoiser("fake_score")(x_t, sigma, condition)
            terms["loss/fake_score"] = ops.fake_score_loss(
                x0_fake, x_g, sigma, self.config.fake_score_prediction
            )
        if "discriminator" in self.roles:
            real = ops.renoise(batch.latents, unit_noise(batch, noise, "renoise_real"), sigma)
            discriminator = self.roles["discriminator"]
            terms["loss/gan_discriminator"] = ops.discriminator_loss(
                discriminator(self.features(x_t, sigma, condition)),
                discriminator(self.features(real, sigma, condition)),
            )
        return {**terms, "total": torch.stack(list(terms.values())).sum(0)}

    def generate(self, batch: Batch, condition: Condition, noise: Noise) -> Tensor:
        """A sample of G from fresh noise: what the exported sampler does."""
        return self.sampler("student")(unit_noise(batch, noise, "student"), condition)

    def draw_sigma(self, batch: Batch, noise: Noise) -> Tensor:
        """Noise level of each sample, [B], uniform over the grid's points."""
        sigma = self.levels[noise.integers("sigma", 0, len(self.levels))].to(batch.latents)
        return sigma * math.sqrt(batch.latents.shape[2]) if self.config.adjust_video_noise else sigma

    def conditional_teacher(
        self, x_t: Tensor, sigma: Tensor, condition: Condition
    ) -> tuple[Tensor | None, dict[int, Tensor] | None]:
        """T(x_t) without a graph, and the features D reads with one: the adversarial gradient reaches G
        through T. One pass serves both; LADD needs no prediction, and no D no features."""
        import torch

        teacher = self.denoiser("teacher")
        if "discriminator" not in self.roles:
            with torch.no_grad():
                return teacher(x_t, sigma, condition), None
        x0, features = teacher(x_t, sigma, condition, features=self.blocks, features_only=self.config.ladd)
        return None if x0 is None else x0.detach(), features

    def guide(self, cond: Tensor, x_t: Tensor, sigma: Tensor, negative: Condition) -> Tensor:
        """T's guided prediction. Given frames and control are the same in both branches."""
        guidance = self.config.guidance
        if guidance.as_added().scale == 0:
            return cond
        return diffusion.combine(cond, self.denoiser("teacher")(x_t, sigma, negative), guidance)

    def features(self, x_t: Tensor, sigma: Tensor, condition: Condition) -> dict[int, Tensor]:
        """What D reads, without a graph; T runs up to the last block needed."""
        import torch

        teacher = self.denoiser("teacher")
        with torch.no_grad():
            return teacher(x_t, sigma, condition, features=self.blocks, features_only=True)[1]

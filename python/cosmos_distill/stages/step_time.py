"""What the fused operators are worth in training: the time of a step with them and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cosmos_distill.config import Parallel, Train
from cosmos_distill.data.sources import Source
from cosmos_distill.eval import latency
from cosmos_distill.eval.missing import ratio
from cosmos_distill.methods.kd import KD
from cosmos_distill.ops import registry
from cosmos_distill.randomness import Noise
from cosmos_distill.run.networks import DTYPES, backends, device, load, schedule, sizes
from cosmos_distill.run.runner import Run
from cosmos_distill.sampling.samplers import noise_of

ROUNDS = 5
RIVALS = {"reference": "reference", "reference_sdpa": "sdpa,reference"}
"""What stands in for the backends picked: plain torch throughout, and the same with torch's own attention,
which is no kernel of ours. Key in the report -> COSMOS_DISTILL_BACKEND."""


def measure(run: Run, student: tuple[Path, ...], clips: Source) -> dict[str, Any] | None:
    """Forward and backward of the student's regression at the last Train stage's micro-batch, in turn with
    the backends that the operators pick and with each of :data:`RIVALS`. No optimiser.

    Returns:
        ``picked``, the names of the backends picked; ``micro_batch``; ``seconds``, a
        :class:`~cosmos_distill.eval.latency.Latency` of each; ``ratios`` of a rival's median to the picked
        one's. None where no such step is trained: no Train stage, a layout that spreads a network over
        devices, or more than the device holds.
    """
    trained = [stage for stage in run.recipe.stages.values() if isinstance(stage, Train)]
    if not trained or run.recipe.parallel != Parallel():
        return None
    try:
        return _measure(run, trained[-1], student, clips)
    except torch.OutOfMemoryError:
        return None


def _measure(run: Run, stage: Train, student: tuple[Path, ...], clips: Source) -> dict[str, Any]:
    network = load(sizes(run.recipe), student, DTYPES[stage.trainer.precision])
    network.activation_checkpointing = stage.trainer.activation_checkpointing
    method = KD(condition_frames=(1.0,)).build(lambda role: network, schedule(run.recipe))
    batch = clips.batch(0, stage.trainer.micro_batch).to(device())
    batch = replace(batch, noise=noise_of(run.recipe.seed, "step_time", batch))
    noise = Noise(run.recipe.seed, 0, batch.first, len(batch))

    def step(asked: str | None) -> None:
        with registry.insisting(asked):
            method.losses(batch, 0, noise)["total"].sum().backward()
        network.zero_grad(set_to_none=True)

    calls: dict[str, Callable[[], None]] = {"picked": partial(step, None)}
    calls |= {key: partial(step, asked) for key, asked in RIVALS.items()}
    times = latency.interleaved(calls, rounds=ROUNDS)
    return {
        "picked": backends(next(network.parameters())),
        "micro_batch": len(batch),
        "seconds": times,
        "ratios": {key: ratio(times[key].median, times["picked"].median, {}, key) for key in RIVALS},
    }

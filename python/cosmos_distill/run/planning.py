"""``cosmos-distill plan``: what a recipe needs, before anything of it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from cosmos_distill import storage
from cosmos_distill.config import Recipe, Train
from cosmos_distill.errors import Refusal
from cosmos_distill.launch import plan_text
from cosmos_distill.launch.devices import GPUS, NODE
from cosmos_distill.launch.layout import problems
from cosmos_distill.launch.options import PlanOptions
from cosmos_distill.launch.plan import Planner, disk_bytes
from cosmos_distill.ranges import unchecked
from cosmos_distill.run.folder import blocked
from cosmos_distill.run.sizes import denoiser, latent_shape


def planner(recipe: Recipe, gpus: int, gpu: str, memory: float | None = None) -> Planner:
    """What plans this recipe on so many GPUs of ``memory`` GiB, or of what such a GPU has.

    Raises:
        Refusal: there is nothing to plan.
    """
    if denoiser(recipe) is None or not any(isinstance(s, Train) for s in recipe.stages.values()):
        raise Refusal("a plan is of training stages of a network that denoises: this recipe has none")
    shapes = [latent_shape(data) for data in recipe.data.shapes()]
    largest = max(shapes, key=lambda shape: shape[1] * shape[2] * shape[3])
    found = GPUS[gpu]
    if memory is not None:
        found = replace(found, memory=memory)
    return Planner(recipe, largest, gpus, found, found.room)


def show(recipe: Recipe, options: PlanOptions) -> None:
    """Print the plan, and write it where it was asked for.

    Raises:
        Refusal: there is nothing to plan, no layout suits so many GPUs, or the file cannot be written.
    """
    assert options.gpus is not None
    if options.json is not None:
        if reason := blocked(options.json.parent):
            raise Refusal(
                f"--json {options.json} cannot be written: its folder {reason}: choose another file"
            )
        if not options.json.parent.is_dir() or options.json.is_dir():
            raise Refusal(f"--json {options.json} cannot be written: name a file in a folder that there is")
    planned = planner(recipe, options.gpus, options.gpu, options.memory)
    found = planned.search()
    if not found:
        reasons = "\n".join(problems(recipe, options.gpus)) or "no split of the networks suits them"
        raise Refusal(f"no layout is possible on {options.gpus} GPUs:\n{reasons}")
    own, saved = planned.own(), planned.saved()
    disk, nodes = disk_bytes(recipe, saved), -(-options.gpus // NODE)
    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    plan_text.show(console, planned.gpu, own, found, planned.modes(found[0]), saved, disk, nodes)
    if options.json is not None:
        text = json.dumps(plan_text.as_json(planned.gpu, own, found, saved, disk, nodes), indent=1)
        storage.publish(options.json, text + "\n")


def device_memory() -> int | None:
    """Bytes of this rank's GPU; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).total_memory)


def refuse_what_does_not_fit(recipe: Recipe, only: Sequence[str], gpus: int, memory: int) -> None:
    """Count what the training stages need under the recipe's layout, before the ranks are connected.

    Args:
        only: stages that are to run; empty: all.
        memory: bytes of each GPU.

    Raises:
        Refusal: a stage needs more; with the layouts nearest to it that need less.
    """
    stages = {n: s for n, s in recipe.stages.items() if isinstance(s, Train) and (not only or n in only)}
    if not stages or denoiser(recipe) is None or any(problems(recipe, gpus)):
        return  # the last is said where layouts are checked
    with unchecked():
        trained = replace(recipe, stages=stages)
    planned = planner(trained, gpus, "h100", memory / 2**30)
    own = planned.own()
    assert own is not None
    if own.bytes <= memory:
        return
    ways = "".join(
        f"\n  {plan.options}: {plan_text.gib(plan.bytes)}" for plan in planned.search() if plan.fits
    )
    raise Refusal(
        f"a GPU of {plan_text.gib(memory)} cannot hold the {plan_text.gib(own.bytes)} that a step of this "
        f"layout takes on each of {gpus}. What fits:"
        f"{ways or ' nothing on so many; take more, or larger ones'}"
    )

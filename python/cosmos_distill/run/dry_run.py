"""``--dry-run``: everything about a run that can be known without running it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cosmos_distill import methods, models
from cosmos_distill.config import Recipe, Train
from cosmos_distill.data import keeping
from cosmos_distill.diffusion import build_schedule
from cosmos_distill.errors import Refusal
from cosmos_distill.families import title
from cosmos_distill.launch import ranks
from cosmos_distill.launch.layout import launch, smallest_world
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import Parallelised
from cosmos_distill.run import inputs
from cosmos_distill.run.checks import check, holds_weights, misfits, needs_teacher, teacher_files
from cosmos_distill.run.headers import refuse_misfits
from cosmos_distill.run.manifest import plain
from cosmos_distill.run.networks import sizes
from cosmos_distill.run.runner import status
from cosmos_distill.run.sizes import denoiser
from cosmos_distill.run.text import yaml
from cosmos_distill.train.plan import plan


def show(recipe: Recipe, out: Path, args: Sequence[str]) -> None:
    """Print resolved recipe, state of the stages, parameter counts, memory per role and launch line.

    Args:
        args: What follows ``cosmos-distill`` on the command line.

    Raises:
        Refusal: after printing what can be printed, when the run cannot work.
    """
    # Numbers in a table must not wrap when the output goes into a file.
    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    console.print(yaml(plain(recipe)), markup=False)
    console.print()
    console.print(_states(recipe, out))
    if (config := denoiser(recipe)) is not None:
        groups.connect(alone=True)  # whole networks are counted, and the other ranks have nothing to do
        network = models.build(config, device="meta", seed=None)
        base = sum(p.numel() for p in network.base.parameters())
        said = f"{title(config)}: {_count(base)} parameters in the base"
        if network.control is not None:
            said += f" + {_count(sum(p.numel() for p in network.control.parameters()))} in the control branch"
        console.print(said)
        if recipe.data.own and (text := config.family.text) is not None:
            console.print(
                f"prompts: {config.text_tokens} x {config.text_channels:,} numbers of {text.name}, published "
                f"in {text.folder}/; published weights take latents of {', '.join(config.family.tokenizers)}"
            )
        for name, stage in recipe.stages.items():
            if isinstance(stage, Train):
                console.print(
                    f"\n[bold]{name}[/]: {stage.trainer.max_steps:,} steps of {type(stage.method).__name__}"
                )
                if not any(misfits(recipe, name, stage)):  # of which check() tells
                    _memory(recipe, stage, console)
    console.print(f"\n{launch(recipe.parallel, args)}", soft_wrap=True)
    check(recipe, out, ranks=_ranks(recipe))
    # One folder may hold clips of several splits.
    found = {id(folder): folder for split in inputs.look(recipe).values() for folder in split.values()}
    told = [sample.caption is not None for folder in found.values() for sample in folder.samples.values()]
    if any(told):
        others = f"; {told.count(False):,} have embeddings" if not all(told) else ""
        console.print(f"captions of {told.count(True):,} clips are encoded first, once{others}")
    words = [fault.word for folder in found.values() for fault in folder.left_out.values()]
    if said := keeping.said(keeping.counted(words)):
        console.print(f"left out: {said}", soft_wrap=True)
    refuse_misfits(recipe, recipe.stages)


def _ranks(recipe: Recipe) -> int:
    """Those that were launched; of one process, as many as the layout takes at least."""
    launched = ranks.world()
    return launched if launched > 1 else smallest_world(recipe.parallel)


def _states(recipe: Recipe, out: Path) -> Table:
    table = Table("stage", "kind", "state", "", title=str(out), title_justify="left")
    blocked = any(map(needs_teacher, recipe.stages.values())) and not all(
        map(holds_weights, teacher_files(recipe))
    )
    try:
        states = {} if blocked else status(recipe, out)
    except Refusal as error:
        states = {name: ("mismatch", str(error)) for name in recipe.stages}
    for name, stage in recipe.stages.items():
        state, reason = states.get(name, ("new", "the teacher is missing"))
        table.add_row(name, type(stage).__name__, state, reason)
    return table


def _memory(recipe: Recipe, stage: Train, console: Console) -> None:
    """Networks on the meta device cost nothing, so the method itself says which roles it has."""
    config = sizes(recipe)
    method = methods.build(
        stage.method,
        lambda role: models.build(config, device="meta", seed=None),
        build_schedule(recipe.schedule),
    )
    counts = {
        role: (sum(p.numel() for p in network.parameters()), role in method.trainable)
        for role, network in method.roles.items()
    }
    found = plan(
        counts,
        stage.trainer.precision,
        parallel=recipe.parallel,
        data_parallel=max(1, _ranks(recipe) // recipe.parallel.model),
        whole={role for role, network in method.roles.items() if not isinstance(network, Parallelised)},
        ema=stage.trainer.averages,
        phases={method.phase(step) for step in range(min(stage.trainer.max_steps, 1000))},
    )
    console.print(found.table())
    console.print(found.verdict())


def _count(number: int) -> str:
    return f"{number / 1e9:.3f} B" if number >= 1e8 else f"{number / 1e6:.3f} M"

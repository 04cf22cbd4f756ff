"""Sample grids of a training stage: the same held-out clips every time, the teacher's rows drawn once."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from cosmos_distill.config import ONE_STEP, Evaluate, Generate, Guidance, Recipe, Train
from cosmos_distill.data.control_mix import control_rows
from cosmos_distill.files import regular
from cosmos_distill.launch import ranks
from cosmos_distill.launch.shared import Shared
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run.checks import teacher_files
from cosmos_distill.run.manifest import plain
from cosmos_distill.run.networks import device, open_clips, schedule
from cosmos_distill.sampling.candidates import steps_text
from cosmos_distill.sampling.samplers import few_steps, many_steps, noise_of
from cosmos_distill.storage import publish_tensors
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.visuals import grid, grid_clips, shown

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.methods.base import Method, Networks

KEPT = "teacher.safetensors"
"""In ``grids/``: latents of the teacher's rows."""


def many_step_settings(recipe: Recipe) -> tuple[Guidance, int]:
    """Guidance and steps with which this recipe samples its teacher."""
    for stage in reversed(list(recipe.stages.values())):
        if isinstance(stage, Evaluate | Generate):
            return stage.guidance, stage.steps
    return Guidance(0.0), 35


def sampler_grid(
    method: Method, networks: Networks, stage: Train, recipe: Recipe, folder: Path
) -> Callable[[int], None]:
    """Pictures of the same held-out clips every time; the rows that do not change are drawn once, and kept:
    a stage that goes on draws its student only.

    All ranks draw, since a network may be spread over any of them, and rank 0 decodes and saves.
    """
    fixed: dict[str, Tensor] = {}
    guidance, steps = many_step_settings(recipe)
    few = None if stage.method.pretrains else stage.method.sampler
    noise_levels, many_step = schedule(recipe), recipe.network.family.teacher
    calls = many_step.calls(steps)
    clips = open_clips(recipe, "eval") if Shared.reads() else None
    count = grid_clips(recipe.data.frames, recipe.data.height, recipe.data.width)
    batch = Shared(clips).batch(0, count).to(device())
    noise = noise_of(recipe.seed, "grid", batch)

    def decode(x0: Tensor) -> Tensor:
        return shown(clips.decode(x0.to(device()))) if clips is not None and ranks.is_main() else x0

    def of_teacher() -> dict[str, Tensor]:
        assert few is not None
        teacher = method.roles.get("teacher") or networks("teacher")  # as wide and as spread
        return {
            f"teacher, {steps_text(few.steps)}": few_steps(teacher, noise_levels, batch, noise, few),
            f"teacher, {steps_text(calls)}": many_steps(
                teacher, noise_levels, batch, noise, guidance, many_step, steps
            ),
        }

    def draw(step: int) -> None:
        if not fixed:
            if few is not None:
                teacher = _identity(stage, recipe, folder)
                made_by = [recipe.seed, count, plain(guidance), steps, plain(few), teacher]
                rows = _kept(folder / "grids" / KEPT, made_by, of_teacher)
                fixed.update({label: decode(x0) for label, x0 in rows.items()})
            if clips is not None and ranks.is_main():
                video, control = clips.pixels(0, count)
                real = control_rows(recipe.control, control) | {"ground truth": video}
                fixed.update({label: shown(row) for label, row in real.items()})
        network = method.roles["student"]
        if few is None:
            x0 = many_steps(network, noise_levels, batch, noise, guidance, many_step, steps)
        else:
            x0 = few_steps(network, noise_levels, batch, noise, few)
        rows = {f"student, {steps_text(few.steps if few else calls)}": decode(x0)}
        if few is None:
            x0 = few_steps(network, noise_levels, batch, noise, ONE_STEP)
            rows[f"student, {steps_text(1)}"] = decode(x0)
        if ranks.is_main():
            grid(rows | fixed, folder / "grids" / f"step_{step:09d}.png")

    return draw


def _kept(path: Path, made_by: Any, draw: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Latents of the teacher's rows by label: those kept, else those that all ranks ``draw``."""
    said = json.dumps(made_by, sort_keys=True)
    found: dict[str, Tensor] | None = on_rank_zero(partial(_read, path, said))
    if found is not None:
        return found
    rows = {label: x0.cpu().contiguous() for label, x0 in draw().items()}

    def keep() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_tensors(rows, path, {"made_by": said, "order": json.dumps(list(rows))})

    on_rank_zero(keep)
    return rows


def _read(path: Path, said: str) -> dict[str, Tensor] | None:
    try:
        regular(path)
        metadata, tensors = read_metadata(path), load_file(path)
        order = json.loads(metadata["order"])
        return {label: tensors[label] for label in order} if metadata["made_by"] == said else None
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _identity(stage: Train, recipe: Recipe, folder: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the teacher's files: cheap, and a teacher that is another has another."""
    if stage.teacher_from is not None:
        files: tuple[Path, ...] = (folder.parent / stage.teacher_from / "student.safetensors",)
    else:
        files = teacher_files(recipe)
    there = [path for path in files if path.is_file()]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in there]

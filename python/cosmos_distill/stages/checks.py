"""What cannot work is refused before any work, with what to do about it. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cosmos_distill
from cosmos_distill.config import Evaluate, Export, Generate, Recipe, Stage, Train
from cosmos_distill.stages import folder
from cosmos_distill.stages.layout import problems
from cosmos_distill.stages.manifest import Refusal

# Pixels per latent element (time, space) and the network's patch (space) on top.
STRIDES = {
    "haar": (2, 4),
    "mini-cv4x4x4": (4, 4),
    "pixels": (1, 1),
    "cosmos-cv8x8x8": (8, 8),
    "wan2.1": (4, 8),
}
PATCH = 2
_FROM_FILES = ("depth", "seg", "keypoint")


def teacher_files(recipe: Recipe) -> tuple[Path, ...]:
    """Weights of the teacher: the recipe's own, or those shipped with the package for the preset.

    One merged file or sharded folder; or, of a folder as published (``base_model`` beside one
    ``<control>_control`` per control), the base and the control that the recipe names.
    """
    path = recipe.teacher
    if path is None:
        return (Path(cosmos_distill.__file__).parent / "weights" / f"{recipe.network}.safetensors",)
    if path.is_dir():
        for ending in (".safetensors", ".pt"):
            pair = path / f"base_model{ending}", path / f"{recipe.control}_control{ending}"
            if pair[0].is_file():
                return pair
    return (path,)


def needs_teacher(stage: Stage) -> bool:
    """Whether a stage reads the pre-trained teacher."""
    if isinstance(stage, Train):
        # Pre-training is the one method that makes a teacher instead of reading one.
        return stage.method.sampler is not None
    return isinstance(stage, Generate) or (isinstance(stage, Evaluate) and stage.teacher_from is None)


def depends_on(stage: Stage) -> list[str]:
    """Names of the stages whose output a stage reads."""
    match stage:
        case Train():
            names = [stage.start_from, stage.pairs_from]
        case Evaluate():
            names = [*stage.students.values(), stage.teacher_from]
        case Export():
            names = [stage.student_from]
        case _:
            names = []
    return [name for name in names if name is not None]


def latent_frames(recipe: Recipe) -> int:
    """T of a latent clip: the first frame alone, then one per temporal stride."""
    return 1 + (recipe.data.frames - 1) // STRIDES[recipe.data.tokenizer][0]


def pixel_frames(recipe: Recipe, latents: int) -> int:
    """Frames of a clip that its first ``latents`` latent frames stand for."""
    return 1 + (latents - 1) * STRIDES[recipe.data.tokenizer][0] if latents else 0


def check(recipe: Recipe, out: Path, *, ranks: int | None = None, args: Sequence[str] = ()) -> None:
    """Raise a :class:`Refusal` that names every reason for which the run cannot work.

    Args:
        ranks: Processes; None reads WORLD_SIZE as torchrun sets it.
        args: The command line, to be repeated behind torchrun where that is what is missing.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if ranks is None else ranks
    layout = problems(recipe, ranks, args)
    reasons = [
        *_stages(recipe),
        *layout,
        *_teacher(recipe),
        *_data(recipe),
        *folder.problems(out, tuple(recipe.stages)),
    ]
    if reasons:
        raise Refusal("\n".join(reasons))


def _stages(recipe: Recipe) -> Iterator[str]:
    from cosmos_distill.models.presets import AUTOENCODERS, PRESETS

    if recipe.network not in PRESETS | AUTOENCODERS:
        yield f"--network {recipe.network} is not a preset: choose one of {', '.join(PRESETS)}."
    kinds = {"pairs_from": Generate, "start_from": Train, "student_from": Train, "teacher_from": Train}
    seen: dict[str, Stage] = {}
    for name, stage in recipe.stages.items():
        wanted = [
            (f, getattr(stage, f), kind) for f, kind in kinds.items() if getattr(stage, f, None) is not None
        ]
        if isinstance(stage, Evaluate) and (stage.metrics is not None or stage.networks):
            from cosmos_distill.stages.measures import problems as unmeasurable

            yield from unmeasurable(name, stage)
        if isinstance(stage, Evaluate):
            wanted += [(f"students.{who}", source, Train) for who, source in stage.students.items()]
        for attribute, source, kind in wanted:
            if not isinstance(seen.get(source), kind):
                yield (
                    f"--stages.{name}.{attribute} {source}: no {kind.__name__} stage of that name comes "
                    f"before '{name}'; known here: {', '.join(seen) or 'none'}."
                )
        seen[name] = stage


def _teacher(recipe: Recipe) -> Iterator[str]:
    if not any(needs_teacher(stage) for stage in recipe.stages.values()):
        return
    missing = [str(path) for path in teacher_files(recipe) if not path.exists()]
    if recipe.teacher is None and missing:
        yield (
            f"the weights of {recipe.network} are not part of this package: give the pre-trained teacher "
            "with --teacher PATH (the merged base and control file, .safetensors or .pt, or a folder with "
            "base_model and <control>_control)."
        )
    elif missing:
        yield f"--teacher {recipe.teacher}: {', '.join(missing)} does not exist."


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    time, space = STRIDES[data.tokenizer]
    if (data.frames - 1) % time:
        below = 1 + (data.frames - 1) // time * time
        yield (
            f"--data.frames {data.frames}: the {data.tokenizer} tokenizer needs 1 + a multiple of {time} "
            f"frames; nearest are {below} and {below + time}."
        )
    for name in ("height", "width"):
        if getattr(data, name) % (space * PATCH):
            yield f"--data.{name} {getattr(data, name)} is not a multiple of {space * PATCH}."
    latents = latent_frames(recipe)
    if data.max_condition_frames >= latents:
        yield (
            f"--data.max-condition-frames {data.max_condition_frames} leaves nothing to generate of the "
            f"{latents} latent frames that {data.frames} frames give: choose at most {latents - 1}."
        )
    for name, stage in recipe.stages.items():
        if isinstance(stage, Generate) and stage.condition_frames >= latents:
            yield f"--stages.{name}.condition-frames {stage.condition_frames}: choose at most {latents - 1}."
        if isinstance(stage, Generate) and recipe.control is None:
            yield f"'{name}' writes pairs, which need a control: give one with --control."
        if isinstance(stage, Evaluate) and max(stage.condition_frames) > data.max_condition_frames:
            yield (
                f"--stages.{name}.condition-frames {' '.join(map(str, stage.condition_frames))}: at most "
                f"--data.max-condition-frames {data.max_condition_frames} are trained."
            )
        given: tuple[float, ...] = (
            getattr(stage.method, "condition_frames", ()) if isinstance(stage, Train) else ()
        )
        if len(given) > latents:
            yield (
                f"--stages.{name}.method.condition-frames {' '.join(map(str, given))} gives up to "
                f"{len(given) - 1} of {latents} latent frames: leave at least one to generate."
            )
    if data.tokenizer == "cosmos-cv8x8x8" and (
        data.tokenizer_path is None or not data.tokenizer_path.is_dir()
    ):
        yield (
            "the Cosmos tokenizer is not part of this package: give the folder that holds its encoder.jit, "
            "decoder.jit and mean_std.pt with --data.tokenizer-path."
        )
    if data.tokenizer == "wan2.1" and (data.tokenizer_path is None or not data.tokenizer_path.is_dir()):
        yield (
            "the Wan 2.1 tokenizer is not part of this package: give its folder in diffusers' format "
            "(config.json and safetensors weights) with --data.tokenizer-path."
        )
    if data.source == "folder" and data.root is None:
        yield "there are no clips to train on: give the folder that holds videos/ with --data.root."
    if data.root is not None and not data.root.is_dir():
        yield f"--data.root {data.root}: no such folder."
    if recipe.control in _FROM_FILES:
        if data.source != "folder":
            yield (
                f"--control {recipe.control} is read from files, and these clips come without them: give a "
                f"folder with videos/ and {recipe.control}/ with --data.source folder --data.root DIR, "
                "or choose --control edge or vis."
            )
        elif data.root is not None and data.root.is_dir() and not (data.root / recipe.control).is_dir():
            folder = data.root / recipe.control
            yield f"--control {recipe.control} needs the folder {folder}, which does not exist."

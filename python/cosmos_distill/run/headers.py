"""Headers of the files that somebody brought, held against the recipe before any work, in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from cosmos_distill import models, tokenizers
from cosmos_distill.arrays import named
from cosmos_distill.config import Export, Recipe, Stage, Train
from cosmos_distill.errors import Refusal
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run import inputs
from cosmos_distill.run.checks import needs_teacher, student_files, teacher_files
from cosmos_distill.run.networks import refuse_others
from cosmos_distill.run.sizes import denoiser


def refuse_misfits(recipe: Recipe, stages: Mapping[str, Stage]) -> None:
    """Look at the files that ``stages`` read. Collective in a pipeline, like a network's own.

    Raises:
        Refusal: the teacher, or weights that a student starts from, are damaged or of another network; the
            teacher says that it was trained in latents of another tokenizer; the tokenizer is damaged, not
            whole, or of another kind; an export wants official names, and the network has none.
    """
    on_rank_zero(partial(_tokenizer, recipe, stages))
    config = denoiser(recipe)
    for files in _networks(recipe, stages):
        if config is not None:
            refuse_others(config, files)
    if config is not None:
        _exports(config, stages)


def _networks(recipe: Recipe, stages: Mapping[str, Stage]) -> Iterator[tuple[Path, ...]]:
    if any(map(needs_teacher, stages.values())):
        yield teacher_files(recipe)
    for name, stage in stages.items():
        if isinstance(stage, Train) and stage.student is not None:
            yield student_files(recipe, name, stage.student)


def _exports(config: DiTConfig, stages: Mapping[str, Stage]) -> None:
    """Whether official files have names for the network."""
    wanted = [name for name, one in stages.items() if isinstance(one, Export) and one.names == "official"]
    if not wanted or config.family.names is None:
        return
    network = models.build(config, device="meta", seed=None)
    try:
        config.family.names.to_official([name for name, _ in network.named_parameters()])
    except ValueError as error:
        raise Refusal(f"--stages.{wanted[0]}.names official: {error}. Choose own.") from error


def _tokenizer(recipe: Recipe, stages: Mapping[str, Stage]) -> None:
    """The tokenizer's own files, and what the teacher says of the one that it was trained with."""
    data = recipe.data
    try:
        if any(inputs.reads(stage) for stage in stages.values()):
            tokenizers.check(data)
    except (ValueError, OSError, ImportError) as error:
        raise Refusal(f"--data.tokenizer-path: {error}") from error
    if denoiser(recipe) is None or not any(map(needs_teacher, stages.values())):
        return
    for path in teacher_files(recipe):
        if path.suffix != ".safetensors" or not path.is_file():
            continue
        try:
            said = named.metadata(path).get("data")
        except (ValueError, OSError) as error:
            raise Refusal(str(error)) from error
        trained = said.get("tokenizer") if isinstance(said, dict) else None
        if isinstance(trained, str) and trained != data.tokenizer:
            raise Refusal(
                f"--data.tokenizer {data.tokenizer}: {path} says that it was trained in latents of "
                f"{trained}: choose --data.tokenizer {trained}, or give another teacher with --teacher"
            )

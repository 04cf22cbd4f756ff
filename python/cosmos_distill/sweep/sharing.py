"""Stages that several runs have in common are made once and linked into the others. Torch-free."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from cosmos_distill.config import Recipe
from cosmos_distill.run.checks import depends_on
from cosmos_distill.run.manifest import Manifest, Output, configuration, sha256_of_listing
from cosmos_distill.run.runner import stage_status


def adopt(recipe: Recipe, out: Path, donors: Iterable[Path]) -> list[str]:
    """Link stages that other run folders have completed, and that this run would make alike, into ``out``.

    Files are published by replacing them, so that two names of one file never change together; only
    complete stages are linked, and nothing is written in those again.

    Returns:
        Names of the stages that ``out`` has complete now.
    """
    outputs: dict[str, Output] = {}
    donors = list(donors)
    for name, stage in recipe.stages.items():
        if any(source not in outputs for source in depends_on(stage)):
            continue
        here, state = out, stage_status(recipe, name, stage, out, outputs)[0]
        if state == "new":
            for donor in donors:
                if stage_status(recipe, name, stage, donor, outputs)[0] == "complete":
                    _link(donor / name, out / name)
                    state = "complete"
                    break
        if state == "complete":
            found = Manifest.read(here / name)
            assert found is not None and found.outputs is not None
            outputs[name] = found.outputs
    return list(outputs)


def _link(source: Path, target: Path) -> None:
    """A folder's files under a second name: all of them or none."""
    unfinished = target.with_name(f".{target.name}.linking")
    shutil.rmtree(unfinished, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, unfinished, copy_function=_copy)
    os.replace(unfinished, target)


def _copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target


def keys(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(name, key) of every stage: two runs make the same in a stage where its keys are equal. From the
    configuration alone, before anything is made, for runs of one sweep, which read the same files."""
    found: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        before = [found[source] for source in depends_on(stage)]
        files = [recipe.teacher, recipe.teacher_lora, recipe.data]
        made_from = [*files, recipe.seed, configuration(recipe, stage), *before]
        found[name] = sha256_of_listing([name, *map(repr, made_from)])
        yield name, found[name]

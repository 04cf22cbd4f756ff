"""Export stage: one network as a safetensors file that says everything a sampler needs to know, or in the
formats of others (:mod:`cosmos_distill.stages.published`)."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from cosmos_distill import __version__, text
from cosmos_distill.config import Data, Export, GivesFrames, Recipe, Train
from cosmos_distill.data import embeddings
from cosmos_distill.data.captions import negative_prompt
from cosmos_distill.files import sha256
from cosmos_distill.models.common import eight_bits, weights
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.ranges import places
from cosmos_distill.run.checks import needs_teacher, teacher_files
from cosmos_distill.run.manifest import ExportedFile, File, Manifest, plain, sha256_of_listing
from cosmos_distill.run.networks import DTYPES, schedule
from cosmos_distill.run.runner import Run
from cosmos_distill.run.sizes import trains_tokenizer
from cosmos_distill.sampling.exported import FORMAT, OF_TRAINING, beside
from cosmos_distill.sampling.samplers import evaluations
from cosmos_distill.stages import autoencoders, published
from cosmos_distill.stages.grids import many_step_settings
from cosmos_distill.storage import publish_tensors
from cosmos_distill.tokenizers import fingerprint


def run(name: str, stage: Export, run: Run, folder: Path) -> ExportedFile:
    """Write the student of ``stage.student_from``, alone. It lies on disk, whole, so rank 0 can do it."""
    write = autoencoders.export if trains_tokenizer(run.recipe) else _write
    return on_rank_zero(partial(write, stage, run, folder))


def _write(stage: Export, run: Run, folder: Path) -> ExportedFile:
    source = run.recipe.stages[stage.student_from]
    assert isinstance(source, Train)
    state, _ = weights.load(run.student(stage.student_from))
    dtype = DTYPES[stage.precision]
    tensors = (
        eight_bits.stored(state)
        if stage.precision == "fp8"
        else {key: value.to(dtype).contiguous() for key, value in state.items()}
    )
    said, parts = describe(run, source, stage), list[Path]()
    if stage.names == "own":
        path = publish_tensors(tensors, folder / "student.safetensors", said)
    elif stage.names == "official":
        carried = weights.load(teacher_files(run.recipe))[1] if needs_teacher(source) else {}
        distilled = not source.method.pretrains
        official = weights.to_official(tensors, run.recipe.network.family, carried, distilled=distilled)
        path = published.official(official, folder, said)
        parts = [beside(path)]
    else:
        path = published.pipeline(tensors, run, stage, folder, said)
        parts = sorted(p for p in path.parent.rglob("*") if p.is_file() and p != path)
    return ExportedFile(File.of(path, run.out), tuple(File.of(part, run.out) for part in parts))


def describe(run: Run, source: Train, stage: Export) -> dict[str, Any]:
    """What the file says of itself.

    ``sampler`` is ``few_step`` with guidance baked in for a student, and the schedule's many-step sampler
    (``teacher``) with its settings for a network that was trained to denoise.
    """
    recipe, negative = run.recipe, _negative_prompt(run.recipe)
    encoder = run.recipe.data.text_encoder
    few = source.method.sampler
    guidance, steps = many_step_settings(recipe)
    if source.method.pretrains:
        sampler = {"kind": "teacher", "steps": steps, "guidance": plain(guidance)}
        nfe = evaluations(recipe.network.family.teacher.calls(steps), guidance)
    else:
        sampler, nfe = {"kind": "few_step", **plain(few)}, few.steps
    return {
        "format": FORMAT,
        "network": plain(recipe.network),
        "control": recipe.control,
        # Nobody opens a path that a file names: checksums say what these led to.
        "data": {name: value for name, value in plain(recipe.data).items() if name not in OF_TRAINING}
        | plain(places(Data))
        | _given_frames(source)
        | ({} if negative is None else {"negative_prompt": ""}),
        "tokenizer": {"kind": recipe.data.tokenizer, "sha256": fingerprint(recipe.data)},
        "negative_prompt_sha256": sha256(negative) if isinstance(negative, Path) else None,
        "negative_prompt": negative if isinstance(negative, str) else None,
        "text_encoder": None
        if encoder is None
        else {"kind": text.kind_of(encoder), "sha256": embeddings.fingerprint(encoder)},
        "schedule": schedule(recipe).to_dict(),
        "sampler": sampler,
        "nfe": nfe,
        "guidance_baked_in": not source.method.pretrains,
        "precision": stage.precision,
        "names": stage.names,
        "provenance": {
            "version": __version__,
            "recipe_sha256": recipe_sha256(recipe),
            "seed": recipe.seed,
            "stages": {n: _stage(run, n) for n in recipe.stages if n in run.outputs},
        },
    }


def _given_frames(source: Train) -> dict[str, int]:
    """The most leading latent frames with which the student was trained: ``sample`` gives it no more."""
    if not isinstance(source.method, GivesFrames):
        return {}
    shares = source.method.condition_frames
    return {"max_condition_frames": max(n for n, share in enumerate(shares) if share)}


def _negative_prompt(recipe: Recipe) -> Path | str | None:
    """The embedding of a folder's negative prompt, or its text; other sources have theirs in ``data``."""
    return negative_prompt(recipe.data.negative_prompt) if recipe.data.own else None


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of the resolved recipe without the teacher's path, which differs between machines."""
    return sha256_of_listing([json.dumps(plain(recipe) | {"teacher": None}, sort_keys=True)])


def _stage(run: Run, name: str) -> dict[str, Any]:
    manifest = Manifest.read(run.out / name)
    assert manifest is not None
    teacher = {"teacher_sha256": manifest.inputs["teacher"]} if needs_teacher(run.recipe.stages[name]) else {}
    return {"manifest_sha256": sha256(run.out / name / "manifest.json"), "inputs": manifest.inputs, **teacher}

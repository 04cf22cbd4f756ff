"""Whether every control of a recipe has what it is made of, and suits the network. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from cosmos_distill import controls
from cosmos_distill.config import Data, Encode, Recipe
from cosmos_distill.config.controls import weights_of
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.errors import DataError
from cosmos_distill.families import title
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.run.sizes import denoiser


def videos(data: Data, recipe: Recipe) -> Iterator[str]:
    """Whether controls that are read from videos have them beside the clips of ``data``."""
    root, config = data.root, denoiser(recipe)
    mix = ControlMix.read(recipe.control, 1 if config is None else config.controls)
    try:
        mix.refuse_drawn_pairs(data)
    except DataError as error:
        yield f"--control {recipe.control}: {error}."
        return
    for name in mix.from_files(data):
        if not data.own:
            yield f"--control {recipe.control}: these clips come without videos. {controls.missing(name)}."
        elif data.source == "folder" and root is not None and root.is_dir() and not (root / name).is_dir():
            yield (
                f"--control {recipe.control} needs the folder {root / name}, which does not exist. "
                f"{controls.missing(name)}."
            )


def encoded(recipe: Recipe, config: DiTConfig) -> Iterator[str]:
    """Whether an Encode stage can keep the controls of a sample."""
    if config.controls > 1 and recipe.control is not None:
        for name, stage in recipe.stages.items():
            if isinstance(stage, Encode):
                yield (
                    f"stages.{name}: encoded clips have one control each, and {title(config)} takes "
                    f"{config.controls} at once: train it on the clips themselves, without this stage."
                )


def models(recipe: Recipe) -> Iterator[str]:
    """Whether the networks that compute controls are there."""
    for name, place in (recipe.data.control_models or {}).items():
        try:
            controls.check_model(name, place)
        except DataError as error:
            yield f"--data.control-models {name}: {error}."


def branches(control: str, config: DiTConfig) -> Iterator[str]:
    """Whether controls with weights suit the network's branches."""
    names, weights = tuple(weights_of(control)), weights_of(control)
    if config.controls == 1:
        if len(names) == 1 and weights[names[0]] != 1:
            yield f"--control {control}: one control alone has no share to be weighed: write {names[0]}."
        return
    order = config.published_controls
    example = ",".join(f"{name}:1" for name in order) or "edge:1,vis:1"
    if len(names) != config.controls:
        yield (
            f"--control {control}: {title(config)} has {config.controls} control branches: name a control "
            f"for each, in their order, those that are not used with the weight 0 ({example})."
        )
    elif set(names) == set(order) and names != order:
        yield (
            f"--control {control}: the branches of the published network are {', '.join(order)} in this "
            "order: write the controls so."
        )

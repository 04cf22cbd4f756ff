"""Where the teacher's weights come from."""

import dataclasses
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_distill.config import Recipe
from cosmos_distill.errors import Refusal
from cosmos_distill.models.common import weights
from cosmos_distill.run.checks import check, teacher_files
from cosmos_distill.run.networks import load_teacher
from tests.run.commands import RECIPE


@pytest.fixture
def recipe() -> Recipe:
    return runpy.run_path(str(RECIPE))["recipe"](scale="smoke")


@pytest.fixture
def published(recipe: Recipe, tmp_path: Path) -> Path:
    """A folder as published: base_model beside the controls, each file with the prefix ``net.``."""
    (shipped,) = teacher_files(recipe)
    state, _ = weights.load(shipped)
    files: dict[str, dict[str, torch.Tensor]] = {"base_model": {}, "edge_control": {}}
    for official, value in weights.to_official(state, recipe.network.family).items():
        file = "base_model" if official.startswith("base_model.") else "edge_control"
        files[file][official.removeprefix("base_model.")] = value.contiguous()
    folder = tmp_path / "teacher"
    folder.mkdir()
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def test_folder_as_published_is_base_and_the_recipes_control(recipe: Recipe, published: Path) -> None:
    own = load_teacher(dataclasses.replace(recipe, teacher=published))
    for ours, theirs in zip(load_teacher(recipe).parameters(), own.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_missing_control_is_named(recipe: Recipe, published: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"vis_control\.safetensors does not exist"):
        check(dataclasses.replace(recipe, teacher=published, control="vis"), tmp_path / "out")

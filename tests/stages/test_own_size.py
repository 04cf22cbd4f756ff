"""A network of one's own size is trained, exported, drawn from, taught from and consolidated; nothing but its
files is needed for that."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cosmos_distill import cli
from cosmos_distill.arrays.named import metadata
from cosmos_distill.config import Export
from cosmos_distill.families import described
from cosmos_distill.models.transfer1.config import Transfer1Config
from cosmos_distill.run.manifest import ExportedFile
from cosmos_distill.sampling.exported import read
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.sample import draw
from tests.fields.specimens import PRETRAIN, TRANSFER1, Stages

OWN = Transfer1Config(
    width=24, blocks=3, control_blocks=2, heads=2, head_dim=12, adaln_rank=4, text_dim=32, text_tokens=8,
    max_frames=8, max_height=16, max_width=16, timestep_scale=10.0, hint_widths=(8,),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    stages = {**PRETRAIN.stages, "export": Export(student_from="pretrain")}
    recipe = dataclasses.replace(PRETRAIN, network=OWN, stages=stages)
    return Stages(recipe, tmp_path_factory.mktemp("own") / "run")


@pytest.fixture(scope="module")
def exported(trained: Stages) -> Path:
    output = trained.outputs["export"]
    assert isinstance(output, ExportedFile)
    return trained.out / output.student.path


def test_the_export_carries_the_sizes(exported: Path) -> None:
    assert metadata(exported)["network"] == described(OWN)
    assert read(exported).network == OWN


def test_clips_are_drawn_from_it(exported: Path, tmp_path: Path) -> None:
    options = SampleOptions(clips=2, batch=2, out=tmp_path / "clips")
    assert [path.name for path in draw(exported, options)] == ["clip-000.mp4", "clip-001.mp4"]


def test_it_teaches_a_student_of_its_size(exported: Path, tmp_path: Path) -> None:
    stages = {"dmd2": dataclasses.replace(TRANSFER1.stages["dmd2"], start_from=None)}
    recipe = dataclasses.replace(TRANSFER1, network=OWN, teacher=exported, stages=stages)
    assert (Stages(recipe, tmp_path / "run").out / "dmd2").is_dir()


def test_its_checkpoint_is_consolidated(trained: Stages, exported: Path, tmp_path: Path) -> None:
    (newest, *_) = sorted((trained.out / "pretrain" / "checkpoints").glob("step_*"), reverse=True)
    whole = tmp_path / "whole.safetensors"
    assert cli.main(["consolidate", str(newest), str(whole)]) == cli.OK
    assert load_file(whole).keys() == load_file(exported).keys()

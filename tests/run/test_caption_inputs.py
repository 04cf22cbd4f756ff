"""Captions, their encoder and a negative prompt that is a text count by content, wherever they lie."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cosmos_distill.config import Data, Evaluate, Generate, Guidance, Recipe
from cosmos_distill.run.inputs import fingerprints
from tests.data.folders import write_clip

GENERATE = Generate(pairs=2, guidance=Guidance(1.0))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    root, encoder = tmp_path / "clips", tmp_path / "encoder"
    (root / "captions").mkdir(parents=True)
    for number in range(5):
        write_clip(root / "videos" / f"c{number}.mp4", 5, level=9 * number)
        (root / "captions" / f"c{number}.txt").write_text(f"car {number}")
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "t5", "d_model": 64}))
    for name in ("model.safetensors", "spiece.model"):
        (encoder / name).write_text(name)
    return Recipe(
        network="transfer1-smoke",
        data=Data(
            root=root, tokenizer="haar", frames=5, height=32, width=32, text_encoder=encoder,
            negative_prompt="an old game",
        ),
        stages={"generate": GENERATE, "evaluate": Evaluate(clips=2, guidance=Guidance(1.0), students={})},
    )  # fmt: skip


def of(
    recipe: Recipe, stage: str = "generate", **data: object
) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    changed = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, **data))  # type: ignore[arg-type]
    found, record = fingerprints(changed, recipe.stages[stage])
    return found, record["clips"]


def test_places_do_not_count(recipe: Recipe, tmp_path: Path) -> None:
    before, root = of(recipe), recipe.data.root
    assert root is not None
    assert before[0].keys() == {"clips", "negative_prompt", "text_encoder"}
    assert before[1]["c0"].keys() == {"video", "caption"}
    shutil.rmtree(root / "captions")
    lines = [json.dumps({"video": f"c{number}.mp4", "text": f" car {number}\n"}) for number in range(5)]
    (root / "captions.jsonl").write_text("\n".join(lines))
    shutil.copytree(tmp_path / "encoder", tmp_path / "moved")
    (tmp_path / "negative.txt").write_text("an old game\n")
    negative = str(tmp_path / "negative.txt")
    assert of(recipe, text_encoder=tmp_path / "moved", negative_prompt=negative) == before


def test_contents_count_for_the_stages_that_read_them(recipe: Recipe) -> None:
    train, held = of(recipe), of(recipe, "evaluate")
    root, encoder = recipe.data.root, recipe.data.text_encoder
    assert root is not None and encoder is not None
    (root / "captions" / "c4.txt").write_text("a van")  # held out
    assert of(recipe) == train
    changed = of(recipe, "evaluate")
    assert changed[0]["clips"] != held[0]["clips"] and changed[1]["c4"]["caption"] != held[1]["c4"]["caption"]
    (encoder / "model.safetensors").write_text("others")
    assert of(recipe)[0]["text_encoder"] != train[0]["text_encoder"]
    assert of(recipe, negative_prompt="fog")[0]["negative_prompt"] != train[0]["negative_prompt"]


def test_an_encoder_that_nothing_needs_does_not_count(recipe: Recipe) -> None:
    root = recipe.data.root
    assert root is not None
    (root / "t5_xxl").mkdir()
    for number in range(5):
        np.savez(root / "t5_xxl" / f"c{number}.npz", t5_text_embeddings=np.ones((3, 64), np.float32))
    found, clips = of(recipe, negative_prompt="")
    assert found.keys() == {"clips"} and clips["c0"].keys() == {"video", "text"}
    assert of(recipe, negative_prompt="", text_encoder=None) == (found, clips)

"""Depth is what the user's network says of every frame, drawn over the whole clip as the published pipeline
draws it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_distill import controls
from cosmos_distill.controls.depth import shaded
from cosmos_distill.data.errors import DataError
from cosmos_distill.vision import depth
from tests import lanes
from tests.vision import models

lanes.require("transformers")


@pytest.fixture
def frames() -> np.ndarray:
    random = np.random.default_rng(0)
    found: np.ndarray = random.integers(0, 256, (3, 20, 36, 3), np.uint8)
    found[1, :, 18:] = 0
    return found


def published(folder: Path, model: torch.nn.Module, frames: np.ndarray) -> np.ndarray:
    """The steps of the published pipeline, written out: processor, network, bicubic to the frame's size."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    found = []
    for frame in frames:
        with torch.no_grad():
            said = model(**processor(images=Image.fromarray(frame), return_tensors="pt")).predicted_depth
        said = torch.nn.functional.interpolate(said[None], frame.shape[:2], mode="bicubic")
        found.append(said[0, 0].numpy())
    whole = np.stack(found)
    levels = (whole - whole.min()) / (whole.max() - whole.min() + 1e-8) * 255.0
    return levels.astype(np.uint8)


def test_it_is_the_published_pipeline(tmp_path: Path, frames: np.ndarray) -> None:
    model = models.depth(tmp_path)
    found = controls.compute("depth", frames, models={"depth": tmp_path})
    assert found.shape == frames.shape and found.dtype == np.uint8 and found.min() == 0
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()
    wanted = published(tmp_path, model, frames)
    assert np.abs(found[..., 0].astype(int) - wanted.astype(int)).max() <= 1
    assert len(np.unique(found)) > 20


def test_near_is_bright_of_a_network_of_distances_too(tmp_path: Path, frames: np.ndarray) -> None:
    models.depth(tmp_path / "relative")
    model = models.depth(tmp_path / "metric", metric=True)
    assert json.loads((tmp_path / "metric/config.json").read_text())["depth_estimation_type"] == "metric"
    distance = np.stack([np.asarray(n) for n in depth.load(tmp_path / "metric")(frames)])
    far = published(tmp_path / "metric", model, frames).astype(int)
    assert np.corrcoef(distance.ravel(), far.ravel())[0, 1] < -0.5  # the inverse of a distance


def test_a_clip_of_one_depth_is_black() -> None:
    assert not shaded(np.full((2, 4, 4), 3.0, np.float32)).any()


def test_what_is_no_network_for_depth_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no config\.json: give the folder of a model as transformers"):
        controls.check_model("depth", tmp_path)
    models.segformer(tmp_path / "seg")
    with pytest.raises(DataError, match="holds SegformerForSemanticSegmentation: a model for depth"):
        controls.check_model("depth", tmp_path / "seg")
    models.depth(tmp_path / "bare")
    (tmp_path / "bare/model.safetensors").unlink()
    with pytest.raises(DataError, match="has no weights in safetensors"):
        controls.check_model("depth", tmp_path / "bare")
    said = json.loads((tmp_path / "bare/config.json").read_text()) | {"auto_map": {"AutoModel": "x.Y"}}
    (tmp_path / "bare/config.json").write_text(json.dumps(said))
    with pytest.raises(DataError, match="code of its own"):
        controls.check_model("depth", tmp_path / "bare")


def test_a_missing_library_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.depth(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"needs transformers to run: pip install 'cosmos-distill\[vision\]'"):
        depth.load(tmp_path)
    monkeypatch.setattr("cosmos_distill.vision.find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs transformers to run"):
        controls.check_model("depth", tmp_path)


def test_torchvision_is_not_imported(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.depth(tmp_path)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert depth.load(tmp_path)(frames).shape == (3, 20, 36)


def test_only_controls_that_need_a_network_take_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'edge' is computed from pixels, and no network"):
        controls.check_model("edge", tmp_path)
    with pytest.raises(DataError, match="'lidar' comes from files, and no network"):
        controls.check_model("lidar", tmp_path)

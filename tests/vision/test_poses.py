"""Key points are what the user's network finds of every person, drawn as the published pipeline does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_distill import controls
from cosmos_distill.controls import keypoint
from cosmos_distill.data.errors import DataError
from cosmos_distill.vision import poses
from tests import lanes
from tests.vision import models

lanes.require("transformers")


@pytest.fixture
def frames() -> np.ndarray:
    found: np.ndarray = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    return found


def person(points: int = 17, **at: tuple[float, float]) -> np.ndarray:
    """Somebody of whom some points (p3=(x, y)) are certain."""
    found = np.zeros((points, 3))
    for name, (x, y) in at.items():
        found[int(name[1:])] = (x, y, 0.9)
    return found


def test_it_is_the_network_asked_by_hand(tmp_path: Path, frames: np.ndarray) -> None:
    from transformers import AutoImageProcessor

    model = models.vitpose(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    whole = [[[0.0, 0.0, 60.0, 40.0]]]
    for frame, people in zip(frames, poses.load(tmp_path)(frames), strict=True):
        with torch.no_grad():
            said = model(**processor(Image.fromarray(frame), boxes=whole, return_tensors="pt"))
        wanted = processor.post_process_pose_estimation(said, boxes=whole)[0][0]
        assert len(people) == 1 and people[0].shape == (17, 3)
        assert np.allclose(people[0][:, :2], wanted["keypoints"]) and np.allclose(
            people[0][:, 2], wanted["scores"]
        )
    found = controls.compute("keypoint", frames, models={"keypoint": tmp_path})
    assert found.shape == frames.shape and found.dtype == np.uint8


def test_a_detector_says_where_people_are(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.vitpose(tmp_path)
    models.yolos(tmp_path / "detector")
    monkeypatch.setattr(poses, "_CERTAIN", 1.1)
    assert poses.load(tmp_path)(frames) == [[], []]
    assert not controls.compute("keypoint", frames, models={"keypoint": tmp_path}).any()
    monkeypatch.setattr(poses, "_CERTAIN", 0.0)
    found = poses.load(tmp_path)(frames)
    assert all(1 <= len(people) <= 3 and people[0].shape == (17, 3) for people in found)
    (tmp_path / "detector/model.safetensors").unlink()
    with pytest.raises(DataError, match="detector has no weights in safetensors"):
        controls.check_model("keypoint", tmp_path)


def test_joints_and_limbs_have_the_published_colours() -> None:
    # Right shoulder, elbow and wrist; the left shoulder, and with both the neck between them.
    one = person(p6=(10, 10), p8=(10, 30), p10=(30, 30), p5=(40, 10))
    image = keypoint.drawn([one], 50, 60)
    assert tuple(image[20, 10]) == (255, 170, 0)  # upper arm
    assert tuple(image[30, 20]) == (255, 255, 0)  # forearm
    assert tuple(image[10, 17]) == (255, 0, 0) and tuple(image[10, 33]) == (
        255,
        85,
        0,
    )  # shoulders to the neck
    assert not image[40:].any()
    one[10, 2] = 0.59
    assert not keypoint.drawn([one], 50, 60)[30, 20].any()  # nobody is sure of the wrist
    alone = keypoint.drawn([person(p0=(20, 20))], 40, 40)
    assert {tuple(c) for c in np.unique(alone.reshape(-1, 3), axis=0)} == {(0, 0, 0), (255, 0, 0)}
    assert (alone.any(-1).nonzero()[0].min(), alone.any(-1).nonzero()[0].max()) == (18, 22)  # a radius of 2


def test_hands_and_face_are_drawn_and_feet_are_not() -> None:
    hand = {f"p{91 + i}": (5.0 + 4 * i, 10.0 + 10 * (i > 0)) for i in range(21)}
    image = keypoint.drawn([person(133, **hand)], 40, 100)
    colours = {tuple(c) for c in np.unique(image.reshape(-1, 3), axis=0)}
    assert {(255, 76, 0), (204, 255, 0), (0, 255, 102), (0, 102, 255), (255, 0, 76)} <= colours
    face = keypoint.drawn([person(133, p30=(10, 10))], 20, 20)
    assert {tuple(c) for c in np.unique(face.reshape(-1, 3), axis=0)} == {(0, 0, 0), (255, 255, 255)}
    assert not keypoint.drawn([person(133, p17=(10, 10), p22=(5, 5))], 20, 20).any()


def test_a_network_of_other_points_is_refused(tmp_path: Path) -> None:
    models.vitpose(tmp_path, points=12)
    with pytest.raises(
        DataError, match="finds 12 key points, and what is drawn are the 17 of COCO or the 133"
    ):
        poses.load(tmp_path)
    with pytest.raises(DataError, match="holds VitPoseForPoseEstimation: a model for depth"):
        controls.check_model("depth", tmp_path)

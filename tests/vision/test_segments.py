"""Segments are what the user's network finds, followed through the clip, and drawn as the published pipeline
draws them."""

from __future__ import annotations

import colorsys
import tracemalloc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cosmos_distill import controls
from cosmos_distill.controls import seg
from cosmos_distill.data.errors import DataError
from cosmos_distill.vision import segments
from cosmos_distill.vision.segments import Segments
from tests import lanes
from tests.vision import models

lanes.require("transformers")


@pytest.fixture
def frames() -> np.ndarray:
    found: np.ndarray = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)
    return found


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_every_class_is_a_segment_of_the_whole_clip(tmp_path: Path, frames: np.ndarray) -> None:
    """Against the network asked by hand."""
    from transformers import AutoImageProcessor

    model = models.segformer(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        said = model(**processor(images=[Image.fromarray(f) for f in frames], return_tensors="pt"))
    labels = torch.stack(processor.post_process_semantic_segmentation(said, [(24, 32)] * 3)).numpy()
    found = segments.load(tmp_path)(frames).dense()
    there = [n for n in range(5) if (labels == n).any()]
    assert len(found) == len(there) > 1
    for mask, label in zip(found, there, strict=True):
        assert (mask == (labels == label)).all()


def test_mask2former_is_taken_as_it_is(tmp_path: Path, frames: np.ndarray) -> None:
    models.mask2former(tmp_path)
    found = segments.load(tmp_path)(frames).dense()
    assert found.shape[1:] == (3, 24, 32) and found.any()
    assert found.sum(0).max() == 1  # a pixel has one class


def test_sam_finds_masks_on_a_grid(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.sam(tmp_path)
    monkeypatch.setattr(segments, "POINTS", 4)
    monkeypatch.setattr(segments, "QUALITY", -100.0)
    monkeypatch.setattr(segments, "STABILITY", -1.0)
    found = segments.load(tmp_path)(frames).dense()
    assert found.shape[1:] == (3, 24, 32) and len(found)
    for frame in range(3):
        here = [mask for mask in found[:, frame] if mask.any()]
        same = segments.overlaps(np.stack(here), np.stack(here)) - np.eye(len(here))
        assert same.max() <= segments.OVERLAP
    monkeypatch.setattr(segments, "QUALITY", 100.0)
    assert len(segments.load(tmp_path)(frames)) == 0


def test_sam_2_without_torchvision_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "sam2", "architectures": ["Sam2Model"]}')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("cosmos_distill.vision.segments.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"SAM 2 needs torchvision, .* or give SAM, Mask2Former or Segformer"):
        controls.check_model("seg", tmp_path)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="has no build for every build of torch")
def test_sam_2_finds_masks_where_torchvision_is_installed(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    models.sam2(tmp_path)
    controls.check_model("seg", tmp_path)
    monkeypatch.setattr(segments, "QUALITY", -100.0)
    monkeypatch.setattr(segments, "STABILITY", -1.0)
    found = segments.load(tmp_path)(frames)
    assert found.shape == (3, 24, 32) and len(found) and max(found.sizes)


def test_a_mask_that_is_unsure_or_said_twice_goes() -> None:
    sure, unsure = torch.full((4, 4), -9.0), torch.full((4, 4), -0.5)
    sure[:2] = 9.0
    unsure[:2] = 0.5
    assert segments.stability(torch.stack([sure, unsure])).tolist() == [1.0, 0.0]
    masks = np.stack(
        [square(8, 8, 0, 0, 4), square(8, 8, 0, 0, 4), square(8, 8, 4, 4, 3), np.zeros((8, 8), bool)]
    )
    kept = segments.distinct(masks, np.array([0.5, 0.9, 0.7, 1.0]))
    assert len(kept) == 2 and (kept == masks[[1, 2]]).all()


def test_a_segment_is_followed_while_it_overlaps() -> None:
    """Two squares cross the clip, one of them pauses, and the order in which they are found changes."""
    right = [square(10, 20, 0, t, 5) for t in range(4)]
    left = [square(10, 20, 5, 12 - t, 5) for t in range(4)]
    found = segments.followed(
        [
            np.stack([right[0], left[0]]),
            np.stack([left[1], right[1]]),
            np.stack([right[2]]),
            np.stack([left[3], right[3]]),
        ],
        (4, 10, 20),
    ).dense()
    assert len(found) == 3
    assert (found[0] == np.stack(right)).all()
    assert (found[1][:2] == np.stack(left[:2])).all() and not found[1][2:].any()
    assert (found[2][3] == left[3]).all() and not found[2][:3].any()
    nothing = segments.followed([segments.none((4, 4))] * 2, (2, 4, 4))
    assert len(nothing) == 0 and nothing.dense().shape == (0, 2, 4, 4)


def test_segments_of_a_long_clip_take_little_memory() -> None:
    """Far less than all of their masks."""
    shape, many = (64, 200, 192), 40
    at = [(4 * n, 9 * n % 150, 10 + n % 20) for n in range(many)]

    def masks() -> Iterator[np.ndarray]:
        for _ in range(shape[0]):
            yield np.stack([square(*shape[1:], *place) for place in at])

    tracemalloc.start()
    found = segments.followed(masks(), shape)
    video = seg.painted(found, seg.Drawing(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == many and peak < many * np.prod(shape) / 2
    assert found.sizes == [shape[0] * side * side for _, _, side in at]
    assert video[:, 3, 3].all(0).any() and not video[:, 199, 0].any()


def test_a_mask_is_kept_to_the_pixel() -> None:
    random = np.random.default_rng(0)
    dense = random.random((3, 2, 13, 21)) > 0.8
    dense[1, 0] = False
    dense[2, 1] = True
    found = Segments.of(dense)
    assert (found.dense() == dense).all() and 0 not in found.masks[1]
    assert found.sizes == [int(one.sum()) for one in dense]


def test_smaller_segments_are_drawn_over_larger_ones() -> None:
    large, small = np.ones((2, 8, 8), bool), np.stack([square(8, 8, 2, 2, 3)] * 2)
    for masks in (np.stack([large, small]), np.stack([small, large])):
        video = seg.painted(Segments.of(masks), seg.Drawing(3))
        colours = np.unique(video.reshape(-1, 3), axis=0)
        assert len(colours) == 2 and (video[:, 2:5, 2:5] == video[0, 2, 2]).all()
        assert (video[0, 0, 0] != video[0, 2, 2]).any()
    assert not seg.painted(Segments((2, 8, 8)), seg.Drawing(0)).any()


def test_colours_have_the_published_ranges() -> None:
    masks = np.eye(100, dtype=bool).reshape(100, 1, 10, 10)
    colours = seg.painted(Segments.of(masks), seg.Drawing(1)).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 95
    hsv = np.array([colorsys.rgb_to_hsv(*(c / 255)) for c in colours])
    assert (
        hsv[:, 1].min() > 0.08
        and hsv[:, 2].min() > 0.19
        and hsv[:, 2].max() > 0.95
        and np.ptp(hsv[:, 0]) > 0.9
    )
    assert (seg.painted(Segments.of(masks), seg.Drawing(1)).reshape(-1, 3) == colours).all()
    assert (seg.painted(Segments.of(masks), seg.Drawing(2)).reshape(-1, 3) != colours).any()


def test_training_draws_how_many_segments_there_are_from_none_to_all() -> None:
    masks = np.eye(4, dtype=bool).reshape(4, 1, 2, 2)
    counts = []
    for u in np.random.default_rng(0).random((400, controls.DRAWS)):
        drawing = seg.draw(u)
        counts.append(int(seg.painted(Segments.of(masks), drawing).any(-1).sum()))
        assert (
            seg.painted(Segments.of(masks), drawing).tobytes()
            == seg.painted(Segments.of(masks), drawing).tobytes()
        )
    assert set(counts) == {0, 1, 2, 3, 4} and min(map(counts.count, range(5))) > 50
    many = np.eye(144, dtype=bool).reshape(144, 1, 12, 12)
    assert seg.painted(Segments.of(many), seg.Drawing(0)).any(-1).sum() == seg.MOST
    assert seg.painted(Segments.of(many), seg.Drawing(0, 1 - 1e-9)).any(-1).sum() == seg.MOST


def test_the_control_is_the_same_for_the_same_frames(tmp_path: Path, frames: np.ndarray) -> None:
    models.segformer(tmp_path)
    one, two = (controls.compute("seg", frames, models={"seg": tmp_path}) for _ in range(2))
    assert one.shape == frames.shape and (one == two).all() and one.any()

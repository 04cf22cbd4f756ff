"""Pictures hold the pixels that went in, and curves the numbers."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from cosmos_distill.train.visuals import curves, grid, grid_clips, shown


def test_every_frame_is_in_the_picture_enlarged_without_blur(tmp_path: Path) -> None:
    # Every (row, sample, frame) has a colour of its own.
    videos = {}
    for row in range(3):
        video = torch.zeros(2, 3, 5, 16, 24, dtype=torch.uint8)
        for sample in range(2):
            for frame in range(5):
                colour = torch.tensor([60 + 60 * row, 100 + 80 * sample, 10 + 50 * frame], dtype=torch.uint8)
                video[sample, :, frame] = colour[:, None, None]
        videos[f"row {row}"] = video
    path = grid(videos, tmp_path / "grids" / "step.png")
    pixels = numpy.asarray(Image.open(path))
    colours, counts = numpy.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    found = {tuple(int(c) for c in colour): int(n) for colour, n in zip(colours, counts, strict=True)}
    size = 16 * 6 * 24 * 6  # the smaller side grows to at least 96
    for row in range(3):
        for sample in range(2):
            for frame in range(5):
                expected = size if frame in (0, 2, 4) else 0
                assert found.get((60 + 60 * row, 100 + 80 * sample, 10 + 50 * frame), 0) == expected
    assert [p.name for p in path.parent.iterdir()] == ["step.png"]


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    video = torch.zeros(1, 3, 2, 8, 8, dtype=torch.uint8)
    for rows in ({}, {"a": video[0]}, {"a": video, "b": video[..., :4]}):
        with pytest.raises(ValueError, match=r"\[B, 3, F, H, W\]"):
            grid(rows, tmp_path / "grid.png")


def test_curves_are_one_panel_per_loss_with_its_values(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    records: list[dict[str, Any]] = [
        {"step": s, "wall": 0.0, "loss/vsd": 1000.0 / s, "lr/student": 1.0} for s in range(1, 101)
    ]
    records[49]["loss/<gan>"] = 0.5
    records.insert(60, {"step": 60, "wall": 0.0, "nonfinite": "loss/vsd"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    svg = ElementTree.fromstring(curves({"dmd2": path, "empty": tmp_path / "none"}))
    name = "{http://www.w3.org/2000/svg}"
    texts = [element.text for element in svg.iter(f"{name}text")]
    assert {"dmd2: loss/vsd (log)", "dmd2: loss/<gan>", "1e+03", "10", "step 100"} <= set(texts)
    assert len(svg.findall(f"{name}g")) == 2
    lines = [element.get("points", "").split() for element in svg.iter(f"{name}polyline")]
    assert sorted(len(points) for points in lines) == [1, 1, 100, 100]
    # On a logarithmic axis, 1000/s falls by half its height between step 1 and step 10.
    thin = [float(point.split(",")[1]) for point in max(lines, key=len)]
    assert thin[9] - thin[0] == pytest.approx((thin[-1] - thin[0]) / 2, abs=0.2)
    ticks = [e for e in svg.iter(f"{name}path") if e.get("stroke") == "#c83232"]
    assert len(ticks) == 1


def test_a_grid_that_is_drawn_often_shows_as_many_clips_as_are_decoded_soon() -> None:
    sizes = ((5, 32, 32), (121, 704, 1280), (93, 480, 832))
    assert [grid_clips(*size) for size in sizes] == [4, 1, 3]
    video = torch.arange(5, dtype=torch.uint8).view(1, 1, 5, 1, 1).expand(2, 3, 5, 4, 4)
    assert shown(video)[0, 0, :, 0, 0].tolist() == [0, 2, 4]

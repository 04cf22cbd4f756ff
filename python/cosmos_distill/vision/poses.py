"""Key points of the people in frames, by ViTPose of transformers.

A pose network looks at one person. Where people are, says a model of transformers for object detection with a
class ``person``, which lies in ``detector`` in its folder; without one, the whole frame is one person's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_distill import vision
from cosmos_distill.data.errors import DataError

WHAT = "a model for poses (ViTPose), with a model for object detection in detector/ in it"
ARCHITECTURES = ("ForPoseEstimation",)
_DETECTORS = ("ForObjectDetection",)
BODY, WHOLE_BODY = 17, 133
"""Key points of COCO, and of COCO-WholeBody: body, feet, face and hands."""
_WHOLE_BODY_EXPERT = 5
"""Of ViTPose+, whose experts are data sets: COCO is 0, COCO-WholeBody 5."""
_CERTAIN = 0.5
"""Least score of a person."""
People = list[np.ndarray]
"""Of one frame; each [key points, 3]: x and y in pixels, and a score."""


def check(folder: Path) -> None:
    """Raises DataError unless the folder holds such a model."""
    vision.check(folder, WHAT, ARCHITECTURES)
    if (folder / "detector").is_dir():
        vision.check(folder / "detector", "a model for object detection", _DETECTORS)


def load(folder: Path) -> Callable[[np.ndarray], list[People]]:
    """A function from frames, RGB uint8 [F, H, W, 3], to the people in each.

    Raises:
        DataError: the folder holds no such model.
    """
    import torch

    check(folder)
    with vision.loading(folder, WHAT) as transformers:
        where = vision.device()
        model = transformers.VitPoseForPoseEstimation.from_pretrained(
            folder, use_safetensors=True, **vision.SAFE
        )
        model = model.eval().to(where)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **vision.SAFE)
        boxes_of = _detector(folder / "detector", transformers)
    points = int(model.config.num_labels)
    if points not in (BODY, WHOLE_BODY):
        raise DataError(
            f"{folder} finds {points} key points, and what is drawn are the {BODY} of COCO or the "
            f"{WHOLE_BODY} of COCO-WholeBody: give a model of one of these"
        )
    experts = getattr(model.config.backbone_config, "num_experts", 1) > 1

    @torch.no_grad()
    def people(frames: np.ndarray) -> list[People]:
        found: list[People] = []
        pictures = vision.pictures(frames)
        for picture, boxes in zip(pictures, boxes_of(pictures), strict=True):
            if not boxes:
                found.append([])
                continue
            seen = processor(picture, boxes=[boxes], return_tensors="pt").to(where)
            if experts:
                expert = 0 if points == BODY else _WHOLE_BODY_EXPERT
                seen["dataset_index"] = torch.full((len(boxes),), expert, device=where)
            (persons,) = processor.post_process_pose_estimation(model(**seen), boxes=[boxes])
            joined = [torch.cat([p["keypoints"], p["scores"][:, None]], 1) for p in persons]
            found.append([one.float().cpu().numpy() for one in joined])
        return found

    return people


def _detector(folder: Path, transformers: Any) -> Callable[[list[Any]], list[Any]]:
    """A function from pictures to the boxes of the people in each, [x, y, width, height]."""
    if not folder.is_dir():
        return lambda pictures: [[[0.0, 0.0, *map(float, p.size)]] for p in pictures]
    run = vision.pipeline(transformers, "object-detection", "AutoModelForObjectDetection", folder)

    def boxes(pictures: list[Any]) -> list[Any]:
        found = []
        for seen in run(pictures, threshold=_CERTAIN):
            people = [one["box"] for one in seen if str(one["label"]).lower() == "person"]
            corners = [(b["xmin"], b["ymin"], b["xmax"] - b["xmin"], b["ymax"] - b["ymin"]) for b in people]
            found.append([list(map(float, c)) for c in corners if c[2] > 0 and c[3] > 0])
        return found

    return boxes

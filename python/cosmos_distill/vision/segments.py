"""Segments of a clip by a model of transformers: one mask per segment that goes through all of its frames.

Models that know classes (Mask2Former, Segformer and others) give a segment for every class that they find.
Models that know none (SAM, SAM 2) find everything in each frame by points on a grid, as published (Kirillov
et al. 2023, arXiv 2304.02643, appendix D), and a segment is followed from a frame to the next by the overlap
of its masks. A clip may have hundreds of segments: their masks are kept as bits, within their bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from cosmos_distill import vision
from cosmos_distill.data.errors import DataError

WHAT = "a model for segmentation (SAM, Mask2Former, Segformer)"
ARCHITECTURES = (
    "ForUniversalSegmentation", "ForSemanticSegmentation", "ForInstanceSegmentation", "ForSegmentation",
    "SamModel", "Sam2Model", "Sam2VideoModel",
)  # fmt: skip
POINTS = 32
"""Of the grid along each side of a frame."""
QUALITY, STABILITY = 0.88, 0.95
"""Least overlap with the truth that the network expects of a mask, and least overlap of the mask with itself
at two thresholds, :data:`_OFFSET` above and below its own."""
OVERLAP = 0.7
"""Of two masks of a frame that overlap more, the worse goes."""
FOLLOWED = 0.5
"""Least overlap of a segment's masks in two frames after each other."""
_OFFSET = 1.0
_PROMPTS = 64
"""Points at once."""


@dataclass(frozen=True)
class Mask:
    """A segment in one frame: the bits of the rectangle that bounds it."""

    top: int
    left: int
    height: int
    width: int
    pixels: int
    """How many it has."""
    bits: np.ndarray
    """uint8, eight pixels of the rectangle in each, row by row."""

    @classmethod
    def of(cls, mask: np.ndarray) -> Mask | None:
        """Of bool [H, W]; None where no pixel is set."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = inner.shape
        count = int(np.count_nonzero(inner))
        return cls(int(rows[0]), int(columns[0]), height, width, count, np.packbits(inner))

    def paint(self, image: np.ndarray, value: Any) -> None:
        """Set the pixels of an image [H, W] or [H, W, channels] to a value."""
        bits = np.unpackbits(self.bits, count=self.height * self.width).astype(bool)
        place = image[self.top : self.top + self.height, self.left : self.left + self.width]
        place[bits.reshape(self.height, self.width)] = value


@dataclass
class Segments:
    """Segments of a clip of (F, H, W)."""

    shape: tuple[int, int, int]
    masks: list[dict[int, Mask]] = field(default_factory=list)
    """Of each segment its mask in every frame that shows it."""

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def sizes(self) -> list[int]:
        """Pixels of each, of all frames together."""
        return [sum(mask.pixels for mask in one.values()) for one in self.masks]

    def add(self, frames: Iterable[tuple[int, np.ndarray]]) -> None:
        """Another segment, of frames and masks bool [H, W]."""
        found = ((frame, Mask.of(mask)) for frame, mask in frames)
        self.masks.append({frame: mask for frame, mask in found if mask is not None})

    @classmethod
    def of(cls, masks: np.ndarray) -> Segments:
        """Of bool [segments, F, H, W]."""
        found = cls(masks.shape[1:])
        for one in masks:
            found.add(enumerate(one))
        return found

    def dense(self) -> np.ndarray:
        """bool [segments, F, H, W]: of a large clip more than a machine may hold."""
        found = np.zeros((len(self), *self.shape), bool)
        for whole, one in zip(found, self.masks, strict=True):
            for frame, mask in one.items():
                mask.paint(whole[frame], True)
        return found


def check(folder: Path) -> None:
    """Raises DataError unless the folder holds such a model, or it needs a library that is not there."""
    vision.check(folder, WHAT, ARCHITECTURES)
    kind = str(vision.configuration(folder).get("model_type"))
    if kind.startswith("sam2") and find_spec("torchvision") is None:
        raise DataError(
            f"{folder}: SAM 2 needs torchvision, which is not installed: pip install torchvision (of the "
            "release that goes with this torch), or give SAM, Mask2Former or Segformer instead"
        )


def load(folder: Path) -> Callable[[np.ndarray], Segments]:
    """A function from frames, RGB uint8 [F, H, W, 3], to their segments.

    Raises:
        DataError: the folder holds no such model.
    """
    check(folder)
    kind = str(vision.configuration(folder).get("model_type"))
    if kind.startswith("sam"):
        each = _by_pipeline(folder) if kind.startswith("sam2") else _by_grid(folder)
        return lambda frames: followed(map(each, vision.pictures(frames)), frames.shape[:3])
    return _by_class(folder)


def _by_class(folder: Path) -> Callable[[np.ndarray], Segments]:
    with vision.loading(folder, WHAT) as transformers:
        said = vision.configuration(folder)
        universal = any("Semantic" not in str(name) for name in said["architectures"])
        kind = "AutoModelForUniversalSegmentation" if universal else "AutoModelForSemanticSegmentation"
        run = vision.pipeline(transformers, "image-segmentation", kind, folder)

    def segments(frames: np.ndarray) -> Segments:
        found: dict[str, dict[int, Mask]] = {}
        for index, picture in enumerate(vision.pictures(frames)):
            here: dict[str, np.ndarray] = {}
            for one in run(picture, subtask="semantic"):
                seen = np.asarray(one["mask"]) > 0
                here[one["label"]] = here.get(one["label"], False) | seen
            for label, seen in here.items():
                if (mask := Mask.of(seen)) is not None:
                    found.setdefault(label, {})[index] = mask
        return Segments(frames.shape[:3], [found[label] for label in sorted(found)])

    return segments


def none(size: Sequence[int]) -> np.ndarray:
    """No mask of a frame of ``size`` (H, W)."""
    return np.zeros((0, *size), bool)


def _by_pipeline(folder: Path) -> Callable[[Any], np.ndarray]:
    """transformers' own search for masks, which needs torchvision."""
    with vision.loading(folder, WHAT) as transformers:
        run = vision.pipeline(transformers, "mask-generation", "AutoModelForMaskGeneration", folder)

    def masks(picture: Any) -> np.ndarray:
        said = run(
            picture, points_per_batch=_PROMPTS, pred_iou_thresh=QUALITY, stability_score_thresh=STABILITY
        )
        found = said["masks"]
        return (
            np.stack([np.asarray(mask, bool) for mask in found]) if len(found) else none(picture.size[::-1])
        )

    return masks


def _by_grid(folder: Path) -> Callable[[Any], np.ndarray]:
    import torch

    with vision.loading(folder, WHAT) as transformers:
        where = vision.device()
        model = transformers.AutoModelForMaskGeneration.from_pretrained(
            folder, use_safetensors=True, **vision.SAFE
        )
        model = model.eval().to(where)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **vision.SAFE)

    @torch.no_grad()
    def masks(picture: Any) -> np.ndarray:
        prepared = processor(picture, return_tensors="pt")
        height, width = (int(side) for side in prepared["reshaped_input_sizes"][0])
        embedded = model.get_image_embeddings(prepared["pixel_values"].to(where))
        sides = (torch.arange(POINTS) + 0.5) / POINTS
        grid = torch.cartesian_prod(sides * width, sides * height)
        found, scores = [], []
        for points in grid.split(_PROMPTS):
            said = model(
                image_embeddings=embedded,
                input_points=points[None, :, None].to(where),
                input_labels=torch.ones(1, len(points), 1, dtype=torch.int, device=where),
            )
            logits = processor.post_process_masks(
                said.pred_masks.cpu(),
                prepared["original_sizes"],
                prepared["reshaped_input_sizes"],
                binarize=False,
            )[0].flatten(0, 1)
            quality = said.iou_scores.cpu()[0].flatten()
            good = (quality > QUALITY) & (stability(logits) > STABILITY)
            found.append((logits[good] > 0).numpy())
            scores.append(quality[good].numpy())
        return distinct(np.concatenate(found), np.concatenate(scores))

    return masks


def stability(logits: Any) -> Any:
    """Overlap of each mask of ``logits`` [N, H, W] at two thresholds, [N]."""
    inner, outer = ((logits > offset).flatten(1).sum(1) for offset in (_OFFSET, -_OFFSET))
    return inner / outer.clamp_min(1)


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of each mask of ``one``, bool [N, H, W], with each of ``other`` [M, H, W]:
    [N, M]."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (one, other))
    both = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - both
    found: np.ndarray = both / np.maximum(union, 1)
    return found


def distinct(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The best of masks of one frame, bool [N, H, W], that say the same; empty ones go."""
    sizes = masks.sum(axis=(1, 2))
    order = [i for i in np.argsort(-scores, kind="stable") if sizes[i]]
    kept: list[int] = []
    for i in order:
        # The smaller over the larger bounds their overlap, which is dear.
        near = [k for k in kept if min(sizes[i], sizes[k]) > OVERLAP * max(sizes[i], sizes[k])]
        if not near or overlaps(masks[i][None], masks[near]).max() <= OVERLAP:
            kept.append(i)
    return masks[kept]


def followed(frames: Iterable[np.ndarray], shape: tuple[int, int, int]) -> Segments:
    """Segments through a clip of (F, H, W) of the masks of each of its frames, bool [N, H, W] with another N
    in each. Those of a frame and the one before are whole in memory.

    Pairs of a segment and a mask of the next frame are joined in the order of their overlap, as long as that
    is :data:`FOLLOWED` at least; a mask that is left begins a segment, and a segment that is lost ends.
    """
    found = Segments(shape)
    before: dict[int, np.ndarray] = {}  # of the segments that the last frame shows, its mask
    for index, masks in enumerate(frames):
        alive, here = sorted(before), dict[int, np.ndarray]()
        free = set(range(len(masks)))
        if alive and len(masks):
            same = overlaps(np.stack([before[s] for s in alive]), masks)
            for flat in np.argsort(-same, axis=None, kind="stable"):
                segment, mask = divmod(int(flat), len(masks))
                if same[segment, mask] < FOLLOWED:
                    break
                if mask in free and alive[segment] not in here:
                    here[alive[segment]] = masks[mask]
                    free.remove(mask)
        for mask in sorted(free):
            here[len(found)] = masks[mask]
            found.masks.append({})
        for segment, seen in here.items():
            if (packed := Mask.of(seen)) is not None:
                found.masks[segment][index] = packed
        before = here
    return found

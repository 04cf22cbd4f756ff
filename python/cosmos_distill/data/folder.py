"""One's own clips in the published layout, as a source.

Under ``data.root``::

    videos/<id>.mp4                    the clips (of the teacher, for knowledge distillation)
    t5_xxl/<id>.safetensors|npz        T5-XXL prompt embedding [tokens, 1024], or data.text_folder another
    noise/<id>.safetensors|npz         unit noise the teacher started from, [C, T, h, w]; makes it a KD set
    <control>/<id>.mp4                 control video with as many frames as the clip

With ``noise/`` every clip must be exactly one window long, since saved noise matches no other window, and
the control comes from its file for every modality: it must be the one the teacher saw. Without ``noise/``
a window starts anywhere, and edge and vis are computed from its pixels.

A clip that cannot be used is skipped, named and counted; what cannot be meant (a pickle, a wrong shape,
NaN) is an error. Every fifth clip in the order of names is held out for evaluation.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cosmos_distill.config import Data
from cosmos_distill.data import clips, controls
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clips import Split
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.fit import Fit
from cosmos_distill.data.frames import to_video
from cosmos_distill.data.randomness import generator
from cosmos_distill.data.text import PICKLES, T5_TOKENS, load_array, load_embedding, refuse_pickle
from cosmos_distill.files import sha256
from cosmos_distill.tokenizers import Tokenizer

log = logging.getLogger(__name__)
HELD_OUT_EVERY = 5


@dataclass(frozen=True)
class Sample:
    """The files of one clip."""

    name: str
    video: Path
    frames: int
    text: Path
    noise: Path | None
    control: Path | None


class FolderSource:
    """A :class:`~cosmos_distill.data.sources.Source` over ``data.root`` (layout: see the module).

    Opening reads headers only; a clip that turns out damaged while decoding is skipped then, and sample n
    becomes the next clip of a sequence that depends on the seed and n alone.
    """

    def __init__(
        self,
        data: Data,
        control: str | None,
        seed: int,
        *,
        split: Split,
        tokenizer: Tokenizer,
        text_channels: int,
        text_tokens: int | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        if data.root is None:
            raise DataError(
                "the folder source needs its folder: set data.root (videos/, t5_xxl/, <control>/)"
            )
        self.data, self.control, self.seed, self.split = data, control, seed, split
        self.root = data.root
        self.latent_shape = tokenizer.latent_shape(data.frames, data.height, data.width)
        self.text_shape = (text_tokens or T5_TOKENS, text_channels)
        self.skipped: dict[str, str] = {}
        self._tokenizer, self._sigma_data = tokenizer, sigma_data
        self._span = (data.frames - 1) * data.stride + 1
        self._paired = (self.root / "noise").is_dir()
        if self._paired and data.stride != 1:
            raise DataError(
                f"{self.root} has saved noise, which only matches every frame: set data.stride to 1"
            )
        self._samples = self._find()
        self._negative = self._load_negative()

    def _find(self) -> list[Sample]:
        videos = self.root / "videos"
        paths = sorted(videos.glob("*.mp4")) if videos.is_dir() else []
        if not paths:
            raise DataError(
                f"{videos} holds no .mp4 file: put clips there, or set data.root to another folder"
            )
        usable = []
        for path in paths:
            try:
                usable.append(self._probe(path))
            except _Unusable as error:
                self._skip(path.stem, str(error))
        held = set(usable[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or usable[-1:]) if len(usable) > 1 else set()
        chosen = [s for s in usable if (s in held) == (self.split == "eval")]
        if not chosen:
            raise DataError(
                f"no usable clip for {self.split} in {videos} ({len(usable)} usable of {len(paths)}; "
                f"evaluation keeps every {HELD_OUT_EVERY}th and needs at least 2).{self._reasons()}"
            )
        return chosen

    def _probe(self, path: Path) -> Sample:
        text = self._companion(self.data.text_folder or "t5_xxl", path.stem, (".safetensors", ".npz"))
        noise = self._companion("noise", path.stem, (".safetensors", ".npz")) if self._paired else None
        control = None
        if self.control is not None and (self._paired or self.control not in controls.COMPUTED):
            control = self._companion(self.control, path.stem, (".mp4",))
        lengths = []
        for file in (path, control) if control else (path,):
            try:
                lengths.append(clips.count_frames(file))
            except DataError as error:
                raise _Unusable(str(error)) from error
        if len(set(lengths)) > 1:
            raise _Unusable(f"{lengths[0]} frames, but its {self.control} control has {lengths[1]}")
        if lengths[0] < self._span:
            raise _Unusable(f"{lengths[0]} frames, fewer than the {self._span} of a window")
        if self._paired and lengths[0] != self._span:
            raise _Unusable(
                f"{lengths[0]} frames, but its saved noise matches a clip of exactly {self._span}"
            )
        return Sample(path.stem, path, lengths[0], text, noise, control)

    def _companion(self, folder: str, name: str, suffixes: tuple[str, ...]) -> Path:
        for suffix in suffixes:
            path = self.root / folder / f"{name}{suffix}"
            if path.is_file():
                return path
        for suffix in PICKLES:
            refuse_pickle_if_there(self.root / folder / f"{name}{suffix}")
        raise _Unusable(f"has no {folder}/{name}{suffixes[0]}")

    def _load_negative(self) -> np.ndarray:
        if not self.data.negative_prompt:
            return np.zeros(self.text_shape, np.float32)
        path = Path(self.data.negative_prompt)
        if not path.is_file():
            raise DataError(
                f"data.negative_prompt {self.data.negative_prompt!r} is no file: T5 does not run here, so "
                "give the path of its embedding (.safetensors or .npz), or leave it empty for zeros"
            )
        return load_embedding(path, *self.text_shape)

    def _skip(self, name: str, reason: str) -> None:
        if name not in self.skipped:
            self.skipped[name] = reason
            log.warning("clip %s skipped (%d so far): %s", name, len(self.skipped), reason)

    def _reasons(self) -> str:
        shown = [f"\n  {name}: {reason}" for name, reason in list(self.skipped.items())[:10]]
        more = len(self.skipped) - len(shown)
        return "".join(shown) + (f"\n  and {more} more" if more > 0 else "")

    def _read(self, index: int) -> tuple[Sample, int, np.ndarray, np.ndarray | None, np.ndarray, float]:
        """Sample ``index``: clip, first frame, video, control [F, H, W, 3], padding mask [H, W], fps."""
        random = generator(self.seed, self.split, index)
        order = random.permutation(len(self._samples))
        if self.split == "eval" or self._paired:  # every clip once per epoch, then the next usable one
            epoch, position = divmod(index, len(self._samples))
            order = np.roll(generator(self.seed, "epoch", epoch).permutation(len(self._samples)), -position)
        u = random.random(1 + controls.DRAWS)
        for choice in order.tolist():
            sample = self._samples[choice]
            if sample.name in self.skipped:
                continue
            start = int(u[0] * (sample.frames - self._span + 1))
            wanted = range(start, start + self._span, self.data.stride)
            try:
                video, mask, fps = self._window(sample.video, wanted)
                control = None
                if sample.control is not None:
                    control = self._window(sample.control, wanted)[0]
                elif self.control is not None:
                    settings = controls.draw(self.control, u[1:]) if self.split == "train" else None
                    control = controls.compute(self.control, video, settings)
            except DataError as error:
                self._skip(sample.name, str(error))
                continue
            return sample, start, video, control, mask, fps
        raise DataError(f"no usable clip is left for {self.split} in {self.root}/videos.{self._reasons()}")

    def _window(self, path: Path, wanted: range) -> tuple[np.ndarray, np.ndarray, float]:
        fit: Fit | None = None

        def place(image: np.ndarray) -> np.ndarray:
            nonlocal fit
            if fit is None:
                # Labels and joints have no meaningful average: their colours are kept as they are.
                nearest = path.parent.name in ("seg", "keypoint")
                fit = Fit(image.shape[0], image.shape[1], self.data.height, self.data.width, nearest)
            return fit(image)

        frames, fps = clips.decode(path, place, wanted)
        assert fit is not None
        return np.stack(frames), fit.padding, fps / self.data.stride

    def _noise(self, path: Path) -> np.ndarray:
        noise = load_array(path, "noise")
        if noise.shape != self.latent_shape:
            raise DataError(
                f"{path}: noise {list(noise.shape)}, but {self.data.frames} frames of {self.data.height}x"
                f"{self.data.width} have latents {list(self.latent_shape)}: set data.frames, height and width"
            )
        # The second term is several standard errors of a small latent; it vanishes for a real one.
        if abs(float(noise.std()) - 1.0) > 0.05 + 4 / np.sqrt(noise.size):
            raise DataError(
                f"{path}: noise of standard deviation {noise.std():.3f}, not 1: it was saved at another scale"
                " or with an input video; generate the pair from the control alone"
            )
        return noise

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, uint8 [B, 3, F, H, W] each."""
        read = [self._read(i) for i in range(first, first + count)]
        video = to_video(np.stack([r[2] for r in read]))
        return video, None if self.control is None else to_video(
            np.stack([r[3] for r in read if r[3] is not None])
        )

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1, encoded. DataError for text or noise that cannot be used."""
        samples, starts, video, control, masks, fps = zip(
            *(self._read(i) for i in range(first, first + count)), strict=True
        )
        both = video if self.control is None else video + control
        latents = self._tokenizer.encode(to_video(np.stack(both))).cpu() * self._sigma_data
        bad = [s.name for s, z in zip(samples, latents[:count], strict=True) if not torch.isfinite(z).all()]
        if bad:
            raise DataError(f"the tokenizer gave NaN or infinity for {', '.join(bad)}: check its files")
        noise = None
        if self._paired:
            noise = torch.from_numpy(np.stack([self._noise(s.noise) for s in samples]))
        text = torch.from_numpy(np.stack([load_embedding(s.text, *self.text_shape) for s in samples]))
        h, w = self.latent_shape[2:]
        padding = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(np.stack(masks))[:, None], (h, w))
        return Batch(
            first=first,
            latents=latents[:count],
            hint=None if self.control is None else latents[count:],
            text=text,
            negative_text=torch.from_numpy(self._negative).expand_as(text).contiguous(),
            fps=torch.tensor(fps, dtype=torch.float32),
            padding_mask=(padding > 0.5).float(),
            noise=noise,
            names=tuple(
                f"{s.name}[{start}:{start + self._span}]" for s, start in zip(samples, starts, strict=True)
            ),
        )

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale -> uint8 [B, 3, F, H, W]."""
        return self._tokenizer.decode(latents / self._sigma_data)

    def description(self) -> dict[str, Any]:
        """Clips of this split by hash, and those skipped so far with the reason."""
        return {
            "source": "folder",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "saved_noise": self._paired,
            "clips": {s.name: sha256(s.video) for s in self._samples},
            "windows": sum(s.frames - self._span + 1 for s in self._samples),
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }


class _Unusable(Exception):
    """Why one clip is skipped."""


def refuse_pickle_if_there(path: Path) -> None:
    """:func:`refuse_pickle` for a file that exists."""
    if path.is_file():
        refuse_pickle(path)

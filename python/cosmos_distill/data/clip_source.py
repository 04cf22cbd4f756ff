"""What sources of clips have in common: one sample as it was decoded, and how samples become a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from cosmos_distill import controls
from cosmos_distill.config import Data
from cosmos_distill.controls import Settings, Uniform
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.data.control_mix import ControlMix, ControlVideo, uniform_of
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.frames import to_video
from cosmos_distill.tokenizers import Tokenizer


class PassedOver(NamedTuple):
    """A window that cannot be decoded."""

    name: str
    """Of the clip."""
    start: int
    """Its first frame."""
    controls: tuple[str, ...]
    """Controls that were to be read from videos with it."""
    reason: str


@dataclass(frozen=True)
class Decoded:
    """One sample before the tokenizer has seen it: arrays of the CPU, which another process may have made."""

    name: str
    """Where it comes from, for error messages and the report."""
    video: np.ndarray
    """RGB uint8 [F, H, W, 3]."""
    controls: tuple[ControlVideo, ...]
    """Of the clip; none where the network takes none."""
    text: np.ndarray
    """Prompt embedding, fp32 [tokens, channels]."""
    fps: float
    padding: np.ndarray | None = None
    """1 on pixels that are padding, fp32 [H, W]; None: none."""
    noise: np.ndarray | None = None
    """Unit noise the clip was drawn from, fp32 [C, T, h, w]; None where it was not drawn."""
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further conditioning of this sample, by the name of the network's argument."""
    passed_over: tuple[PassedOver, ...] = ()
    """Windows that could not be decoded on the way to it, as far as they are news of the process that decoded
    it."""
    source: int = 0
    """Which source of a mixture it is from."""


class ClipSource(ABC):
    """A :class:`~cosmos_distill.data.sources.Source` over clips that are decoded one by one.

    Attributes:
        latent_shape: (C, T, h, w) of one sample.
        text_shape: (tokens, channels) of one prompt embedding.
    """

    data: Data
    control: str | None
    seed: int
    split: str
    latent_shape: tuple[int, int, int, int]
    text_shape: tuple[int, int]
    _mix: ControlMix = ControlMix({})
    _tokenizer: Tokenizer
    _sigma_data: float
    _negative: np.ndarray
    """Prompt embedding of the unconditional branch, fp32 [tokens, channels]."""

    def _begin(
        self,
        data: Data,
        control: str | None,
        seed: int,
        split: str,
        *,
        tokenizer: Tokenizer,
        text_shape: tuple[int, int],
        sigma_data: float,
        branches: int,
    ) -> None:
        """Set what all have."""
        self.data, self.control, self.seed, self.split = data, control, seed, split
        self.latent_shape = tokenizer.latent_shape(data.frames, data.height, data.width)
        self.text_shape = text_shape
        self._mix = ControlMix.read(control, branches)
        self._tokenizer, self._sigma_data = tokenizer, sigma_data

    def _be_like(self, first: ClipSource, seed: int) -> None:
        """What several sources have of the ``first`` of them, with a seed of their own."""
        self.data, self.control, self.seed, self.split = first.data, first.control, seed, first.split
        self.latent_shape, self.text_shape = first.latent_shape, first.text_shape
        self._mix, self._tokenizer, self._sigma_data = first._mix, first._tokenizer, first._sigma_data
        self._negative = first._negative

    @property
    def negative(self) -> torch.Tensor:
        """Prompt embedding of the unconditional branch, fp32 [tokens, channels]."""
        return torch.from_numpy(self._negative)

    @abstractmethod
    def decoded(self, index: int) -> Decoded:
        """Sample ``index``. Raises DataError when nothing can be read any more."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Why clips are not used, by name."""
        return {}

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What the stream is made of, for manifests: plain JSON values."""

    def learn(self, sample: Decoded) -> None:  # noqa: B027  most sources meet nothing
        """Take note of what another process met on the way to a sample."""

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process decodes only: the tokenizer stays here."""
        return {name: value for name, value in vars(self).items() if name != "_tokenizer"}

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, uint8 [B, 3, F, H, W] each; several controls lie one after the
        other along the channels."""
        return self._pixels([self.decoded(i) for i in range(first, first + count)])

    def _settings(self, name: str, uniform: Uniform) -> Settings:
        """What a control is computed with: in training drawn from :data:`~cosmos_distill.controls.DRAWS`
        numbers in [0, 1), else a preset."""
        if self.split == "train":
            return controls.draw(name, uniform)
        return controls.preset(name, factor=self.data.vis_thumbnail)

    def _controls(
        self, index: int, clip: np.ndarray, uniform: Uniform, files: Mapping[str, np.ndarray] | None = None
    ) -> tuple[ControlVideo, ...]:
        """The controls of sample ``index``, as far as its files and the pixels of the clip are enough.

        Args:
            uniform: Its numbers in [0, 1) for their settings.
            files: Videos that were read, by control.
        """
        found = []
        for number, name in enumerate(self._mix.of_sample(self.seed, self.split, index)):
            frames = (files or {}).get(name)
            if frames is not None:
                found.append(ControlVideo(name, frames))
                continue
            settings = self._settings(name, uniform_of(number, name, uniform, self.seed, index))
            if controls.is_computed(name):
                frames = controls.compute(name, clip, settings)
            found.append(ControlVideo(name, frames, settings))
        return tuple(found)

    def _pixels(self, samples: Sequence[Decoded]) -> tuple[torch.Tensor, torch.Tensor | None]:
        video = to_video(np.stack([s.video for s in samples]))
        made = []
        for sample in samples:
            found = {one.name: one.of(sample.video, self.data.control_models) for one in sample.controls}
            slots = self._mix.slots if found else ()
            made.append([found.get(s, np.zeros_like(sample.video)) for s in slots] or list(found.values()))
        if len({len(each) for each in made}) > 1:
            raise DataError("some samples of a batch have a control and some have none")
        if not made[0]:
            return video, None
        return video, torch.cat([to_video(np.stack(slot)) for slot in zip(*made, strict=True)], dim=1)

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1, encoded. DataError when nothing can be read any more."""
        return self.encoded(first, [self.decoded(i) for i in range(first, first + count)])

    def encoded(self, first: int, samples: Sequence[Decoded]) -> Batch:
        """The batch of samples that were decoded, the first of which is number ``first`` of the stream.

        Raises:
            DataError: the tokenizer gave NaN or infinity.
        """
        count = len(samples)
        for sample in samples:
            self.learn(sample)
        video, control = self._pixels(samples)
        videos = () if control is None else control.split(3, dim=1)
        used = [n for n in range(len(videos)) if not self._mix.slots or self._mix.branch_weights[n]]
        together = self._tokenizer.encode(torch.cat([video, *(videos[n] for n in used)]))
        latents, *hints = (together.cpu() * self._sigma_data).split(count)
        bad = [s.name for s, z in zip(samples, latents, strict=True) if not torch.isfinite(z).all()]
        if bad:
            raise DataError(f"the tokenizer gave NaN or infinity for {', '.join(bad)}: check its files")
        at, nothing = dict(zip(used, hints, strict=True)), torch.zeros_like(latents)
        extra = {name: _stacked([s.extra[name] for s in samples]) for name in samples[0].extra}
        if self._mix.slots:
            extra["control_weight"] = torch.tensor(self._mix.branch_weights).expand(count, -1).contiguous()
        text = _stacked([s.text for s in samples])
        negative = torch.from_numpy(self._negative).expand(count, -1, -1).contiguous()
        height, width = self.latent_shape[2:]
        conditioning = Conditioning(
            text=text,
            negative_text=negative,
            hint=torch.cat([at.get(n, nothing) for n in range(len(videos))], dim=1) if at else None,
            fps=torch.tensor([s.fps for s in samples], dtype=torch.float32),
            padding_mask=torch.cat([padding_mask(s.padding, height, width) for s in samples]),
            extra=extra,
        )
        return Batch(
            first=first,
            latents=latents,
            conditioning=conditioning,
            noise=_stacked_if_any([s.noise for s in samples]),
            names=tuple(s.name + self._mix.told(s.controls) for s in samples),
        )

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> latents at sigma_data scale [B, C, T, h, w]."""
        return self._tokenizer.encode(video) * self._sigma_data

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale -> uint8 [B, 3, F, H, W]."""
        return self._tokenizer.decode(latents / self._sigma_data)


def padding_mask(padding: np.ndarray | None, height: int, width: int) -> torch.Tensor:
    """1 on latents most of whose pixels are padding, fp32 [1, 1, height, width]; None: no pixel is."""
    if padding is None:
        return torch.zeros(1, 1, height, width)
    share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(padding)[None, None], (height, width))
    return (share > 0.5).float()


def _stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays))


def _stacked_if_any(arrays: Sequence[np.ndarray | None]) -> torch.Tensor | None:
    found = [array for array in arrays if array is not None]
    if found and len(found) < len(arrays):
        raise DataError("some samples of a batch have saved noise and some have none")
    return _stacked(found) if found else None

"""Encoded clips as a source: latents, control latents and embeddings out of shards, at any place in them.

Sample n is the window of the clips that a folder's sample n would be (:mod:`~cosmos_distill.data.folder`), as
far as windows were encoded: the same clip, and of its windows the one that stands at the same share of them.
Training needs no tokenizer, unless controls are drawn from pixels; pictures and scores do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from cosmos_distill import controls
from cosmos_distill.config import Data
from cosmos_distill.controls import DRAWS
from cosmos_distill.data import video
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.captions import negative_prompt
from cosmos_distill.data.clips import Split
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.encoded_files import LARGEST, NEGATIVE, Clip, Encoded, Part
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.frames import to_video
from cosmos_distill.data.order import order
from cosmos_distill.data.text import load_embedding
from cosmos_distill.members import read_bytes
from cosmos_distill.tokenizers import Tokenizer

_AGAIN = "delete the shard, and the command that made it makes it again"


class EncodedSource:
    """A :class:`~cosmos_distill.data.sources.Source` over clips that were encoded.

    Args:
        found: The clips as they were encoded.
        places: Of them those that are read, in order; None stands for one that cannot be used.
        shape: (frames, height, width) of their windows.
        tokenizer: Makes the tokenizer when it is needed for the first time.
        text_tokens: Tokens of a prompt embedding; None: as many as were encoded.
        projection: Hash of the network's frozen first layer of text, where it has one.

    Raises:
        DataError: the embeddings are those for another network, or a file is damaged.
    """

    def __init__(
        self,
        found: Encoded,
        places: Sequence[Clip | None],
        data: Data,
        control: str | None,
        seed: int,
        *,
        split: Split,
        shape: tuple[int, int, int],
        tokenizer: Callable[[], Tokenizer],
        text_channels: int,
        text_tokens: int | None = None,
        sigma_data: float = 0.5,
        projection: str | None = None,
    ) -> None:
        self.data, self.control, self.seed, self.split = data, control, seed, split
        self._mix = ControlMix.read(control)
        self._found, self._places = found, list(places)
        if self._found.projection not in (None, projection):
            raise DataError(
                f"{self._found.place}: its embeddings are those behind the first layer of another network: "
                "encode the clips for this one"
            )
        self._chosen = [clip for clip in places if clip is not None]
        self.latent_shape = found.latent_shape(shape)
        self.text_shape = (
            text_tokens or int(self._found.said["text_tokens"]),
            text_channels if self._found.projection is None else int(self._found.said["text_channels"]),
        )
        self._make, self._sigma_data = tokenizer, sigma_data
        self._tokenizer: Tokenizer | None = None
        self._verified: set[tuple[int, str]] = set()
        self._drawn = split == "train" and bool(self._found.said["drawn_control"])
        told = negative_prompt(data.negative_prompt)
        if isinstance(told, str):
            raise DataError(
                f"data.negative_prompt {told[:60]!r} is a text, and {self._found.place} holds the embedding "
                "of the one that it was encoded with: leave it out, or give an embedding (.safetensors, .npz)"
            )
        if told is not None:
            self._negative = torch.from_numpy(load_embedding(told, *self.text_shape))
        else:
            negative = self._found.place.at(NEGATIVE)
            self._negative = self._text_of(self._tensors(read_bytes(negative, LARGEST), str(negative)))

    @property
    def skipped(self) -> Mapping[str, str]:
        """Why clips could not be used when they were encoded, by name."""
        return self._found.skipped

    def _window(self, index: int) -> tuple[Clip, int, np.ndarray]:
        """Clip and window of sample ``index``, and numbers in [0, 1) of which its control is drawn."""
        places, random = order(
            self.seed, self.split, index, [c is not None for c in self._places], epochs=self.split == "eval"
        )
        clip = self._places[places[0]]
        assert clip is not None
        u = random.random(1 + DRAWS)
        return clip, int(u[0] * len(clip.windows)), u[1:]

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1. DataError when a part of one is damaged or missing."""
        rows: dict[str, list[torch.Tensor]] = {}
        names: list[str] = []
        for index in range(first, first + count):
            clip, window, u = self._window(index)
            parts = self._part(clip, f"v{window}.safetensors")
            tensors = {name: value.float() for name, value in parts.items()}
            for name in ("latents", "hint"):
                if name in tensors:
                    tensors[name] = tensors[name] * self._sigma_data
            if self._drawn:
                tensors["hint"] = self._hint(index, clip, window, u)
            tensors["text"] = self._text_of(self._part(clip, "text.safetensors"))
            tensors["negative_text"] = self._negative
            if rows and rows.keys() != tensors.keys():
                raise DataError(
                    f"clip {clip.name} of {self._found.place} has other parts than others: {_AGAIN}"
                )
            for name, value in tensors.items():
                rows.setdefault(name, []).append(value)
            names.append(clip.windows[window])
        return Batch.of(first, {name: torch.stack(values) for name, values in rows.items()}, tuple(names))

    def _hint(self, index: int, clip: Clip, window: int, u: np.ndarray) -> torch.Tensor:
        """The latent of a control that is drawn from the window's pixels."""
        drawn = self._draw(index, self._frames(clip, f"v{window}.mkv"), u)
        return self.tokenizer.encode(to_video(drawn[None])).cpu()[0] * self._sigma_data

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, made on first use."""
        if self._tokenizer is None:
            self._tokenizer = self._make()
        return self._tokenizer

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, uint8 [B, 3, F, H, W] each: those that were encoded where they
        were kept, and else what the tokenizer makes of the latents."""
        batch: Batch | None = None
        videos: list[torch.Tensor] = []
        hints: list[torch.Tensor] = []
        for row, index in enumerate(range(first, first + count)):
            clip, window, u = self._window(index)
            kept = f"v{window}.mkv" in clip.parts
            if not kept and batch is None:
                batch = self.batch(first, count)
            if kept:
                frames = self._frames(clip, f"v{window}.mkv")
                videos.append(to_video(frames[None])[0])
                if self.control is not None:
                    hints.append(to_video(self._control(index, clip, window, frames, u)[None])[0])
            else:
                assert batch is not None
                videos.append(self.decode(batch.latents[row : row + 1])[0])
                if batch.conditioning.hint is not None:
                    hints.append(self.decode(batch.conditioning.hint[row : row + 1])[0])
        return torch.stack(videos), torch.stack(hints) if hints else None

    def _draw(self, index: int, frames: np.ndarray, u: np.ndarray) -> np.ndarray:
        (name,) = self._mix.of_sample(self.seed, self.split, index)
        return controls.compute(name, frames, controls.draw(name, u))

    def _control(self, index: int, clip: Clip, window: int, frames: np.ndarray, u: np.ndarray) -> np.ndarray:
        if f"v{window}.control.mkv" in clip.parts:
            return self._frames(clip, f"v{window}.control.mkv")
        return self._draw(index, frames, u)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale -> uint8 [B, 3, F, H, W]."""
        return self.tokenizer.decode(latents / self._sigma_data)

    def _text_of(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """An embedding, zero-padded or cut to fp32 [tokens, channels]."""
        found = torch.zeros(self.text_shape)
        text = parts["text"].float()[: self.text_shape[0]]
        found[: len(text)] = text
        return found

    def _bytes(self, clip: Clip, kind: str) -> bytes:
        part: Part | None = clip.parts.get(kind)
        if part is None:
            raise DataError(f"clip {clip.name} of {self._found.place} has no part {kind}: {_AGAIN}")
        try:
            content = read_bytes(part.member, LARGEST)
        except (OSError, ValueError) as error:
            raise DataError(f"{part.member} cannot be read ({error}): {_AGAIN}") from error
        if (clip.number, kind) not in self._verified:
            if hashlib.sha256(content).hexdigest() != part.sha256:
                raise DataError(f"{part.member} is corrupt (its checksum differs): {_AGAIN}")
            self._verified.add((clip.number, kind))
        return content

    def _part(self, clip: Clip, kind: str) -> dict[str, torch.Tensor]:
        return self._tensors(self._bytes(clip, kind), f"{clip.name}: {kind}")

    def _frames(self, clip: Clip, kind: str) -> np.ndarray:
        if (clip.number, kind) not in self._verified:
            self._bytes(clip, kind)
        frames, _ = video.decode_as_stored(clip.parts[kind].member, lambda frame: frame)
        return np.stack(frames)

    @staticmethod
    def _tensors(content: bytes, place: str) -> dict[str, torch.Tensor]:
        try:
            return load(content)
        except SafetensorError as error:
            raise DataError(f"{place} is damaged ({error}): {_AGAIN}") from error

    def description(self) -> dict[str, Any]:
        """What was encoded, and the clips of this split by the hashes of their videos."""
        return {
            "source": "shards",
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "encoded": self._found.said["made"],
            "clips": {clip.name: clip.inputs.get("video") for clip in self._chosen},
            "windows": sum(len(clip.windows) for clip in self._chosen),
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }

"""Embeddings of prompts, made once by a text encoder and kept by what they depend on.

The file of an embedding is named after the hash of the prompt, the encoder's files, the number of tokens and,
where there is one, the frozen projection that the network would apply first: of Cosmos-Reason1's 512 x
100,352 numbers the file then has the 512 x 1,024 behind it, a megabyte in bf16 instead of a hundred. They
lie in ``text/`` of :func:`~cosmos_distill.data.packages.cache_folder`, so that every run on the same captions
finds them, and none has to be thrown away when clips are renamed, added or cut elsewhere.

Prompts are encoded in bf16 on an accelerator, in batches of a fixed size, whose results do not depend on who
shares a batch. Several processes that need the same embeddings share the work: each takes a sixteenth that
nobody is at. The encoder is gone from memory when they are made. Torch-free at import.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cosmos_distill import text
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import index_of
from cosmos_distill.data.packages import cache_folder, locked
from cosmos_distill.data.text import KEY

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger(__name__)
FORMAT = 1
"""Raised when the same prompt, encoder and projection give other numbers than before."""
_BATCH = 8
"""Prompts encoded at once on an accelerator. On a CPU, where it would save nothing, one."""
_EVERY = 10.0
"""Seconds between two lines about long encoding."""


class Projection(Protocol):
    """The frozen layer with which a network begins to read a wide embedding."""

    @property
    def sha256(self) -> str:
        """Of its weights."""

    @property
    def width(self) -> int:
        """Channels behind it."""

    def __call__(self, wide: torch.Tensor) -> torch.Tensor:
        """[..., channels] -> [..., width], on the device and in the type of ``wide``."""

    def free(self) -> None:
        """Give the memory of the accelerator back."""


@dataclass(frozen=True)
class Made:
    """What is known of an embedding on disk without reading it."""

    path: Path
    said: int
    """Tokens of the prompt; what exceeds those of the embedding was cut."""


class Embeddings:
    """The embeddings that one encoder makes, on disk.

    Args:
        encoder: The encoder's folder (:func:`cosmos_distill.text.build`).
        tokens: Of an embedding.
        projection: Store what comes behind it; None: the encoder's own output.
        folder: Where they are kept; None: in the cache.

    Raises:
        DataError: the encoder's files are missing, or cannot be read.
    """

    def __init__(
        self, encoder: Path, tokens: int, projection: Projection | None = None, folder: Path | None = None
    ) -> None:
        self.encoder, self.tokens, self.projection = encoder, tokens, projection
        try:
            self.kind, self.encoder_channels = text.kind_of(encoder), text.channels(encoder)
            self.channels = self.encoder_channels if projection is None else projection.width
            self.fingerprint = fingerprint(encoder)
        except (OSError, ValueError) as error:
            raise DataError(f"the text encoder cannot be used: {error}") from error
        self._folder = folder or cache_folder() / "text"

    @cached_property
    def _key(self) -> list[Any]:
        behind = None if self.projection is None else self.projection.sha256
        return [FORMAT, sorted(self.fingerprint.items()), self.tokens, behind]

    def path(self, prompt: str) -> Path:
        """Where the embedding of a prompt lies, or will."""
        said = json.dumps([*self._key, prompt], ensure_ascii=True)
        name = hashlib.sha256(said.encode()).hexdigest()
        return self._folder / name[0] / f"{name}.safetensors"

    def made(self, prompt: str) -> Made | None:
        """The embedding of a prompt, if it is there and whole."""
        path = self.path(prompt)
        try:
            return Made(path, index_of(self._folder).fact(path, "embedding", self._look))
        except (OSError, ValueError, KeyError):
            return None

    def _look(self, path: Path) -> int:
        from cosmos_distill.arrays import named

        found = named.load(path)[KEY]
        if found.ndim != 2 or found.shape[1] != self.channels or len(found) > self.tokens:
            raise ValueError(f"{path} is another embedding")
        return int(named.metadata(path)["said"])

    def read(self, prompt: str) -> np.ndarray:
        """The embedding, fp32 [tokens, channels].

        Raises:
            DataError: it is gone, or was damaged since it was made.
        """
        import numpy as np

        from cosmos_distill.arrays import named

        path = self.path(prompt)
        try:
            found = named.load(path)[KEY].float().numpy()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}): the same command makes it again") from error
        out = np.zeros((self.tokens, self.channels), np.float32)
        out[: len(found)] = found
        return out

    def make(self, prompts: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Made]:
        """Encode the prompts whose embeddings are not there yet; returns those of all of them.

        Raises:
            DataError: the encoder's files are damaged, or it gives NaN.
            DiskError: the disk is full.
        """
        wanted = list(dict.fromkeys(prompts))
        index = index_of(self._folder)
        found = index.each(wanted, self.made, f"{self._folder}: looking at embeddings")
        there = {prompt: made for prompt, made in zip(wanted, found, strict=True) if made is not None}
        missing = [prompt for prompt in wanted if prompt not in there]
        if missing:
            there |= _Maker(self, missing, device).run()
            index.save()
        return there

    def description(self) -> dict[str, Any]:
        """Whose embeddings they are, for manifests."""
        behind = None if self.projection is None else self.projection.sha256
        return {"kind": self.kind, "sha256": self.fingerprint, "tokens": self.tokens, "projection": behind}


def fingerprint(encoder: Path) -> dict[str, str]:
    """SHA-256 of each of the encoder's files, by name: what :func:`cosmos_distill.text.fingerprint` gives,
    remembered by size and times, since they have gigabytes. Raises as that does."""
    files, index = text.files(encoder), index_of(encoder)
    hashes = index.each(files, index.sha256, f"{encoder}: hashing the text encoder")
    return {file.name: hashed for file, hashed in zip(files, hashes, strict=True)}


class _Maker:
    """One process's share in making embeddings."""

    def __init__(self, embeddings: Embeddings, missing: Sequence[str], device: torch.device | str) -> None:
        import torch

        self._embeddings, self._device, self._count = embeddings, torch.device(device), len(missing)
        parts: dict[Path, list[str]] = {}
        for prompt in sorted(missing, key=embeddings.path):
            parts.setdefault(embeddings.path(prompt).parent, []).append(prompt)
        self._parts = parts
        self._encoder: text.TextEncoder | None = None
        self._made: dict[str, Made] = {}
        self._begin = self._said = time.monotonic()

    def run(self) -> dict[str, Made]:
        """Make what nobody else makes, then wait for the others."""
        log.warning(
            "encoding %d prompts with %s, once: they are kept in %s",
            self._count, self._embeddings.encoder, self._embeddings.path("").parent.parent,
        )  # fmt: skip
        try:
            left = dict(self._parts)
            for wait in (False, True):
                for folder, prompts in list(left.items()):
                    with locked(folder, wait=wait) as mine:
                        if mine:
                            self._part(prompts)
                            del left[folder]
        finally:
            self._free()
        return self._made

    def _part(self, prompts: Sequence[str]) -> None:
        missing = []
        for prompt in prompts:
            if (made := self._embeddings.made(prompt)) is None:
                missing.append(prompt)
            else:
                self._made[prompt] = made
        size = 1 if self._device.type == "cpu" else _BATCH
        for first in range(0, len(missing), size):
            self._encode(missing[first : first + size], size)
            if time.monotonic() - self._said > _EVERY:
                self._said = time.monotonic()
                rate = (self._said - self._begin) / len(self._made)
                left = (self._count - len(self._made)) * rate
                log.warning("encoding prompts: %d of %d, %.0f s left", len(self._made), self._count, left)

    def _encode(self, prompts: list[str], size: int) -> None:
        import torch

        from cosmos_distill.storage import publish_tensors

        store = self._embeddings
        try:
            if self._encoder is None:
                self._encoder = text.build(store.encoder, self._device, tokens=store.tokens)
            # A batch is always full: how many share one would else change how their sums are rounded.
            wide = self._encoder([*prompts, *[""] * (size - len(prompts))])[: len(prompts)]
            said = self._encoder.lengths(prompts)
        except (OSError, ValueError) as error:
            raise DataError(f"the text encoder cannot be used: {error}") from error
        found = wide if store.projection is None else store.projection(wide)
        for prompt, embedding, tokens in zip(prompts, found.to(torch.bfloat16).cpu(), said, strict=True):
            if not embedding.isfinite().all():
                raise DataError(
                    f"the text encoder {store.encoder} gives NaN or infinity for {prompt[:60]!r}: its "
                    "weights are damaged, or of another network than its config.json says"
                )
            kept = embedding
            if store.projection is None:  # what is behind the prompt, where that is zeros
                used = embedding.any(-1).nonzero()
                kept = embedding[: int(used[-1]) + 1 if len(used) else 1].clone()
            path = store.path(prompt)
            publish_tensors({KEY: kept}, path, {**store.description(), "said": tokens})
            self._made[prompt] = Made(path, tokens)

    def _free(self) -> None:
        import torch

        self._encoder = None
        if self._embeddings.projection is not None:
            self._embeddings.projection.free()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

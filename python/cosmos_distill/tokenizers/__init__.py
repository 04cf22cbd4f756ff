"""Tokenizers, one per file: uint8 video to latents of about unit scale, and back.

Each file has a ``TOKENIZER``, and is found by its own name, in which ``_`` stands for the hyphen or, between
digits, the point that a module's name cannot have: ``wan2_1.py`` is ``wan2.1``. To add one, add a file:
nothing else lists them, and ``--data.tokenizer`` takes its name.

``haar`` (mini scale) has no weights; ``mini-cv4x4x4`` is learned and shipped; ``pixels`` leaves clips as they
are, for training one; ``cosmos-cv8x8x8`` runs NVIDIA's, ``wan2.1`` the VAE of Wan 2.1. None of them
multiplies by sigma_data: that is done once, in :mod:`cosmos_distill.data`.

Torch-free, as the files of the package are: what is known of a tokenizer is known before any work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, get_args

from cosmos_distill.config import TokenizerName, folders
from cosmos_distill.files import sha256

if TYPE_CHECKING:
    import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Tokenizer(Protocol):
    """Causal video tokenizer: the first frame becomes a latent frame of its own.

    What becomes of a clip has the same bits whatever clips are beside it in a batch: sample n of a source is
    a function of the seed, n and the files.
    """

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, C, T, h, w] of about unit standard deviation."""

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, C, T, h, w] of about unit standard deviation -> uint8 [B, 3, F, H, W]."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, T, h, w) of a clip; ValueError when the clip cannot be tokenised."""


@dataclass(frozen=True, kw_only=True)
class TokenizerKind:
    """What one kind of tokenizer is: how it turns clips into latents, its files, and how it is built."""

    title: str
    time: int
    """Frames per latent frame, after the first, which is one of its own."""
    space: int
    """Pixels per side of a latent element."""
    build: Callable[[Any, torch.device | str], Tokenizer]
    """build(path, device): the tokenizer of the weights at a path; of None where it has none. Raises
    FileNotFoundError when a file is missing, ValueError when one is damaged or another's."""
    files: Callable[[Path], list[Path]] | None = None
    """files(path): what it consists of, and ``build`` opens no other. None: it has no weights. Raises
    FileNotFoundError when one is missing, ValueError when it is unclear which are meant."""
    check: Callable[[Path], None] | None = None
    """check(path): hold the headers of its files against what they have to be; raises as ``build``, and reads
    no weights. None: it has none."""
    recognises: Callable[[Path], bool] | None = None
    """recognises(path): whether the names there say that they are of this kind and no other."""
    folder: str | None = None
    """What the user has to name with ``tokenizer_path``; None: it comes with the package."""
    shipped: Path | None = None
    """Its weights in the package, in whose place others can be named."""
    channels: int = 16
    chunk: int | None = None
    """Most frames of a clip that are coded at once; a clip of several such chunks has no rest."""
    local: bool = False
    """It runs where clips are read, and turns the pixels of a clip into fp32 all at once."""

    def whole_chunks(self, frames: int) -> bool:
        """Whether clips of ``frames`` frames are cut into chunks without a rest."""
        return self.chunk is not None and frames % self.chunk == 0

    def latent_frames(self, frames: int) -> int:
        """T of the latent of a clip: its first frame alone, then one per ``time`` frames. Of several chunks
        each is such a clip."""
        if self.chunk is not None and self.whole_chunks(frames):
            return frames // self.chunk * (1 + (self.chunk - 1) // self.time)
        return 1 + (frames - 1) // self.time

    def frames(self, latents: int) -> int:
        """Frames of a clip that its first ``latents`` latent frames stand for."""
        return 1 + (latents - 1) * self.time if latents else 0

    def misfit(self, frames: int) -> str | None:
        """Why clips of ``frames`` frames cannot be coded; None if they can."""
        if self.whole_chunks(frames):
            return None
        if (frames - 1) % self.time:
            below = 1 + (frames - 1) // self.time * self.time
            return (
                f"the {self.title} tokenizer needs 1 + a multiple of {self.time} frames; nearest are {below} "
                f"and {below + self.time}"
            )
        if self.chunk is not None and frames > self.chunk:
            return (
                f"the {self.title} tokenizer takes up to {self.chunk} frames, or a multiple of {self.chunk}"
            )
        return None


class TokenizerChoice(Protocol):
    """The two fields of :class:`cosmos_distill.config.Data` that :func:`build` reads."""

    @property
    def tokenizer(self) -> str:
        """Its name."""

    @property
    def tokenizer_path(self) -> Path | None:
        """Where its weights are; None for one that comes with the package."""


def names() -> tuple[str, ...]:
    """Of all tokenizers, in alphabetical order."""
    return get_args(TokenizerName)


def find(name: str) -> TokenizerKind:
    """The tokenizer of that name.

    Raises:
        ValueError: there is none.
    """
    kind: TokenizerKind = folders.find("tokenizer", name, names(), __name__).TOKENIZER
    return kind


def fingerprint(data: TokenizerChoice) -> dict[str, str]:
    """SHA-256 of each file of the tokenizer that ``data`` names, by the file's name; empty for one without.
    Raises as :attr:`TokenizerKind.files` does."""
    kind = find(data.tokenizer)
    place = data.tokenizer_path or kind.shipped
    if kind.files is None or place is None:
        return {}
    return {path.name: sha256(path) for path in kind.files(place)}


def check(data: TokenizerChoice) -> None:
    """Look at the headers of the files that ``data`` names: whether they are there, whole, and of that kind
    of tokenizer. No weights are read, so that it takes moments at any size.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another tokenizer, or a damaged one.
    """
    kind, path = find(data.tokenizer), data.tokenizer_path
    if path is None or kind.check is None:
        return
    own = kind.recognises is not None and kind.recognises(path)
    for other in map(find, names()) if not own else ():
        if other is not kind and other.recognises is not None and other.recognises(path):
            raise ValueError(
                f"{path} is the {other.title} tokenizer, and the {kind.title} tokenizer is asked for: give "
                f"{kind.folder or 'its weights'}"
            )
    kind.check(path)


def build(data: TokenizerChoice, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that ``data`` names, on ``device``; on an accelerator in a stream of its own.

    Raises:
        ValueError: an unknown name, a tokenizer with weights without their folder, or damaged weights.
        FileNotFoundError: a file is missing from that folder.
    """
    kind = find(data.tokenizer)
    if kind.folder is not None and data.tokenizer_path is None:
        raise ValueError(
            f"the {kind.title} tokenizer needs its folder: set data.tokenizer_path to {kind.folder}"
        )
    tokenizer = kind.build(data.tokenizer_path or kind.shipped, device)
    if str(device).partition(":")[0] != "cuda":
        return tokenizer
    import torch

    from cosmos_distill.tokenizers.common.lane import OnLane

    return OnLane(tokenizer, torch.device(device))


def no_grad(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """``torch.no_grad()`` as a decorator that imports no torch before it is needed."""

    @wraps(method)
    def without(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        import torch

        with torch.no_grad():
            return method(*args, **kwargs)

    return without

"""Text encoders, one per file: prompts to the embeddings that a network attends to, from a local folder as
published.

Each file has an ``ENCODER``, and its name is the kind's; which of them a folder holds, its config.json says.
To add one, add a file: nothing else lists them. Nothing is downloaded, and nothing in a folder is run: the
network is transformers', the weights are read as in :mod:`cosmos_distill.arrays`. Torch-free, as the files of
the package are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cosmos_distill.arrays import places
from cosmos_distill.config import folders
from cosmos_distill.files import read_json, sha256

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TOKENS = 512
"""Tokens of a prompt in all published pipelines: shorter ones are padded, longer ones cut."""
_TOKENIZER_FILES = (
    "tokenizer.json", "spiece.model", "vocab.json", "merges.txt", "tokenizer_config.json",
    "chat_template.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


class TextEncoder(Protocol):
    """A text encoder that is loaded."""

    tokens: int
    """Tokens of every embedding."""
    channels: int

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """[B, tokens, channels] in the type that it computes in, on its device."""

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt before it is padded or cut, whatever the encoder adds to it included."""


@dataclass(frozen=True, kw_only=True)
class TextEncoderKind:
    """What one kind of text encoder is."""

    model_type: str
    """As config.json has it."""
    widths: tuple[str, ...]
    """Numbers of config.json whose product is the width of an embedding."""
    build: Callable[[Path, torch.device, torch.dtype, int], TextEncoder]
    """build(folder, device, type to compute in, tokens). Raises as :func:`build`."""
    inside: str | None = None
    """Part of config.json that has the numbers; earlier versions of transformers have them beside it."""


@cache
def kinds() -> dict[str, TextEncoderKind]:
    """All that there are, by name."""
    names = folders.modules("text")
    found = {name: folders.find("text encoder", name, names, __name__).ENCODER for name in names}
    assert all(isinstance(kind, TextEncoderKind) for kind in found.values())
    return found


def place(folder: Path) -> Path:
    """The encoder's own folder: of a hub's cache the one of its snapshot, of a diffusers pipeline its
    ``text_encoder``; any other is what it is.

    Raises:
        ValueError: a hub's cache has several snapshots, and no main one.
    """
    if (folder / "snapshots").is_dir():
        folder = places.snapshot(folder)
    inner = folder / "text_encoder"
    return inner if not (folder / "config.json").is_file() and (inner / "config.json").is_file() else folder


def kind_of(folder: Path) -> str:
    """What the folder's config.json says it is.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is illegible, or of a model that no encoder here is made from.
    """
    folder = place(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give the folder of a text encoder as it is published (T5-11B, "
            "Cosmos-Reason1, UMT5-XXL), with its tokenizer"
        )
    said = read_json(path)
    found = said.get("model_type") if isinstance(said, dict) else None
    named = {kind.model_type: name for name, kind in kinds().items()}
    if found not in named:
        known = ", ".join(f"{name} (model_type {model_type})" for model_type, name in named.items())
        raise ValueError(f"{path}: model_type {found!r} is no text encoder that is known here: {known}")
    return named[found]


def channels(folder: Path) -> int:
    """Channels of the encoder's embeddings, by its config.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it says none.
    """
    folder = place(folder)
    kind, said = kinds()[kind_of(folder)], read_json(folder / "config.json")
    if kind.inside is not None:
        said = said.get(kind.inside) or said
    sizes = [said.get(name) for name in kind.widths] if isinstance(said, dict) else []
    found = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(found) != len(kind.widths):
        raise ValueError(f"{folder}/config.json does not say how wide it is ({', '.join(kind.widths)})")
    return prod(found)


def unsuited(folder: Path, network: str, wanted: str, kind: str | None, width: int) -> str | None:
    """Why a network cannot read what the encoder in a folder makes, in words; None where it can.

    Args:
        network: Its name, for the message.
        wanted: That of the encoder that it was trained with.
        kind: Of that encoder; None: any.
        width: Channels of the embeddings that it takes.

    Raises:
        FileNotFoundError, ValueError: as :func:`kind_of` and :func:`channels` do.
    """
    found, channels_there = kind_of(folder), channels(folder)
    if kind not in (None, found):
        return (
            f"{folder} is of the kind {found}, and {network} reads embeddings of {wanted}, of the kind "
            f"{kind}: give its folder"
        )
    if channels_there != width:
        return (
            f"{folder} gives embeddings of {channels_there:,} channels, and {network} takes {width:,}: give "
            "the encoder that it was trained with"
        )
    return None


def files(folder: Path) -> list[Path]:
    """Configuration, weights and tokenizer files, of which :func:`build` opens no other.

    Raises:
        FileNotFoundError: the folder lacks one.
        ValueError: it is unclear which weights are meant, or an index leads elsewhere.
    """
    from cosmos_distill.text.common.folders import weights

    folder = place(folder)
    tokenizer = tokenizer_folder(folder)
    there = [tokenizer / name for name in _TOKENIZER_FILES if (tokenizer / name).is_file()]
    return [folder / "config.json", *weights(folder), *there]


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer lies: in the encoder's folder or, in diffusers' layout, in ``tokenizer`` beside it.

    Raises:
        FileNotFoundError: in neither.
    """
    for place in (folder, folder.parent / "tokenizer"):
        if any((place / name).is_file() for name in _TOKENIZER_FILES[:3]):
            return place
    raise FileNotFoundError(
        f"{folder} has no tokenizer ({', '.join(_TOKENIZER_FILES[:3])}), nor has "
        f"{folder.parent / 'tokenizer'}: download the tokenizer's files, too"
    )


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of each of its files, by name. Raises as :func:`files` does."""
    return {path.name: sha256(path) for path in files(folder)}


def build(
    folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, tokens: int = TOKENS
) -> TextEncoder:
    """The encoder in ``folder``, frozen.

    Args:
        device: Where it computes.
        dtype: What it computes in; None: bf16 on an accelerator, fp32 on a CPU.
        tokens: Of an embedding.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or weights do not fit the configuration.
        ImportError: transformers is not installed.
    """
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError("text encoders need transformers: pip install 'cosmos-distill[text]'") from error
    import torch

    folder = place(folder)
    where = torch.device(device)
    chosen = dtype or (torch.float32 if where.type == "cpu" else torch.bfloat16)
    return kinds()[kind_of(folder)].build(folder, where, chosen, tokens)

"""Tokenizers: uint8 video to latents of about unit scale, and back.

``haar`` (mini scale) has no weights; ``mini-cv4x4x4`` is learned and shipped; ``pixels`` leaves clips as they
are, for training one; ``cosmos`` runs NVIDIA's CV 8x8x8 from its TorchScript files, ``wan``
the VAE of Wan 2.1 through diffusers. None of them multiplies by sigma_data: that is done once, in
:mod:`cosmos_distill.data`. What is known of each without opening it is in
:mod:`cosmos_distill.tokenizers.kinds`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cosmos_distill.files import read_json, sha256
from cosmos_distill.tokenizers.kinds import KINDS

if TYPE_CHECKING:
    import torch


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


class TokenizerChoice(Protocol):
    """The two fields of :class:`cosmos_distill.config.Data` that :func:`build` reads."""

    @property
    def tokenizer(self) -> str:
        """``haar``, ``mini-cv4x4x4``, ``pixels``, ``cosmos-cv8x8x8`` or ``wan2.1``."""

    @property
    def tokenizer_path(self) -> Path | None:
        """Folder of the weights (not for haar); for mini-cv4x4x4 their file, or None."""


def files(kind: str, folder: Path) -> list[Path]:
    """The files that a tokenizer with weights consists of, of which :func:`build` opens no other.

    Raises FileNotFoundError when one is missing from ``folder``, ValueError when the folder is unclear.
    """
    if kind == "mini-cv4x4x4":
        return [folder]
    if kind == "cosmos-cv8x8x8":
        from cosmos_distill.tokenizers import cosmos

        return cosmos.files(folder)
    from cosmos_distill.tokenizers import wan

    return wan.files(folder)


def fingerprint(data: TokenizerChoice) -> dict[str, str]:
    """SHA-256 of each file of the tokenizer, by name; empty for those without. Raises as :func:`files`
    does."""
    if data.tokenizer == "mini-cv4x4x4" and data.tokenizer_path is None:
        from cosmos_distill.tokenizers.learned import shipped

        return {shipped().name: sha256(shipped())}
    if data.tokenizer in ("haar", "pixels") or data.tokenizer_path is None:
        return {}
    return {path.name: sha256(path) for path in files(data.tokenizer, data.tokenizer_path)}


def check(data: TokenizerChoice) -> None:
    """Look at the headers of the files that ``data`` names: whether they are there, whole, and of that kind
    of tokenizer. No weights are read, so that it takes moments at any size.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another tokenizer, or a damaged one.
    """
    path = data.tokenizer_path
    if path is None or data.tokenizer in ("haar", "pixels"):
        return
    found = _recognised(path)
    if found not in (None, data.tokenizer):
        raise ValueError(
            f"{path} is {_TITLES[found]}, and {_TITLES[data.tokenizer]} is asked for: give "
            f"{KINDS[data.tokenizer].folder}"
        )
    if data.tokenizer == "mini-cv4x4x4":
        from cosmos_distill.tokenizers import learned

        learned.check(path)
    elif data.tokenizer == "cosmos-cv8x8x8":
        from cosmos_distill.tokenizers import cosmos

        cosmos.check(path)
    else:
        from cosmos_distill.tokenizers import wan

        wan.check(path)


def _recognised(path: Path) -> str | None:
    """The kind of tokenizer that a folder's or a file's names say it is; None where they say nothing."""
    if (path / "config.json").is_file():
        said = read_json(path / "config.json")
        return _CLASSES.get(str(said.get("_class_name"))) if isinstance(said, dict) else None
    if path.is_dir() and any((path / name).exists() for name in ("encoder.jit", "decoder.jit")):
        return "cosmos-cv8x8x8"
    return "wan2.1" if path.name == "Wan2.1_VAE.pth" or (path / "Wan2.1_VAE.pth").is_file() else None


_CLASSES = {"AutoencoderKLWan": "wan2.1", "AutoencoderKLCosmos": "cosmos-cv8x8x8"}
_TITLES = {"wan2.1": "Wan 2.1's VAE", "cosmos-cv8x8x8": "CV8x8x8", "mini-cv4x4x4": "mini-cv4x4x4"}


def build(data: TokenizerChoice, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that ``data`` names, on ``device``.

    Raises ValueError for an unknown name or a tokenizer with weights without its folder, FileNotFoundError
    when a file is missing from that folder.
    """
    if data.tokenizer == "haar":
        from cosmos_distill.tokenizers.haar import Haar

        return Haar(device=device)
    if data.tokenizer == "pixels":
        from cosmos_distill.tokenizers.pixels import Pixels

        return Pixels()
    if data.tokenizer == "mini-cv4x4x4":
        from cosmos_distill.tokenizers.learned import Learned

        return Learned(data.tokenizer_path, device=device)
    if data.tokenizer == "cosmos-cv8x8x8":
        from cosmos_distill.tokenizers.cosmos import CosmosCV8x8x8

        if data.tokenizer_path is None:
            raise ValueError(
                "the Cosmos tokenizer needs its folder (encoder.jit, decoder.jit, mean_std.pt): "
                "set data.tokenizer_path, for example to checkpoints/Cosmos-Tokenize1-CV8x8x8-720p"
            )
        return CosmosCV8x8x8(data.tokenizer_path, device=device)
    if data.tokenizer == "wan2.1":
        from cosmos_distill.tokenizers.wan import Wan

        if data.tokenizer_path is None:
            raise ValueError(
                "the Wan tokenizer needs its folder (config.json and safetensors weights): set "
                "data.tokenizer_path, for example to the vae folder of Wan2.1-T2V-1.3B-Diffusers"
            )
        return Wan(data.tokenizer_path, device=device)
    raise ValueError(
        f"unknown tokenizer {data.tokenizer!r}: choose haar, mini-cv4x4x4, cosmos-cv8x8x8 or wan2.1"
    )

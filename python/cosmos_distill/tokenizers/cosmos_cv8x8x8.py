"""Cosmos-Tokenize1 CV 8x8x8 (16 channels, causal), from safetensors or from its published TorchScript files.

The folder holds ``config.json`` and safetensors weights (the ``vae`` folder of a Cosmos 1 model in diffusers'
format), which are preferred; or ``encoder.jit``, ``decoder.jit`` and ``mean_std.pt``. TorchScript is a
program, which runs when it is loaded and used: only from a folder that the user named.

Latents are normalised per channel and per latent frame of a chunk, z = (encoder(x) - mean) / std, because the
first latent frame stands for one frame and every other for eight. A chunk is 121 frames (16 latent frames);
longer clips go chunk by chunk, shorter ones use the statistics of the leading latent frames.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.files import mistaken, regular
from cosmos_distill.tokenizers import TokenizerKind, no_grad
from cosmos_distill.tokenizers.common import vae

if TYPE_CHECKING:
    import torch

CHANNELS, FACTOR = 16, 8
CHUNK, LATENT_CHUNK = 121, 16
_SCRIPTED = ("encoder.jit", "decoder.jit", "mean_std.pt")


def files(folder: Path) -> list[Path]:
    """The files of the tokenizer in ``folder``. Raises FileNotFoundError naming those that are missing."""
    if vae.is_one(folder):
        return vae.files(folder)
    paths = [folder / name for name in _SCRIPTED]
    if missing := [path.name for path in paths if not path.exists()]:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}: download Cosmos-Tokenize1-CV8x8x8-720p into it"
        )
    for path in paths:
        regular(path)
    return paths


def recognises(path: Path) -> bool:
    """Whether the configuration in ``path`` is this tokenizer's or, without one, its programs are there."""
    if (said := vae.class_of(path)) is not None:
        return said == "AutoencoderKLCosmos"
    return any((path / name).exists() for name in _SCRIPTED[:2])


def check(folder: Path) -> None:
    """Look at the headers of the files in ``folder``; TorchScript is not loaded, since loading runs it.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or of another tokenizer.
    """
    paths = files(folder)
    if paths[0].name == vae.CONFIG:
        from diffusers import AutoencoderKLCosmos

        vae.check(AutoencoderKLCosmos, folder)
        return
    from cosmos_distill.arrays import torch_files

    for path in paths[:2]:
        if not torch_files.is_script(path):
            raise ValueError(f"{path} {mistaken(path) or 'is no TorchScript: download it again'}")
    for statistic in _statistics(paths[2]):
        _per_frame(statistic, paths[2])


class CosmosCV8x8x8:
    """121 frames of 704x1280 become [16, 16, 88, 160].

    ``dtype`` is what encoder and decoder compute in (None: bf16 on CUDA, fp32 elsewhere); statistics and
    results are fp32. Raises FileNotFoundError when a file is missing, ValueError when the statistics do
    not have 16 channels and at least 16 latent frames.
    """

    def __init__(
        self, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        import torch

        self._device = torch.device(device)
        self._dtype = dtype or (torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self._encoder: Callable[[torch.Tensor], Any]
        self._decoder: Callable[[torch.Tensor], torch.Tensor]
        paths = files(folder)
        if paths[0].name == vae.CONFIG:
            from diffusers import AutoencoderKLCosmos

            model = vae.load(AutoencoderKLCosmos, folder, self._dtype, self._device)
            self._encoder = lambda pixels: model.encode(pixels).latent_dist.mode()
            self._decoder = lambda latents: model.decode(latents).sample
            statistics = [torch.tensor(s) for s in (model.config.latents_mean, model.config.latents_std)]
        else:
            self._encoder, self._decoder = self._load(paths[0]), self._load(paths[1])
            statistics = _statistics(paths[2])
        self._mean, self._std = (_per_frame(s, paths[-1]).to(self._device) for s in statistics)
        if not (self._std > 0).all():
            raise ValueError(f"{paths[-1]}: a standard deviation is not positive: download the file again")

    def _load(self, path: Path) -> torch.jit.ScriptModule:
        import torch

        module = torch.jit.load(str(path), map_location=self._device).eval()
        return module.to(self._dtype)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(16, latent frames, height / 8, width / 8)."""
        chunks, rest = divmod(frames, CHUNK)
        if frames < 1 or (frames > CHUNK and rest) or (frames < CHUNK and frames % FACTOR != 1):
            raise ValueError(
                f"the Cosmos tokenizer takes 1 + 8k frames up to {CHUNK}, or a multiple of it, not {frames}"
            )
        if height % FACTOR or width % FACTOR or height <= 0 or width <= 0:
            raise ValueError(
                f"the Cosmos tokenizer takes sides in multiples of {FACTOR}, not {height}x{width}"
            )
        time = chunks * LATENT_CHUNK if not rest else 1 + (frames - 1) // FACTOR
        return CHANNELS, time, height // FACTOR, width // FACTOR

    @no_grad
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, 16, T, H / 8, W / 8]."""
        import torch

        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"expected uint8 video [B, 3, F, H, W], got {video.dtype} {list(video.shape)}")
        self.latent_shape(*video.shape[2:])
        parts = []
        # One clip and one chunk at a time: a 704x1280 chunk already fills much of a GPU.
        for clip in video.split(1):
            chunks = []
            for chunk in clip.split(CHUNK, dim=2):
                pixels = chunk.to(self._device, torch.float32) / 127.5 - 1.0
                out = self._encoder(pixels.to(self._dtype))
                out = (out[0] if isinstance(out, tuple) else out).float()
                shape = (1, *self.latent_shape(*chunk.shape[2:]))
                if tuple(out.shape) != shape:
                    raise ValueError(
                        f"encoder.jit gave {list(out.shape)} where the CV8x8x8 tokenizer gives {list(shape)}"
                    )
                time = shape[2]
                chunks.append((out - self._mean[:, :, :time]) / self._std[:, :, :time])
            parts.append(torch.cat(chunks, dim=2))
        return torch.cat(parts)

    @no_grad
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, 16, T, h, w] -> uint8 [B, 3, F, 8h, 8w]."""
        import torch

        if latents.ndim != 5 or latents.shape[1] != CHANNELS:
            raise ValueError(f"expected latents [B, {CHANNELS}, T, h, w], got {list(latents.shape)}")
        if latents.shape[2] > LATENT_CHUNK and latents.shape[2] % LATENT_CHUNK:
            raise ValueError(
                f"the Cosmos tokenizer decodes up to {LATENT_CHUNK} latent frames or a multiple of them, "
                f"not {latents.shape[2]}"
            )
        parts = []
        for clip in latents.split(1):
            chunks = []
            for chunk in clip.split(LATENT_CHUNK, dim=2):
                time = chunk.shape[2]
                z = chunk.to(self._device, torch.float32) * self._std[:, :, :time] + self._mean[:, :, :time]
                pixels = self._decoder(z.to(self._dtype)).float()
                chunks.append(((pixels + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8))
            parts.append(torch.cat(chunks, dim=2))
        return torch.cat(parts)


def _per_frame(statistic: torch.Tensor, path: Path) -> torch.Tensor:
    """[1, 16, 16, 1, 1] of what the file at ``path`` holds. Raises ValueError where that is another shape."""
    if statistic.numel() % CHANNELS or statistic.numel() < CHANNELS * LATENT_CHUNK:
        raise ValueError(
            f"{path}: expected {CHANNELS} channels x at least {LATENT_CHUNK} latent frames, "
            f"got {list(statistic.shape)}: this is not the CV8x8x8-720p tokenizer"
        )
    rows = statistic.float().reshape(CHANNELS, -1)[:, :LATENT_CHUNK]
    return rows.reshape(1, CHANNELS, LATENT_CHUNK, 1, 1)


def _statistics(path: Path) -> list[torch.Tensor]:
    """Mean and standard deviation: a pair of tensors, or one that holds both."""
    from cosmos_distill.arrays import rebuild, torch_files

    try:
        found = torch_files.read_any(path)
        parts = rebuild.tensor(found)
        if parts is None and isinstance(found, tuple | list):
            pair = [rebuild.tensor(part) for part in found[:3]]
        else:
            pair = [] if parts is None else list(parts)
    except ValueError as error:
        raise ValueError(
            f"{path}: the weights of the statistics cannot be read ({error}): download the file again"
        ) from error
    tensors = [part for part in pair if part is not None]
    if len(tensors) != 2 or len(pair) != 2:
        raise ValueError(f"{path}: expected weights of two statistics, mean and standard deviation")
    return tensors


TOKENIZER = TokenizerKind(
    title="Cosmos",
    time=FACTOR,
    space=FACTOR,
    channels=CHANNELS,
    chunk=CHUNK,
    folder="the folder that holds its encoder.jit, decoder.jit and mean_std.pt",
    files=files,
    check=check,
    recognises=recognises,
    build=CosmosCV8x8x8,
)

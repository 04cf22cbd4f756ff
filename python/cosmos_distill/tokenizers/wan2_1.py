"""Wan 2.1's causal VAE (16 channels, 4x8x8), Predict2.5's tokenizer, from its folder in diffusers' format or
from the official file, ``Wan2.1_VAE.pth``.

Latents are the mean of the encoder's distribution, normalised per channel: z = (mean - latents_mean) /
latents_std, with the statistics in the folder's config.json or, for the official file, which has none, those
published, which diffusers' class has for defaults.

Frames that an accelerator has no memory for are worked on in tiles, with the same result but for the order in
which sums are rounded (:mod:`~cosmos_distill.tokenizers.common.wan_tiles`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cosmos_distill.tokenizers import TokenizerKind, no_grad
from cosmos_distill.tokenizers.common import vae

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.common import files as weights

log = logging.getLogger(__name__)
TIME, SPACE = 4, 8
TILES = (512, 256, 128)
"""Sides of tiles in pixels, each of which is tried where the one before does not fit in memory."""
OFFICIAL = "Wan2.1_VAE.pth"


def files(path: Path) -> list[Path]:
    """Configuration and weights, or the official file, by itself or in its folder. Raises FileNotFoundError
    when there are none."""
    if path.is_file():
        return [path]
    if (path / OFFICIAL).is_file():  # beside a denoiser's configuration and weights in Wan 2.1's own folder
        return [path / OFFICIAL]
    if vae.is_one(path):
        return vae.files(path)
    raise FileNotFoundError(
        f"{path} lacks config.json or safetensors weights, and {OFFICIAL}: download the vae folder of "
        "Wan2.1-T2V-1.3B-Diffusers or of a Cosmos-Predict2.5 model in diffusers' format, or that file of "
        "Wan2.1-T2V-1.3B"
    )


def recognises(path: Path) -> bool:
    """Whether the official file is there, or is ``path``, or the configuration in it is this tokenizer's."""
    return path.name == OFFICIAL or (path / OFFICIAL).is_file() or vae.class_of(path) == "AutoencoderKLWan"


def check(path: Path) -> None:
    """Hold the headers of the weights against the network. Raises as :class:`Wan` does."""
    from diffusers import AutoencoderKLWan

    found = files(path)
    if len(found) == 1:
        _fitting(found[0])
    else:
        vae.check(AutoencoderKLWan, path)


def _official(path: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The network of the official file, whose configuration is the published one but for its width.

    Raises:
        ValueError: it is damaged, or of another network.
    """
    model, found = _fitting(path)
    model.load_state_dict({name: value.to(device, dtype) for name, value in found.items()}, assign=True)
    return model.eval().requires_grad_(False)


def _fitting(path: Path) -> tuple[Any, weights.State]:
    """The network on the meta device, and the file's tensors (mapped, not read) in its names."""
    import torch
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    from cosmos_distill.models.common import files as weights

    state = weights.read(path)
    try:
        found = convert_wan_vae_to_diffusers(dict(state))
        width, channels = found["encoder.conv_in.weight"].shape[0], found["post_quant_conv.weight"].shape[0]
        with torch.device("meta"):
            model = AutoencoderKLWan(base_dim=width, z_dim=channels)
        wanted = model.state_dict()
        if wrong := [n for n, value in wanted.items() if n not in found or found[n].shape != value.shape]:
            raise ValueError(f"{wrong[0]} is missing or of another size, and {len(wrong) - 1} more")
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not Wan 2.1's VAE ({error}): give {OFFICIAL}") from error
    return model, {name: found[name] for name in wanted}


def for_diffusers(path: Path) -> Any:
    """The official file's network as diffusers has it, in fp32. Raises as :class:`Wan` does."""
    import torch

    (file,) = files(path)
    return _official(file, torch.device("cpu"), torch.float32)


class Wan:
    """93 frames of 704x1280 become [16, 24, 88, 160].

    ``dtype`` is what encoder and decoder compute in (None: bf16 on CUDA, fp32 elsewhere); statistics and
    results are fp32. ``tile`` is the side in pixels of the tiles in which it works, a multiple of 8; None:
    whole frames, until memory is short. Raises FileNotFoundError when the folder is no such model, ValueError
    when the file is another's, ImportError without diffusers.
    """

    def __init__(
        self,
        path: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        tile: int | None = None,
    ) -> None:
        import torch
        from diffusers import AutoencoderKLWan

        found = files(path)
        self._device = torch.device(device)
        self._dtype = dtype or (torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self._vae: Any = (
            _official(found[0], self._device, self._dtype)
            if len(found) == 1
            else vae.load(AutoencoderKLWan, path, self._dtype, self._device)
        )
        self.tile = tile
        self.channels: int = self._vae.config.z_dim
        shape = (1, self.channels, 1, 1, 1)
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(shape)
            for values in (self._vae.config.latents_mean, self._vae.config.latents_std)
        )

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(16, 1 + (frames - 1) / 4, height / 8, width / 8)."""
        if frames < 1 or frames % TIME != 1:
            raise ValueError(f"the Wan tokenizer takes 1 + 4k frames, not {frames}")
        if height % SPACE or width % SPACE or height <= 0 or width <= 0:
            raise ValueError(f"the Wan tokenizer takes sides in multiples of {SPACE}, not {height}x{width}")
        return self.channels, 1 + (frames - 1) // TIME, height // SPACE, width // SPACE

    @no_grad
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, 16, 1 + (F - 1) / 4, H / 8, W / 8]."""
        import torch

        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"expected uint8 video [B, 3, F, H, W], got {video.dtype} {list(video.shape)}")
        self.latent_shape(*video.shape[2:])
        latents = []
        for clip in video.split(1):  # one at a time: a clip at 720p already fills much of a GPU
            mean = self._within_memory(partial(self._means, clip)).float()
            latents.append((mean - self._mean) / self._std)
        return torch.cat(latents)

    def _means(self, clip: torch.Tensor, tile: int | None) -> torch.Tensor:
        """The encoder's means, [1, 16, T, h, w], of a clip in tiles, or whole."""

        import torch

        def frames(chosen: slice, window: tuple[slice, slice]) -> torch.Tensor:
            part = clip[:, :, chosen, window[0], window[1]].to(self._device, torch.float32)
            return (part / 127.5 - 1.0).to(self._dtype)

        if tile is None:
            whole = slice(None)
            means: torch.Tensor = self._vae.encode(frames(whole, (whole, whole))).latent_dist.mode()
            return means
        from cosmos_distill.tokenizers.common import wan_tiles

        count, height, width = clip.shape[2:]
        return wan_tiles.encode(self._vae, frames, (count, height, width), tile)

    @no_grad
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, 16, T, h, w] -> uint8 [B, 3, 4T - 3, 8h, 8w]."""
        import torch

        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(f"expected latents [B, {self.channels}, T, h, w], got {list(latents.shape)}")
        clips = []
        for clip in latents.split(1):
            z = (clip.to(self._device, torch.float32) * self._std + self._mean).to(self._dtype)
            clips.append(self._within_memory(partial(self._shown, z)))
        return torch.cat(clips)

    def _shown(self, z: torch.Tensor, tile: int | None) -> torch.Tensor:
        """uint8 frames of latents in the VAE's own scale, in tiles, or whole."""

        import torch

        def colours(x: torch.Tensor) -> torch.Tensor:
            return ((x.float() + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)

        if tile is None:
            return colours(self._vae.decode(z).sample)
        from cosmos_distill.tokenizers.common import wan_tiles

        return wan_tiles.decode(self._vae, z, tile, colours)

    def _within_memory(self, work: Callable[[int | None], torch.Tensor]) -> torch.Tensor:
        """What ``work`` makes with the largest tiles that fit in memory; later clips begin with them."""
        import torch

        while True:
            try:
                return work(self.tile)
            except torch.OutOfMemoryError:
                smaller = [side for side in TILES if self.tile is None or side < self.tile]
                if not smaller:
                    raise
            # Behind the handler, whose error keeps alive what did not fit.
            log.warning("memory is short: the Wan 2.1 tokenizer works in tiles of %d pixels", smaller[0])
            self.tile = smaller[0]
            self._vae.clear_cache()  # features of whole frames, which it keeps between frames
            torch.cuda.empty_cache()


TOKENIZER = TokenizerKind(
    title="Wan 2.1",
    time=TIME,
    space=SPACE,
    folder=f"{OFFICIAL}, or its folder in diffusers' format (config.json and safetensors weights)",
    files=files,
    check=check,
    recognises=recognises,
    build=Wan,
)

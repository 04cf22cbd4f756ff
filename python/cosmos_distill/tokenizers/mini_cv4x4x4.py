"""The film's tokenizer: 4x4x4 to 16 channels, causal, learned; one file of weights in fp16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cosmos_distill
from cosmos_distill import families
from cosmos_distill.models.mini_tokenizer.config import COLOURS, GROUP, PRESETS, SIDE, AutoencoderConfig
from cosmos_distill.tokenizers import TokenizerKind, no_grad

if TYPE_CHECKING:
    import torch

    from cosmos_distill.models.mini_tokenizer.network import Autoencoder

NAME = "mini-cv4x4x4"
SHIPPED = Path(cosmos_distill.__file__).parent / "weights" / f"{NAME}.safetensors"
"""The weights that come with the package."""


def _sizes(path: Path) -> AutoencoderConfig:
    """Those that the file names; those of the shipped one where it names none, or a preset.

    Raises:
        ValueError: it names others than a tokenizer has.
    """
    from cosmos_distill.arrays.named import metadata

    said = metadata(path).get("network") if path.suffix == ".safetensors" else None
    sizes = PRESETS[NAME] if said is None else families.read(said)
    if not isinstance(sizes, AutoencoderConfig):
        raise ValueError(f"it says to be {families.title(sizes)}")
    return sizes


def check(path: Path) -> None:
    """Compare the headers of a file with the network. Raises as :class:`Learned` does."""
    _network(path, "meta")


def _network(path: Path, place: str) -> Autoencoder:
    """The network of a file; on the meta device no value is read."""
    import torch

    from cosmos_distill.models.common import files
    from cosmos_distill.models.mini_tokenizer.network import Autoencoder

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: give the tokenizer's safetensors file")
    meta = place == "meta"
    try:
        with torch.device(place):
            network = Autoencoder(_sizes(path))
        state = files.read(path, verify=not meta)
        network.load_state_dict(state if meta else {name: value.float() for name, value in state.items()})
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the weights of {NAME} ({error})") from error
    return network


class Learned:
    """9 frames of 48x80 become [16, 3, 12, 20].

    Computes in fp32, whatever the file holds, and clip by clip: what becomes of one does not depend on those
    beside it. Raises FileNotFoundError when there is no such file, ValueError
    when its tensors are not this network's.
    """

    def __init__(self, path: Path | None = None, device: torch.device | str = "cpu") -> None:
        import torch

        network = _network(path or SHIPPED, "cpu")
        self.channels = network.config.channels
        self._device = torch.device(device)
        self._network = network.to(self._device).eval().requires_grad_(False)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(16, 1 + (frames - 1) / 4, height / 4, width / 4)."""
        if frames < 1 or frames % GROUP != 1:
            raise ValueError(f"the {NAME} tokenizer takes 1 + 4k frames, not {frames}")
        if height % SIDE or width % SIDE or height <= 0 or width <= 0:
            raise ValueError(f"the {NAME} tokenizer takes sides in multiples of {SIDE}, not {height}x{width}")
        return self.channels, 1 + (frames - 1) // GROUP, height // SIDE, width // SIDE

    @no_grad
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, 16, 1 + (F - 1) / 4, H / 4, W / 4]."""
        import torch

        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[1] != COLOURS:
            raise ValueError(f"expected uint8 video [B, 3, F, H, W], got {video.dtype} {list(video.shape)}")
        self.latent_shape(*video.shape[2:])
        parts = [
            self._network.encode(clip.to(self._device, torch.float32) / 127.5 - 1.0)
            for clip in video.split(1)
        ]
        return torch.cat(parts).contiguous()

    @no_grad
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, 16, T, h, w] -> uint8 [B, 3, 4T - 3, 4h, 4w]."""
        import torch

        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(f"expected latents [B, {self.channels}, T, h, w], got {list(latents.shape)}")
        parts = [
            ((self._network.decode(z.to(self._device, torch.float32)) + 1.0) * 127.5)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
            for z in latents.split(1)
        ]
        return torch.cat(parts)


TOKENIZER = TokenizerKind(
    title=NAME,
    time=GROUP,
    space=SIDE,
    local=True,
    shipped=SHIPPED,
    files=lambda path: [path],
    check=check,
    build=Learned,
)

"""Weight-free orthonormal 3-D Haar transform: the mini scale's tokenizer.

A block of 3 colours x 2 frames x 4 x 4 pixels becomes 96 coefficients by one orthonormal matrix, the
Kronecker product of

- a rotation of RGB to luma and two chroma axes,
- one Haar level in time (low, high),
- two Haar levels in each spatial direction, the second level applied to both outputs of the first
  (a wavelet packet; it packs more energy in the leading bands than splitting the low output only).

It is causal in time: the first frame is taken as a pair of equal frames, so its temporal-low bands
are sqrt(2) times the frame's own and its temporal-high bands are zero; further frames go in pairs.
Encoding multiplies pixels, which are whole numbers, with a matrix of whole numbers, whose sums fp32 holds
exactly: a clip's latents have the same bits alone and in any batch, on every processor, with any number of
threads.

With all 96 bands the transform is exactly invertible. Fewer bands keep those of the highest variance
over the training windows of the mini scale; their order, means and standard deviations are a
constant table, :mod:`cosmos_distill.tokenizers.common.haar_table`, which :func:`measure` made.

Normalisation: z = scale * (c - mean) / sqrt(std) per band, so a band keeps the square root of its
standard deviation (whitening fully, dividing by std, amplified the fine bands until samples stayed
noise), and one global scale gives the kept bands a mean variance of one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cosmos_distill.tokenizers import TokenizerKind
from cosmos_distill.tokenizers.common.haar_table import BANDS

if TYPE_CHECKING:
    import torch

COLOURS, FRAMES, SIDE = 3, 2, 4
ALL_BANDS = COLOURS * FRAMES * SIDE * SIDE


class Band(NamedTuple):
    """One of the 96 coefficients of a block, with its statistics over the training windows."""

    row: int
    """Row of :func:`block_matrix`: ((colour * 2 + time) * 4 + vertical) * 4 + horizontal, where
    colour 0 is luma, time 0 low, and the spatial order is by number of sign changes."""
    mean: float
    std: float


def _whole_matrix() -> torch.Tensor:
    """:func:`block_matrix` before its rows are divided by their norms, fp64: whole numbers up to 2."""
    import torch

    colour = torch.tensor([[1.0, 1, 1], [1, 0, -1], [-1, 2, -1]], dtype=torch.float64)
    haar = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    # Two packet levels are the 4-point Walsh matrix; rows sorted by their number of sign changes.
    packet = torch.kron(haar, haar)[[0, 2, 3, 1]]
    return torch.kron(torch.kron(colour, haar), torch.kron(packet, packet))


def block_matrix() -> torch.Tensor:
    """The orthonormal matrix, fp64 [96, 96]; rows are bands, columns (colour, frame, y, x) of a block."""
    whole = _whole_matrix()
    return whole / whole.norm(dim=1, keepdim=True)


def _blocks(video: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, F, H, W] -> fp32 [B, T, h, w, 96], pixels from 0 to 255."""
    import torch

    x = video.float()
    x = torch.cat([x[:, :, :1], x], dim=2)  # causal: the first frame pairs with itself
    b, _, f, h, w = x.shape
    x = x.reshape(b, COLOURS, f // FRAMES, FRAMES, h // SIDE, SIDE, w // SIDE, SIDE)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def measure(video: torch.Tensor) -> list[Band]:
    """Bands of ``video`` (uint8 [B, 3, F, H, W]) in the order of falling variance.

    The shipped table is made by :mod:`cosmos_distill.data.measure_haar`.
    """
    pixels = _blocks(video).double() / 127.5 - 1.0
    coefficients = (pixels @ block_matrix().T).flatten(0, 3)
    mean, std = coefficients.mean(0), coefficients.std(0, correction=0)
    order = std.argsort(descending=True, stable=True)
    return [Band(i, float(mean[i]), float(std[i])) for i in order.tolist()]


class Haar:
    """The leading ``channels`` bands: 5 frames of 32x32 become [16, 3, 8, 8].

    Raises ValueError when ``channels`` is not within 1..96.
    """

    def __init__(self, channels: int = 16, device: torch.device | str = "cpu") -> None:
        import torch

        if not 1 <= channels <= ALL_BANDS:
            raise ValueError(f"the Haar tokenizer has 1 to {ALL_BANDS} channels, not {channels}")
        self.channels = channels
        kept = [Band(*row) for row in BANDS[:channels]]
        rows = [band.row for band in kept]
        matrix, whole = block_matrix()[rows], _whole_matrix()[rows]
        mean = torch.tensor([band.mean for band in kept], dtype=torch.float64)
        std = torch.tensor([band.std for band in kept], dtype=torch.float64)
        gain = std.rsqrt() / std.mean().sqrt()  # variance after the gain: std / mean(std)
        # Pixels p are 127.5 (x + 1), so that (matrix @ x - mean) * gain = (whole @ p) * factor + offset.
        self._whole = whole.float().to(device)
        self._factor = (gain / (127.5 * whole.norm(dim=1))).float().to(device)
        self._offset = (-(matrix.sum(1) + mean) * gain).float().to(device)
        self._matrix = matrix.float().to(device)
        self._mean = mean.float().to(device)
        self._gain = gain.float().to(device)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, 1 + (frames - 1) / 2, height / 4, width / 4)."""
        if frames < 1 or frames % FRAMES != 1:
            raise ValueError(f"the Haar tokenizer takes an odd number of frames, not {frames}")
        if height % SIDE or width % SIDE or height <= 0 or width <= 0:
            raise ValueError(f"the Haar tokenizer takes sides in multiples of {SIDE}, not {height}x{width}")
        return self.channels, (frames + 1) // FRAMES, height // SIDE, width // SIDE

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, F, H, W] -> fp32 [B, channels, (F + 1) / 2, H / 4, W / 4]."""
        import torch

        if video.dtype != torch.uint8 or video.ndim != 5 or video.shape[1] != COLOURS:
            raise ValueError(f"expected uint8 video [B, 3, F, H, W], got {video.dtype} {list(video.shape)}")
        self.latent_shape(*video.shape[2:])
        bands = _blocks(video.to(self._whole.device)) @ self._whole.T
        return (bands * self._factor + self._offset).permute(0, 4, 1, 2, 3).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, channels, T, h, w] -> uint8 [B, 3, 2T - 1, 4h, 4w]; bands left out count as zero."""
        import torch

        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(f"expected latents [B, {self.channels}, T, h, w], got {list(latents.shape)}")
        z = latents.to(self._matrix).permute(0, 2, 3, 4, 1)
        b, t, h, w, _ = z.shape
        x = (z / self._gain + self._mean) @ self._matrix
        x = x.reshape(b, t, h, w, COLOURS, FRAMES, SIDE, SIDE).permute(0, 4, 1, 5, 2, 6, 3, 7)
        x = x.reshape(b, COLOURS, t * FRAMES, h * SIDE, w * SIDE)
        # The mean of the first pair is the first frame whatever a generated latent says of their difference.
        x = torch.cat([x[:, :, :2].mean(2, keepdim=True), x[:, :, 2:]], dim=2)
        return ((x + 1.0) * 127.5).round_().clamp_(0, 255).to(torch.uint8)


TOKENIZER = TokenizerKind(
    title="Haar", time=FRAMES, space=SIDE, local=True, build=lambda path, device: Haar(device=device)
)

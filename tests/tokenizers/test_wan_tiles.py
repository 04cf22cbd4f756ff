"""Tiles of Wan's VAE give what whole frames give, and are taken where memory is short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_distill.tokenizers.common import wan_tiles
from cosmos_distill.tokenizers.wan2_1 import TILES, Wan
from tests.real_formats.tokenizers import wan

pytestmark = pytest.mark.needs("diffusers")
SIZE = 5, 16, 240
"""Frames, height and width: more latents from side to side than a tile has with its margins."""
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wan")
    wan(None, path)
    return path


@pytest.fixture(scope="module")
def vae(folder: Path) -> Any:
    """In fp64, in which the order of sums hardly counts, and with weights that no layer makes small."""
    found = Wan(folder, dtype=torch.float64)._vae
    torch.manual_seed(0)
    for name, p in found.named_parameters():
        noise = torch.randn(p.shape, dtype=p.dtype)
        shift, scale = (1, 0.1) if name.endswith("gamma") else (0, 1 / max(1, p[0].numel()) ** 0.5)
        p.copy_(shift + scale * noise)
    found.decoder.conv_out.weight.mul_(0.1)  # within -1..1, where nothing is cut off
    found.decoder.conv_out.bias.zero_()
    return found


def differences(vae: Any) -> tuple[float, float]:
    """Largest differences of tiles from whole frames: encoded, decoded."""
    torch.manual_seed(1)
    x = torch.rand(1, 3, *SIZE, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        whole = vae.encode(x).latent_dist.mode()
        tiles = wan_tiles.encode(vae, lambda t, w: x[:, :, t, w[0], w[1]], SIZE, SIDE)
        shown = vae.decode(whole).sample
        back = wan_tiles.decode(vae, whole, SIDE, lambda frames: frames)
    assert tiles.shape == whole.shape and back.shape == shown.shape == x.shape
    assert float(whole.std()) > 0.1 and 0.01 < float(shown.abs().mean()) < 0.9
    return float((tiles - whole).abs().max()), float((back - shown).abs().max())


def test_tiles_are_exact(vae: Any) -> None:
    assert max(differences(vae)) < 1e-12


@pytest.mark.parametrize("side", ["encoder_margin", "decoder_margin"])
def test_the_margin_is_what_makes_them_so(side: str, vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wan_tiles, side, lambda vae: 2)
    assert max(differences(vae)) > 1e-7


def test_margins_are_what_the_layers_reach() -> None:
    """Of the published depth: 68 pixels before the middle, 12.25 latents behind it."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan()
    assert (wan_tiles.encoder_margin(vae), wan_tiles.decoder_margin(vae)) == (9, 13)
    with torch.device("meta"):
        other = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1], attn_scales=[1.0], temperal_downsample=[False])
    with pytest.raises(ValueError, match="WanAttentionBlock cannot work in tiles"):
        wan_tiles.encoder_margin(other)


@contextmanager
def short_of_memory(monkeypatch: pytest.MonkeyPatch, tokenizer: Wan, width: int) -> Iterator[list[int]]:
    """An accelerator that has no memory for pictures wider than ``width`` pixels."""
    widths: list[int] = []
    encoder, decoder = tokenizer._vae.encoder.conv_in, tokenizer._vae.decoder.up_blocks[0]

    def watched(of: Any, scale: int) -> None:
        work = of.forward

        def forward(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            widths.append(scale * x.shape[-1])
            if widths[-1] > width:
                raise torch.OutOfMemoryError("CUDA out of memory")
            found: torch.Tensor = work(x, *args, **options)
            return found

        monkeypatch.setattr(of, "forward", forward)

    watched(encoder, 1)
    watched(decoder, 8)
    yield widths


def test_memory_that_is_short_makes_tiles(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, tokenizer = Wan(folder), Wan(folder)
    torch.manual_seed(2)
    video = torch.randint(0, 256, (2, 3, 5, 16, 960), dtype=torch.uint8)
    wanted = whole.encode(video)
    # A tile of 256 pixels with the margins of 13 latents on both sides.
    with (
        caplog.at_level(logging.WARNING),
        short_of_memory(monkeypatch, tokenizer, 256 + 2 * 13 * 8) as widths,
    ):
        found = tokenizer.encode(video)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert tokenizer.tile == 256 and "tiles of 256 pixels" in caplog.text
        assert widths.count(960) == 1, "later clips began with whole frames again"
        shown = tokenizer.decode(found).int()
        assert int((shown - whole.decode(found).int()).abs().max()) <= 1
    tokenizer.tile = None
    with short_of_memory(monkeypatch, tokenizer, 16), pytest.raises(torch.OutOfMemoryError):
        tokenizer.encode(video)
    assert tokenizer.tile == TILES[-1]

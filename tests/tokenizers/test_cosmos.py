"""The Cosmos wrapper, with tiny scripted stand-ins of the published TorchScript files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cosmos_distill.tokenizers import build
from cosmos_distill.tokenizers.cosmos_cv8x8x8 import CosmosCV8x8x8, files
from tests.real_formats import tokenizers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizers.cosmos(tmp_path)


@pytest.mark.parametrize("frames,time", [(1, 1), (9, 2), (121, 16), (242, 32)])
def test_statistics_are_per_channel_and_latent_frame(folder, frames, time):
    tokenizer = CosmosCV8x8x8(folder)
    generator = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (2, 3, frames, 16, 8), dtype=torch.uint8, generator=generator)
    z = tokenizer.encode(video)
    assert tuple(z.shape[1:]) == tokenizer.latent_shape(frames, 16, 8) == (16, time, 2, 1)
    for channel, t in ((0, 0), (5, time - 1)):
        row, source = channel * 20 + t % 16, (t // 16) * 121 + 8 * (t % 16)
        expected = (video[:, 0, source, ::8, ::8] / 127.5 - 1 - row / 100) / (1 + row / 50)
        assert torch.allclose(z[:, channel, t], expected, atol=1e-5)
    back = tokenizer.decode(z)
    assert back.shape == video.shape and back.dtype == torch.uint8
    assert torch.equal(back[:, 0, 0, ::8, ::8], video[:, 0, 0, ::8, ::8])


def test_shapes_that_do_not_fit_are_refused(folder):
    tokenizer = CosmosCV8x8x8(folder)
    for frames in (0, 8, 120, 129):
        with pytest.raises(ValueError, match=r"1 \+ 8k frames"):
            tokenizer.latent_shape(frames, 8, 8)
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.latent_shape(9, 12, 8)
    assert tokenizer.latent_shape(121, 704, 1280) == (16, 16, 88, 160)
    with pytest.raises(ValueError, match="latent frames"):
        tokenizer.decode(torch.zeros(1, 16, 17, 1, 1))


def test_missing_files_and_wrong_statistics_are_named(folder):
    torch.save((torch.zeros(16, 4), torch.ones(16, 4)), folder / "mean_std.pt")
    with pytest.raises(ValueError, match="not the CV8x8x8-720p"):
        CosmosCV8x8x8(folder)
    (folder / "decoder.jit").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks decoder\.jit"):
        CosmosCV8x8x8(folder)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_in_mean_std_is_not_executed(folder, capsys):
    torch.save(Evil(), folder / "mean_std.pt")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        CosmosCV8x8x8(folder)
    assert "executed" not in capsys.readouterr().out


def test_build_asks_for_the_folder(folder):
    class Choice:
        tokenizer, tokenizer_path = "cosmos-cv8x8x8", None

    with pytest.raises(ValueError, match=r"set data\.tokenizer_path"):
        build(Choice())
    Choice.tokenizer_path = folder
    assert isinstance(build(Choice()), CosmosCV8x8x8)


@pytest.fixture(scope="module")
def diffusers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKLCosmos

    path = tmp_path_factory.mktemp("cosmos")
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    vae = AutoencoderKLCosmos(
        encoder_block_out_channels=widths, decode_block_out_channels=widths, num_layers=1,
        attention_resolutions=(),
    )  # fmt: skip
    vae.save_pretrained(path)
    return path


def test_safetensors_are_preferred_and_give_what_diffusers_gives(diffusers_folder, folder):
    from diffusers import AutoencoderKLCosmos

    vae = AutoencoderKLCosmos.from_pretrained(diffusers_folder)
    video = torch.randint(0, 256, (2, 3, 9, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        z = vae.encode(video / 127.5 - 1).latent_dist.mode()
        mean, std = (
            torch.tensor(s).view(1, 16, -1, 1, 1)[:, :, :2]
            for s in (vae.config.latents_mean, vae.config.latents_std)
        )
        tokenizer = CosmosCV8x8x8(diffusers_folder)
        torch.testing.assert_close(tokenizer.encode(video), (z - mean) / std, rtol=1e-4, atol=1e-5)
        decoded = tokenizer.decode((z - mean) / std)
        wanted = ((vae.decode(z).sample + 1) * 127.5).round().clamp(0, 255)
    assert decoded.dtype == torch.uint8 and decoded.shape == video.shape
    assert float((decoded.float() - wanted).abs().max()) <= 1
    for path in diffusers_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = [path.name for path in files(folder)]
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]

"""The Wan tokenizer around a tiny random VAE of its architecture."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from cosmos_distill.config import Data
from cosmos_distill.tokenizers import build, fingerprint
from tests.memory import limited
from tests.real_formats.tokenizers import wan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import AutoencoderKLWan

    path = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, num_res_blocks=1, dim_mult=[1, 1, 1, 1])
    vae.save_pretrained(path)
    return path


def test_latents_are_normalised_means_and_come_back(folder: Path) -> None:
    from diffusers import AutoencoderKLWan

    tokenizer = build(Data(tokenizer="wan2.1", tokenizer_path=folder))
    video = torch.randint(0, 256, (2, 3, 9, 16, 32), dtype=torch.uint8)
    latents = tokenizer.encode(video)
    assert latents.shape == (2, *tokenizer.latent_shape(9, 16, 32)) == (2, 16, 3, 2, 4)
    vae = AutoencoderKLWan.from_pretrained(folder)
    mean = vae.encode(video / 127.5 - 1).latent_dist.mode()
    shape = (1, 16, 1, 1, 1)
    centre, spread = (torch.tensor(v).view(shape) for v in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(latents * spread + centre, mean.detach(), rtol=1e-4, atol=1e-5)
    decoded = tokenizer.decode(latents)
    wanted = ((vae.decode(mean).sample + 1) * 127.5).round().clamp(0, 255)
    assert decoded.dtype == torch.uint8 and decoded.shape == video.shape
    assert float((decoded.float() - wanted.detach()).abs().max()) <= 1


def test_bad_sizes_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = build(Data(tokenizer="wan2.1", tokenizer_path=folder))
    with pytest.raises(ValueError, match="1 \\+ 4k frames, not 8"):
        tokenizer.latent_shape(8, 16, 16)
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.latent_shape(9, 20, 16)
    with pytest.raises(FileNotFoundError, match="safetensors weights"):
        build(Data(tokenizer="wan2.1", tokenizer_path=tmp_path))
    with pytest.raises(ValueError, match="needs its folder"):
        build(Data(tokenizer="wan2.1"))


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "AutoencoderKL"},
        {"z_dim": 10**9},
        {"z_dim": "many"},
        {"base_dim": 16},
        {"dim_mult": []},
        [],
    ],
    ids=str,
)
def test_a_configuration_that_its_weights_do_not_fit_is_refused(folder: Path, tmp_path: Path, change) -> None:
    forged = tmp_path / "wan"
    shutil.copytree(folder, forged)
    said = json.loads((forged / "config.json").read_text())
    (forged / "config.json").write_text(json.dumps(said | change if isinstance(change, dict) else change))
    with limited(2**29), pytest.raises(ValueError, match="wan"):
        build(Data(tokenizer="wan2.1", tokenizer_path=forged))


def test_nothing_that_a_configuration_names_is_loaded(folder: Path, tmp_path: Path) -> None:
    """diffusers' own loader imports another package for it, and follows an index out of the folder."""
    forged = tmp_path / "wan"
    shutil.copytree(folder, forged)
    said = json.loads((forged / "config.json").read_text())
    said |= {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (forged / "config.json").write_text(json.dumps(said))
    assert build(Data(tokenizer="wan2.1", tokenizer_path=forged)).latent_shape(5, 16, 16) == (16, 2, 2, 2)
    weights = forged / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "outside.safetensors")
    (forged / "x.safetensors").write_bytes(b"")
    index = {"weight_map": {"encoder.conv_in.weight": "../outside.safetensors"}}
    (forged / f"{weights.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="points outside its folder"):
        build(Data(tokenizer="wan2.1", tokenizer_path=forged))


@pytest.mark.parametrize("place", ["file", "folder"])
def test_the_official_file_gives_the_latents_of_diffusers_folder(place: str, tmp_path: Path) -> None:
    official = tmp_path / "official" / "Wan2.1_VAE.pth"
    wan(official, tmp_path / "diffusers")
    given = official if place == "file" else official.parent
    mine, theirs = (
        build(Data(tokenizer="wan2.1", tokenizer_path=path)) for path in (given, tmp_path / "diffusers")
    )
    video = torch.randint(0, 256, (1, 3, 9, 16, 32), dtype=torch.uint8)
    latents = mine.encode(video)
    assert torch.equal(latents, theirs.encode(video)) and torch.equal(
        mine.decode(latents), theirs.decode(latents)
    )
    assert list(fingerprint(Data(tokenizer="wan2.1", tokenizer_path=given))) == ["Wan2.1_VAE.pth"]


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match=r"is not Wan 2\.1's VAE"):
        build(Data(tokenizer="wan2.1", tokenizer_path=tmp_path))

"""The learned tokenizer: components first, causal, one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_distill.config import Data
from cosmos_distill.families import described
from cosmos_distill.models.mini_tokenizer import network as autoencoder
from cosmos_distill.models.mini_tokenizer.config import PRESETS, AutoencoderConfig
from cosmos_distill.models.mini_tokenizer.network import Autoencoder
from cosmos_distill.storage import publish_tensors
from cosmos_distill.tokenizers import build
from cosmos_distill.tokenizers.mini_cv4x4x4 import NAME, SHIPPED, Learned
from cosmos_distill.tokenizers.pixels import Pixels

SMALL = AutoencoderConfig(channels=8, encoder_width=8, decoder_width=16, decoder_blocks=2)


def clips(count: int = 12, seed: int = 0) -> torch.Tensor:
    """Smooth moving pictures within [-1, 1], [N, 3, 9, 16, 24]."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, 5, generator=random)
    return torch.nn.functional.interpolate(coarse, (9, 16, 24), mode="trilinear").clamp(-2, 2) / 2


@pytest.fixture
def network() -> Autoencoder:
    made = Autoencoder(SMALL)
    made.initialize(0, clips())
    return made.requires_grad_(False)


def stirred(network: Autoencoder) -> Autoencoder:
    """With weights everywhere, as training leaves them."""
    random = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    return network


def test_blocks_come_back():
    video = clips(2)
    assert torch.equal(autoencoder.unblocks(*autoencoder.blocks(video)), video)


def test_it_starts_as_the_best_linear_code(network):
    video = clips()
    latents = network.encode(video)
    assert latents.shape == (12, 8, 3, 4, 6)
    for part in (latents[:, :, :1], latents[:, :, 1:]):
        values = part.movedim(1, -1).flatten(0, -2)
        assert values.var(0, correction=0).mean().item() == pytest.approx(1, abs=1e-3)
        assert values.mean(0).abs().max() < 1e-3
    error = (network.decode(latents) - video).square()
    # What is lost is exactly the power of the components that are left out.
    for name, part, times in (("first", video[:, :, :1], 1), ("later", video[:, :, 1:], 4)):
        blocks = (
            autoencoder.blocks(video)[("first", "later").index(name)].movedim(2, -1).flatten(0, -2).double()
        )
        lost = torch.linalg.eigvalsh(torch.cov(blocks.T, correction=0))[:-8].sum() / (48 * times)
        found = error[:, :, :1] if name == "first" else error[:, :, 1:]
        assert found.mean().item() == pytest.approx(lost.item(), rel=1e-2, abs=1e-6), part.shape


def test_initial_weights_depend_on_the_seed_only(network):
    again, other = Autoencoder(SMALL), Autoencoder(SMALL)
    state = torch.get_rng_state()
    again.initialize(0, clips())
    assert torch.equal(torch.get_rng_state(), state)
    other.initialize(1, clips())
    pairs = list(zip(network.parameters(), again.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert any(not torch.equal(a, c) for a, _, c in pairs)


def test_it_is_causal_in_groups_of_frames(network):
    network, video = stirred(network), clips(2)
    changed = video.clone()
    changed[:, :, 5:] = 0.3  # the last group
    before, after = network.encode(video), network.encode(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2]) and not torch.equal(before, after)
    assert torch.equal(network.decode(before)[:, :, :5], network.decode(after)[:, :, :5])
    alone = network.encode(video[:, :, :1])
    torch.testing.assert_close(alone, before[:, :, :1])
    assert network.decode(alone).shape == (2, 3, 1, 16, 24)


def test_what_lies_before_is_seen(network):
    network, video = stirred(network), clips(2)
    changed = video.clone()
    changed[:, :, :1] = 0.3
    assert not torch.equal(network.encode(video)[:, :, 1], network.encode(changed)[:, :, 1])


def test_latents_can_be_rescaled_without_a_trace_in_the_clips(network):
    network, video = stirred(network), clips(2)
    latents, back = network.encode(video), network.decode(network.encode(video))
    network.rescale(0.25)
    torch.testing.assert_close(network.encode(video), 0.25 * latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.decode(network.encode(video)), back, rtol=1e-4, atol=1e-4)


def full(path: Path) -> Path:
    network = Autoencoder(PRESETS[NAME])
    network.initialize(0, clips(40))
    save_file({k: v.half() for k, v in network.state_dict().items()}, path)
    return path


def test_tokenizer_from_a_file(tmp_path):
    path = full(tmp_path / "tokenizer.safetensors")
    tokenizer = build(Data(tokenizer=NAME, tokenizer_path=path))
    video = Pixels().decode(clips(20, seed=1))
    latents = tokenizer.encode(video)
    assert latents.dtype == torch.float32 and latents.shape == (20, 16, 3, 4, 6)
    assert tuple(latents.shape[1:]) == tokenizer.latent_shape(9, 16, 24)
    back = tokenizer.decode(latents)
    assert back.dtype == torch.uint8 and (back.float() - video.float()).abs().mean() < 9
    assert torch.equal(tokenizer.encode(video[3:5]), latents[3:5])  # nothing depends on the batch
    assert torch.equal(tokenizer.decode(latents[3:5]), back[3:5])


@pytest.mark.parametrize("frames, height, width", [(8, 16, 24), (9, 18, 24), (9, 16, 22), (0, 16, 24)])
def test_sizes_that_do_not_fit_are_refused(tmp_path, frames, height, width):
    tokenizer = build(Data(tokenizer=NAME, tokenizer_path=full(tmp_path / "t.safetensors")))
    with pytest.raises(ValueError, match=NAME):
        tokenizer.latent_shape(frames, height, width)


def test_files_that_are_no_tokenizer_are_named(tmp_path):
    path = tmp_path / "tokenizer.safetensors"
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.safetensors is missing"):
        build(Data(tokenizer=NAME, tokenizer_path=path))
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="does not hold the weights"):
        build(Data(tokenizer=NAME, tokenizer_path=path))
    state = load_file(full(path))
    save_file({k: v for k, v in state.items() if not k.startswith("decoder")}, path)
    with pytest.raises(ValueError, match="does not hold the weights"):
        build(Data(tokenizer=NAME, tokenizer_path=path))


def test_the_shipped_weights_are_small_and_keep_a_clip():
    assert SHIPPED.stat().st_size < 3 * 2**20
    tokenizer = build(Data(tokenizer=NAME))
    video = Pixels().decode(
        clips(4)[:, :1].expand(-1, 3, -1, -1, -1) / 2
    )  # grey: the film has no such colours
    latents = tokenizer.encode(video)
    assert 0.2 < latents.std() < 2
    assert (tokenizer.decode(latents).float() - video.float()).square().mean() < 40  # 32 dB


def test_pixels_are_left_as_they_are():
    tokenizer = build(Data(tokenizer="pixels"))
    video = torch.randint(0, 256, (2, 3, 5, 6, 7), dtype=torch.uint8)
    latents = tokenizer.encode(video)
    assert tuple(latents.shape[1:]) == tokenizer.latent_shape(5, 6, 7) and latents.abs().max() <= 1
    assert torch.equal(tokenizer.decode(latents), video)
    assert torch.equal(tokenizer.decode(latents * 3), Pixels().decode((latents * 3).clamp(-1, 1)))


def test_sizes_are_those_that_the_file_names(tmp_path: Path) -> None:
    own = AutoencoderConfig(encoder_width=16, decoder_width=24, decoder_blocks=1)
    network = Autoencoder(own)
    network.initialize(0, torch.rand(16, 3, 9, 16, 16) * 2 - 1)
    for about in (described(own), described(own) | {"decoder_blocks": 2}, "transfer1-smoke"):
        path = publish_tensors(network.state_dict(), tmp_path / "own.safetensors", {"network": about})
        if about == described(own):
            assert Learned(path).latent_shape(9, 16, 16) == (16, 3, 4, 4)
            continue
        with pytest.raises(ValueError, match="does not hold the weights of mini-cv4x4x4"):
            Learned(path)

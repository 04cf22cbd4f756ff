"""The Haar transform is orthonormal, causal, exactly invertible; its table is what the function measures."""

from __future__ import annotations

import pytest
import torch

from cosmos_distill.tokenizers import build, haar
from cosmos_distill.tokenizers.common.haar_table import BANDS
from tests import rounding


def random_video(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_matrix_is_orthonormal():
    m = haar.block_matrix()
    assert torch.allclose(m @ m.T, torch.eye(haar.ALL_BANDS, dtype=m.dtype), atol=1e-14)


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_all_bands_invert_bit_exactly(frames):
    video = random_video(2, 3, frames, 16, 24, seed=frames)
    tokenizer = haar.Haar(channels=96)
    latents = tokenizer.encode(video)
    assert tuple(latents.shape[1:]) == tokenizer.latent_shape(frames, 16, 24) == (96, (frames + 1) // 2, 4, 6)
    assert torch.equal(tokenizer.decode(latents), video)


def test_first_frame_stands_alone_and_time_is_causal():
    tokenizer = haar.Haar(channels=96)
    video = random_video(1, 3, 7, 8, 8)
    changed = video.clone()
    changed[:, :, 3:] = 255 - changed[:, :, 3:]
    a, b = tokenizer.encode(video), tokenizer.encode(changed)
    assert torch.equal(a[:, :, :2], b[:, :, :2]) and not torch.equal(a[:, :, 2:], b[:, :, 2:])
    assert torch.equal(a[:, :, :1], tokenizer.encode(video[:, :, :1]))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_clip_has_the_same_bits_alone_in_a_batch_and_in_exact_arithmetic(threads):
    tokenizer, video = haar.Haar(channels=96), random_video(6, 3, 5, 16, 24)
    together = tokenizer.encode(video)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with rounding.by_shapes(lambda: True):
            alone = torch.cat([tokenizer.encode(video[i : i + 1]) for i in range(6)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, together)
    blocks = haar._blocks(video)
    assert torch.equal((blocks @ tokenizer._whole.T).long(), blocks.long() @ tokenizer._whole.long().T)


def test_encoding_is_the_normalised_orthonormal_transform():
    tokenizer, video = haar.Haar(channels=96), random_video(2, 3, 5, 16, 24)
    rows = [row for row, _, _ in BANDS]
    mean, std = torch.tensor(BANDS, dtype=torch.float64).T[1:]
    bands = (haar._blocks(video).double() / 127.5 - 1) @ haar.block_matrix()[rows].T
    exact = ((bands - mean) * std.rsqrt() / std.mean().sqrt()).permute(0, 4, 1, 2, 3)
    assert torch.allclose(tokenizer.encode(video).double(), exact, rtol=1e-6, atol=2e-6)


def test_first_frame_is_a_repeated_pair():
    video = random_video(1, 3, 3, 4, 4)
    bands = (
        ((haar._blocks(video).double() / 127.5 - 1) @ haar.block_matrix().T)[0, 0].flatten().reshape(3, 2, 16)
    )
    assert bands[:, 1].abs().max() < 1e-6  # colour, time, space: temporal-high is nothing
    frame = video[0, :, 0].double() / 127.5 - 1
    assert bands[:, 0].norm().item() == pytest.approx(2**0.5 * frame.norm().item(), rel=1e-6)


def test_fewer_bands_are_the_leading_bands_and_their_mean_variance_is_one():
    video = random_video(2, 3, 5, 8, 8)
    few, all_ = haar.Haar(channels=16), haar.Haar(channels=96)
    ratio = few.encode(video) / all_.encode(video)[:, :16]  # one global scale apart
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-4)
    std = torch.tensor([band[2] for band in BANDS[:16]])
    assert (few._gain.square() * std.square()).mean().item() == pytest.approx(1.0, rel=1e-5)
    # Variance to the power 1/2: the spread of a band after normalisation goes as sqrt(std).
    spread = few._gain * std
    assert torch.allclose(spread / spread[0], (std / std[0]).sqrt(), rtol=1e-5)


def test_table_lists_every_band_once_by_falling_variance():
    assert sorted(row[0] for row in BANDS) == list(range(96))
    stds = [row[2] for row in BANDS]
    assert stds == sorted(stds, reverse=True)


def test_refusals_say_what_is_wrong():
    tokenizer = haar.Haar()
    with pytest.raises(ValueError, match="odd number of frames, not 4"):
        tokenizer.encode(random_video(1, 3, 4, 8, 8))
    with pytest.raises(ValueError, match="multiples of 4, not 30x32"):
        tokenizer.latent_shape(5, 30, 32)
    with pytest.raises(ValueError, match="uint8"):
        tokenizer.encode(torch.zeros(1, 3, 5, 8, 8))
    with pytest.raises(ValueError, match="1 to 96"):
        haar.Haar(channels=97)
    with pytest.raises(ValueError, match=r"\[B, 16"):
        tokenizer.decode(torch.zeros(1, 12, 3, 8, 8))


def test_build_names_the_choices():
    class Choice:
        tokenizer, tokenizer_path = "haar", None

    assert isinstance(build(Choice()), haar.Haar)
    Choice.tokenizer = "wan"
    with pytest.raises(ValueError, match="there are cosmos-cv8x8x8, haar, mini-cv4x4x4"):
        build(Choice())

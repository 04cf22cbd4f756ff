"""SSIM against the formula written out, and its invariances."""

import numpy as np
import pytest
import torch

from cosmos_distill.eval.metrics import blur_ssim


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one frame, one colour, window by window."""
    taps = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    window = np.outer(taps, taps) / taps.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(values))


def test_ssim_is_the_formula() -> None:
    x, y = np.random.Generator(np.random.Philox(0)).uniform(0, 255, (2, 14, 13))
    found = blur_ssim.ssim(torch.from_numpy(x)[None, None], torch.from_numpy(0.5 * x + 0.5 * y)[None, None])
    assert float(found) == pytest.approx(by_hand(x, 0.5 * x + 0.5 * y), rel=1e-9)


def test_flat_frames_compare_by_level_alone() -> None:
    a, b = torch.full((1, 1, 16, 16), 100.0), torch.full((1, 1, 16, 16), 140.0)
    expected = (2 * 100 * 140 + 2.55**2) / (100**2 + 140**2 + 2.55**2)
    assert float(blur_ssim.ssim(a, b)) == pytest.approx(expected, rel=1e-5)  # fp32


def test_detail_is_ignored_and_layout_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 2, 4, 4, generator=generator) * 155
    video = coarse.repeat_interleave(8, 3).repeat_interleave(8, 4)
    detail = torch.rand(video.shape, generator=generator) * 100
    same, other = (video + detail).to(torch.uint8), (video.flip(4) + detail).to(torch.uint8)
    video = (video + 50).to(torch.uint8)
    assert blur_ssim.per_clip(video, video).tolist() == pytest.approx([1, 1])
    assert blur_ssim.per_clip(same, video).min() > 0.9
    assert blur_ssim.per_clip(other, video).max() < 0.8


def test_small_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="11 x 11"):
        blur_ssim.ssim(torch.zeros(1, 1, 10, 32), torch.zeros(1, 1, 10, 32))

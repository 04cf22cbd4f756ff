"""The control upscale is a clip at a lower resolution, enlarged again, with the published scales."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cosmos_distill import controls
from cosmos_distill.controls import upscale


def texture(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    waves = 127 + 60 * np.sin(rows / 5.0) + 60 * np.cos(columns / 7.0)
    noise = np.random.default_rng(0).normal(0, 20, (2, height, width, 3))
    frames: np.ndarray = (waves[None, :, :, None] + noise).clip(0, 255).astype(np.uint8)
    return frames


@pytest.mark.parametrize("strength, share", [("low", 1 / 2), ("medium", 1 / 3), ("high", 1 / 6)])
def test_it_is_bicubic_down_and_bilinear_up(strength: str, share: float) -> None:
    """Against Pillow, whose bicubic is antialiased, too."""
    frames = texture(60, 96)
    settings = controls.preset("upscale", strength)
    found = controls.compute("upscale", frames, settings)
    small = (int(96 * share), int(60 * share))
    for one, got in zip(frames, found, strict=True):
        down = Image.fromarray(one).resize(small, Image.Resampling.BICUBIC)
        wanted = np.asarray(down.resize((96, 60), Image.Resampling.BILINEAR), np.int16)
        assert np.abs(got.astype(np.int16) - wanted).max() <= 2
    assert found.shape == frames.shape and found.dtype == np.uint8


def test_scales_are_drawn_with_the_published_shares() -> None:
    uniform = np.random.default_rng(0).random((6000, controls.DRAWS))
    scales = np.array([upscale.draw(u) for u in uniform])
    for scale, share in ((1 / 6, 0.3), (1 / 3, 0.5), (1 / 2, 0.2)):
        assert abs((scales == scale).mean() - share) < 0.02
    ends = [upscale.draw([u]) for u in (0.0, 0.3, 0.8, 1 - 1e-12)]
    assert ends == [1 / 6, 1 / 3, 1 / 2, 1 / 2]


def test_nothing_is_left_out_of_a_clip_with_the_strength_none() -> None:
    frames = texture(31, 17)
    found = controls.compute("upscale", frames, controls.preset("upscale", "none"))
    assert (found == frames).all()

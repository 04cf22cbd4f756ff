"""The vis control against its published steps in fp64, and its draws against the published ranges."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from cosmos_distill import controls
from cosmos_distill.controls import DRAWS, edge, vis
from cosmos_distill.controls.vis import VIS, Bilateral, Gaussian, VisSettings
from cosmos_distill.ops.registry import BackendFallback

H, W = 48, 66


@pytest.fixture
def small(monkeypatch):
    """Frames of 48 lines have the published lengths, so that fp64 need not filter whole ones."""
    monkeypatch.setattr(vis, "LINES", H)


def frame(height=H, width=W, seed=0) -> np.ndarray:
    """Coarse structure, steps and texture."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 200, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1)
    return (coarse[:height, :width] + random.integers(0, 56, (height, width, 3))).astype(np.uint8)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x), 0, 255)


def separable(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return rounded(np.moveaxis(np.tensordot(rows, x, 1).swapaxes(1, 2) @ columns.T, 1, 2))


def area(size: int, to: int) -> np.ndarray:
    """Share of every old pixel in a new one."""
    edges = np.arange(to + 1) * size / to
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(size) + 1)
    return np.maximum(high - low, 0) * to / size


def linear(size: int, to: int) -> np.ndarray:
    """Weights of the two neighbours of a new pixel's centre; beyond the border its pixel counts."""
    at = np.clip((np.arange(to) + 0.5) * size / to - 0.5, 0, size - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0)


def cubic(size: int, to: int) -> np.ndarray:
    """Keys' kernel with a = -1/2, widened by the scale when it goes down, cut at the border."""
    scale = max(1.0, size / to)
    x = np.abs((np.arange(to)[:, None] + 0.5) * size / to - 0.5 - np.arange(size)) / scale
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def gaussian(x: np.ndarray, size: int, sigma: float) -> np.ndarray:
    reach = size // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    taps /= taps.sum()
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    rows = sum(t * padded[i : i + x.shape[0]] for i, t in enumerate(taps))
    return rounded(sum(t * rows[:, i : i + x.shape[1]] for i, t in enumerate(taps)))


def bilateral(x: np.ndarray, diameter: int, color: float, space: float) -> np.ndarray:
    """Over a disc; colours are as far apart as the sum of their differences."""
    reach = max(1, diameter // 2)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    total, norm = np.zeros_like(x), np.zeros(x.shape[:2])
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            if i * i + j * j > reach * reach:
                continue
            other = padded[reach + i :, reach + j :][: x.shape[0], : x.shape[1]]
            apart = np.abs(other - x).sum(2)
            weight = np.exp(-0.5 * (i * i + j * j) / space**2 - 0.5 * (apart / color) ** 2)
            total += weight[..., None] * other
            norm += weight
    return rounded(total / norm[..., None])


def plain(image: np.ndarray, settings: VisSettings) -> np.ndarray:
    """The published pipeline at its own resolution."""
    height, width = image.shape[:2]
    small = height // settings.shrink, width // settings.shrink
    x = separable(image.astype(float), area(height, small[0]), area(width, small[1]))
    for step in settings.filters:
        if isinstance(step, Bilateral):
            for _ in range(step.passes):
                x = bilateral(x, step.diameter, step.sigma_color, step.sigma_space)
        else:
            x = gaussian(x, step.size + (step.size % 2 == 0), step.sigma)
    x = separable(x, linear(small[0], height), linear(small[1], width))
    coarse = int(height / settings.coarsen), int(width / settings.coarsen)
    x = separable(x, cubic(height, coarse[0]), cubic(width, coarse[1]))
    return separable(x, cubic(coarse[0], height), cubic(coarse[1], width))


SETTINGS = [
    VisSettings(1, (Bilateral(15, 100, 50, 3),), 4),
    VisSettings(1, (Bilateral(16, 120, 149, 1),), 17),
    VisSettings(2, (Gaussian(22, 10.5),), 5),
    VisSettings(3, (Gaussian(29, 14.4),), 16),
    VisSettings(4, (Bilateral(20, 299, 60, 2), Gaussian(21, 12.5)), 7),
    VisSettings(1, (Gaussian(25, 11.0),), 4),
    *VIS.values(),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_vis_is_the_published_pipeline(settings, small):
    image = frame()
    found = vis.blur(image[None], settings)
    assert found.shape == (1, H, W, 3) and found.dtype == np.uint8
    apart = np.abs(found[0] - plain(image, settings))
    # OpenCV computes in fixed point and rounds its steps: a level now and then.
    assert apart.max() <= 2 and (apart**2).mean() < 0.25  # 54 dB
    assert ((vis.blur(image[None])[0] - plain(image, settings)) ** 2).mean() > 1 or settings == VIS["medium"]


@pytest.mark.parametrize("settings", SETTINGS[2:6], ids=str)
def test_a_blur_means_the_same_at_every_resolution(settings, monkeypatch):
    """A frame and its reduction by 4 look alike once they are blurred and brought to one size."""
    monkeypatch.setattr(vis, "LINES", 352)
    smooth = separable(frame(44, 44).astype(float), linear(44, 352), linear(44, 352)).astype(np.uint8)
    reduced = separable(smooth.astype(float), area(352, 88), area(352, 88)).astype(np.uint8)
    whole = separable(vis.blur(smooth[None], settings)[0].astype(float), area(352, 88), area(352, 88))
    part = vis.blur(reduced[None], settings)[0].astype(float)
    changed = np.sqrt(((whole - reduced) ** 2).mean())
    assert changed > 5
    assert np.sqrt(((whole - part) ** 2).mean()) < 0.35 * changed


@pytest.mark.compiled
def test_without_a_compiled_module_opencv_blurs(small, monkeypatch):
    settings = VisSettings(1, (Bilateral(30, 150, 100, 2),), 1)
    ours = vis.blur(frame()[None], settings)
    monkeypatch.setitem(sys.modules, "cosmos_distill.ops.compiled", None)
    with pytest.warns(BackendFallback, match="vis is blurred by OpenCV"):
        theirs = vis.blur(frame()[None], settings)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


def test_larger_frames_keep_the_published_lengths(small):
    image = frame(60, 60)
    settings = VisSettings(2, (Gaussian(22, 10.5),), 5)
    assert np.abs(vis.blur(image[None], settings)[0] - plain(image, settings)).max() <= 2


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_vis_at_mini_blurs_and_keeps_layout(settings):
    image = frame(32, 32)
    found = vis.blur(image[None], settings)[0].astype(float)
    assert (np.abs(found - image) > 2).any() or settings == VIS["none"]
    assert np.corrcoef(found.ravel(), image.ravel())[0, 1] > 0.8
    flat = np.full((1, 32, 32, 3), 77, np.uint8)
    assert (vis.blur(flat, settings) == 77).all()


def test_training_draws_have_the_published_ranges_and_shares():
    draws = [vis.draw(u) for u in np.random.default_rng(0).random((20_000, DRAWS))]
    kinds = [tuple(type(f) for f in d.filters) for d in draws]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert shares == {
        (Bilateral,): pytest.approx(0.5, abs=0.02),
        (Gaussian,): pytest.approx(0.3, abs=0.02),
        (Bilateral, Gaussian): pytest.approx(0.2, abs=0.02),
    }
    assert {d.shrink for d in draws} == {1, 2, 3, 4}
    assert {d.coarsen for d in draws} == set(range(4, 18))
    bilaterals = [f for d in draws for f in d.filters if isinstance(f, Bilateral)]
    assert {b.diameter for b in bilaterals} == set(range(15, 50))
    assert {b.sigma_color for b in bilaterals} == set(range(100, 300))
    assert {b.sigma_space for b in bilaterals} == set(range(50, 150))
    assert {b.passes for b in bilaterals} == {1, 2, 3}
    gaussians = [f for d in draws for f in d.filters if isinstance(f, Gaussian)]
    assert {g.size for g in gaussians} == set(range(21, 30))
    sigmas = [g.sigma for g in gaussians]
    assert 10.5 <= min(sigmas) < 10.51 and 14.49 < max(sigmas) < 14.5
    assert abs(np.corrcoef([g.size for g in gaussians], sigmas)[0, 1]) < 0.05


def test_presets_are_the_published_ones():
    assert [(s.shrink, s.coarsen, *s.filters[0]) for s in VIS.values()] == [
        (1, 1, 1, 1, 1, 1), (1, 4, 15, 100, 50, 1), (4, 4, 15, 100, 50, 1), (2, 10, 30, 150, 100, 1),
        (1, 16, 50, 300, 150, 1), (4, 16, 50, 300, 150, 1),
    ]  # fmt: skip
    assert list(edge.CANNY.values()) == [
        (20, 50),
        (20, 50),
        (50, 100),
        (100, 200),
        (200, 300),
        (300, 400),
    ]
    assert list(VIS) == list(edge.CANNY)
    image = frame(32, 32)[None]
    assert (controls.compute("vis", image) == vis.blur(image, VIS["medium"])).all()
    assert (
        controls.compute("vis", image, controls.preset("vis", "high")) == vis.blur(image, VIS["high"])
    ).all()
    assert (controls.compute("edge", image, (20, 50)) == edge.canny(image, 20, 50)).all()

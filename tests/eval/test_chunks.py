"""Metrics of long and large clips: the same numbers whatever the runs of frames, and memory for some."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_distill.eval import chunks
from cosmos_distill.eval.measure import load
from cosmos_distill.eval.metrics import blur_ssim, given_frames
from cosmos_distill.eval.views import View

PIXELS = (
    "blur_ssim", "canny_f1", "given_frames", "gradient_energy", "motion", "motion_correlation",
    "motion_steps", "random_frechet",
)  # fmt: skip
FRAMES, SIDE = 12, 32


def clips(seed: int, frames: int = FRAMES, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """One clip with structure at several scales, uint8 [1, 3, F, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.full((3, frames, height, width), 128.0)
    for cell in (4, 16, 64):
        size = (max(2, height // cell), max(2, width // cell))
        noise = torch.randn(3, frames, *size, generator=generator)
        found += F.interpolate(noise, (height, width), mode="bilinear") * 8 * cell**0.5
    return found.clamp(0, 255).byte()[None]


def view() -> View:
    """Two clips with real ones."""
    video, real = torch.cat([clips(0), clips(1)]), torch.cat([clips(2), clips(3)])
    return View(video, View(real), codec=clips(4).expand_as(video), given=torch.tensor([FRAMES, 5]))


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor._base is None:
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("name", PIXELS)
def test_runs_of_frames_change_neither_numbers_nor_need_a_clip_at_once(name, monkeypatch):
    metric = load([name])[name]
    given = view()
    with Largest() as at_once:
        whole = given.of(metric.reads)
    few = 2 * 2 * 3 * SIDE**2  # two frames of both clips
    monkeypatch.setitem(chunks.VALUES, "cpu", few)
    given = view()
    with Largest() as seen:
        pieces = given.of(metric.reads)
    assert torch.allclose(pieces, whole, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert 0 < seen.bytes < at_once.bytes / 2


def test_large_frames_compared_at_some_positions_score_as_at_all(monkeypatch):
    height, width = 323, 331
    real = clips(0, 1, height, width)
    others = {
        "the same": real,
        "noise": (real.float() + 20 * torch.randn(real.shape, generator=torch.manual_seed(0))).clamp(0, 255),
        "another": clips(1, 1, height, width),
        "moved": real.roll(height // 10, -1),
    }
    for label, video in others.items():
        at_some = float(blur_ssim.per_clip(video.byte(), real))
        with monkeypatch.context() as patch:
            patch.setattr(blur_ssim, "SAMPLED", 10**6)
            at_all = float(blur_ssim.per_clip(video.byte(), real))
        assert at_some == pytest.approx(at_all, abs=5e-4), label
        assert (label == "the same") == (at_all > 0.9999)


def test_given_frames_beyond_a_run_are_compared(monkeypatch):
    wanted = clips(0).clamp(max=254)
    video = wanted.clone()
    video[:, :, 7] += 1
    monkeypatch.setitem(chunks.VALUES, "cpu", 1)
    errors = given_frames.squared_errors(video, wanted, [9])
    assert errors[0, :9].tolist() == [0.0] * 7 + [1.0, 0.0] and errors[0, 9:].isnan().all()

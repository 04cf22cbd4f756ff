"""The bilateral filter in every build of the compiled module against fp64 and against OpenCV."""

from __future__ import annotations

import importlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from cosmos_distill.ops import compiled
from cosmos_distill.ops.bilateral import bilateral
from tests.ops.builds import BUILDS, runnable

pytestmark = pytest.mark.compiled

# Height, width, radius, sigma of colour, sigma of space: widths of whole and of broken vectors, discs that
# are larger than the picture, weights that are too small for a float's exponent.
CASES = [
    (40, 53, 7, 100.0, 50.0),
    (33, 160, 24, 299.0, 149.0),
    (70, 96, 15, 150.0, 100.0),
    (7, 5, 24, 120.0, 60.0),
    (1, 1, 7, 100.0, 50.0),
    (20, 1, 8, 100.0, 50.0),
    (50, 70, 1, 1.0, 1.0),
    (30, 40, 3, 2.0, 0.4),
]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Steps and texture, up to black and white."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 2, (-(-height // 8), -(-width // 8), 3)).repeat(8, 0).repeat(8, 1) * 200
    return (coarse[:height, :width] + random.integers(0, 56, (height, width, 3))).astype(np.uint8)


def exact(image: np.ndarray, radius: int, color: float, space: float) -> np.ndarray:
    """In fp64, not rounded."""
    x = image.astype(float)
    padded = np.pad(x, ((radius, radius), (radius, radius), (0, 0)), "reflect")
    total, norm = np.zeros_like(x), np.zeros(x.shape[:2])
    for i in range(-radius, radius + 1):
        for j in range(-radius, radius + 1):
            if i * i + j * j > radius * radius:
                continue
            other = padded[radius + i :, radius + j :][: x.shape[0], : x.shape[1]]
            apart = np.abs(other - x).sum(2)
            weight = np.exp(-0.5 * (i * i + j * j) / space**2 - 0.5 * (apart / color) ** 2)
            total += weight[..., None] * other
            norm += weight
    return total / norm[..., None]


def filtered(image: np.ndarray, *settings: float) -> np.ndarray:
    radius, color, space = settings
    return bilateral(torch.from_numpy(image), int(radius), color, space).numpy()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_fp64s_and_the_same_in_every_build(case, monkeypatch):
    height, width, *settings = case
    image = picture(height, width)
    found = {}
    for name in (name for capability in runnable() for name in BUILDS[capability]):
        monkeypatch.setattr(compiled, "kernels", importlib.import_module(f"cosmos_distill.{name}"))
        found[name] = filtered(image, *settings)
    first = found["_C"]
    assert all((one == first).all() for one in found.values())
    mean = exact(image, *settings)
    apart = first != np.rint(mean)
    assert (np.abs(first - mean) < 0.501).all() and apart.mean() < 1e-3
    assert (first != image).any() or height == 1 or settings[1] < 50
    opencv = cv2.bilateralFilter(image, 2 * settings[0] + 1, *settings[1:])
    assert np.abs(first.astype(int) - opencv).max() <= 1 and (first != opencv).mean() < 2e-3


def test_threads_change_nothing():
    image = picture(300, 40)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(filtered(image, 20, 130.0, 80.0))
    finally:
        torch.set_num_threads(before)
    assert all((one == found[0]).all() for one in found)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"picture": torch.zeros(4, 4, 3)},
            r"picture must be uint8 \[H, W, 3\], not torch.float32 \[4, 4, 3\]",
        ),
        ({"picture": torch.zeros(4, 0, 3, dtype=torch.uint8)}, r"\[4, 0, 3\]"),
        ({"picture": torch.zeros(3, 4, 4, dtype=torch.uint8).permute(1, 2, 0)}, "contiguous"),
        ({"radius": 0}, "radius must be at least 1, not 0"),
        ({"sigma_color": 0.0}, "sigma_color must be at least 1e-06, not 0.0"),
        ({"sigma_space": float("nan")}, "sigma_space must be at least 1e-06, not nan"),
    ],
    ids=str,
)
def test_what_cannot_be_filtered_is_named(wrong: dict[str, Tensor | float], said: str):
    good = {
        "picture": torch.zeros(4, 4, 3, dtype=torch.uint8),
        "radius": 2,
        "sigma_color": 9.0,
        "sigma_space": 3.0,
    }
    assert bilateral(**good).shape == (4, 4, 3)
    with pytest.raises(ValueError, match=said):
        bilateral(**good | wrong)


def test_a_module_from_before_the_filter_is_told(monkeypatch):
    class Old:
        __file__ = "old.so"

    monkeypatch.setattr(compiled, "kernels", Old())
    with pytest.raises(ImportError, match=r"old\.so was built before it had this filter: build it again"):
        bilateral(torch.zeros(4, 4, 3, dtype=torch.uint8), 2, 9.0, 3.0)


def test_it_runs_in_forked_workers():
    """Those of a DataLoader start after this process has used its threads."""
    code = """
import os, torch
from cosmos_distill.ops.bilateral import bilateral
torch.set_num_threads(2)
x = (torch.arange(300 * 40 * 3) % 251).to(torch.uint8).view(300, 40, 3)
here = bilateral(x, 9, 100.0, 50.0)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(bilateral(x, 9, 100.0, 50.0), here) else 1)
print(os.waitpid(child, 0)[1])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "0"

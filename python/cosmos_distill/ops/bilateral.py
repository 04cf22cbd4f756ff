"""The bilateral filter of 8-bit pictures on the CPU: csrc/bilateral.cpp.

It is no operator of networks: it has no gradient, and no other backend. The result is the same, bit for bit,
on every instruction set and with any number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import number

_LEAST = 1e-6
"""Sigmas below which no other pixel weighs anything, and whose squares leave a float's range."""


def bilateral(picture: Tensor, radius: int, sigma_color: float, sigma_space: float) -> Tensor:
    """The bilateral filter (Tomasi and Manduchi, ICCV 1998), with the distances and borders of OpenCV's.

    Every pixel becomes the mean of those within ``radius``, weighted by
    ``exp(-d^2 / (2 sigma_space^2) - c^2 / (2 sigma_color^2))``: d is the distance in pixels, c the sum of the
    channels' absolute differences. Borders are mirrored without repeating the outermost pixels.

    Args:
        picture: uint8 [H, W, 3], contiguous, on the CPU.
        radius: of the disc, in pixels, at least 1.
        sigma_color: in grey levels, 1e-6 at least.
        sigma_space: in pixels, 1e-6 at least.

    Returns:
        A new picture like the first one. It differs from fp64's, rounded to nearest, by one level at most,
        where the mean lies within 1e-3 of the middle between two levels.

    Raises:
        ValueError: an argument is none of these; the message names it.
        ImportError: nothing was compiled, or a module from before this filter.
    """
    if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"picture must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}")
    if picture.device.type != "cpu" or not picture.is_contiguous():
        raise ValueError("picture must be contiguous and on the CPU: call .cpu().contiguous() first")
    number("radius", radius, 1)
    if int(radius) != radius:
        raise ValueError(f"radius must be a whole number, not {radius}")
    for name, sigma in (("sigma_color", sigma_color), ("sigma_space", sigma_space)):
        number(name, sigma, _LEAST)
    from .compiled import kernels

    run = getattr(kernels, "bilateral", None)
    if run is None:
        raise ImportError(
            f"{kernels.__file__} was built before it had this filter: build it again with make setup or pip "
            "install -e ."
        )
    result = torch.empty_like(picture)
    height, width = picture.shape[:2]
    run(
        picture.data_ptr(),
        height,
        width,
        int(radius),
        float(sigma_color),
        float(sigma_space),
        result.data_ptr(),
    )
    return result

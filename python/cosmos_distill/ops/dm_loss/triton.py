"""Distribution matching losses in Triton. See fused.py for what the functions take and return.

Programs take a stretch of one sample each and leave their sums in memory; a second kernel adds those up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import aot
from ..elements import new_fp32
from ..launch import launch
from ..partials import total
from ..strides import new_like

_BLOCK = 4096
_WARPS = 8


@triton.jit
def _place(count, BLOCK: tl.constexpr):
    """This program's sample, and its elements within. All programs lie on the grid's first axis, a sample's
    next to each other: the others end at 65,535, fewer than a batch may have samples."""
    chunks = tl.cdiv(count, BLOCK)
    return (tl.program_id(0) // chunks).to(tl.int64), tl.program_id(0) % chunks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _weight(frame_mask, sample, at, inside, frames, area, MASKED: tl.constexpr):
    """The frame mask of elements of latents [C, T, H, W]; ones, without a mask, for elements that exist."""
    if MASKED:
        frame = at // area % frames
        weight = tl.load(frame_mask + sample * frames + frame, mask=inside, other=0.0)
    else:
        weight = inside.to(tl.float32)
    return weight


@triton.jit
def renoise_sweep(x0, eps, alpha, sigma, out, count, BLOCK: tl.constexpr):
    sample, at = _place(count, BLOCK)
    inside = at < count
    start = sample * count
    signal = tl.load(x0 + start + at, mask=inside, other=0.0).to(tl.float32)
    noise = tl.load(eps + start + at, mask=inside, other=0.0).to(tl.float32)
    if alpha is not None:
        signal *= tl.load(alpha + sample)
    tl.store(out + start + at, signal + tl.load(sigma + sample) * noise, mask=inside)


@triton.jit
def vsd_sweep(
    x,
    teacher,
    fake,
    uncond,
    x_t,
    coefficients,
    frame_mask,
    direction,
    partials,
    guidance,
    count,
    frames,
    area,
    GUIDED: tl.constexpr,
    PRECONDITIONED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, at = _place(count, BLOCK)
    inside = at < count
    start = sample * count
    real = tl.load(teacher + start + at, mask=inside, other=0.0).to(tl.float32)
    made = tl.load(fake + start + at, mask=inside, other=0.0).to(tl.float32)
    student = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        unled = tl.load(uncond + start + at, mask=inside, other=0.0).to(tl.float32)
        real = unled + (1.0 + guidance) * (real - unled)
    difference = made - real
    if PRECONDITIONED:
        noisy = tl.load(x_t + start + at, mask=inside, other=0.0).to(tl.float32)
        skip = tl.load(coefficients + 2 * sample)
        scale = tl.load(coefficients + 2 * sample + 1)
        real = skip * noisy + scale * real
        difference *= scale  # c_skip x_t is in both and need not be subtracted
    weight = _weight(frame_mask, sample, at, inside, frames, area, MASKED)
    difference *= weight
    tl.store(direction + start + at, difference.to(direction.dtype.element_ty), mask=inside)
    sums = partials + 3 * tl.program_id(0).to(tl.int64)
    tl.store(sums, tl.sum(weight * tl.abs(student - real), 0))
    tl.store(sums + 1, tl.sum(difference * difference, 0))
    tl.store(sums + 2, tl.sum(weight, 0))


@triton.jit
def vsd_gradient_sweep(direction, slope, out, count, BLOCK: tl.constexpr):
    sample, at = _place(count, BLOCK)
    inside = at < count
    factor = tl.load(slope + sample)
    value = tl.load(direction + sample * count + at, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(factor == 0.0, 0.0, factor * value)  # 0 silences a NaN, too
    tl.store(out + sample * count + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def squared_error_sweep(
    p,
    target,
    x_t,
    coefficients,
    frame_mask,
    grad,
    out,
    count,
    frames,
    area,
    GRADIENT: tl.constexpr,
    PRECONDITIONED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """This stretch's sum, or, given grad, the gradient w.r.t. p."""
    sample, at = _place(count, BLOCK)
    inside = at < count
    start = sample * count
    value = tl.load(p + start + at, mask=inside, other=0.0).to(tl.float32)
    wanted = tl.load(target + start + at, mask=inside, other=0.0).to(tl.float32)
    if PRECONDITIONED:
        noisy = tl.load(x_t + start + at, mask=inside, other=0.0).to(tl.float32)
        skip = tl.load(coefficients + 2 * sample)
        scale = tl.load(coefficients + 2 * sample + 1)
        value = skip * noisy + scale * value
    weight = _weight(frame_mask, sample, at, inside, frames, area, MASKED)
    error = value - wanted
    if GRADIENT:
        slope = 2.0 * tl.load(grad + sample)
        if PRECONDITIONED:
            slope *= scale
        tl.store(out + start + at, (slope * weight * error).to(out.dtype.element_ty), mask=inside)
    else:
        share = tl.sum(weight * error * error, 0)
        tl.store(out + tl.program_id(0), share)


def _chunks(x: Tensor) -> int:
    """Stretches of a sample."""
    return triton.cdiv(_count(x), _BLOCK)


def _grid(x: Tensor) -> tuple[int]:
    return (x.shape[0] * _chunks(x),)


def _count(x: Tensor) -> int:
    """Elements of a sample."""
    return x.shape[1:].numel()


def _frames(x: Tensor, frame_mask: Tensor | None) -> tuple[Tensor | None, int, int]:
    """(mask, frames, elements of a frame)"""
    if frame_mask is None:
        return None, 1, 1
    return frame_mask, x.shape[2], x.shape[3] * x.shape[4]


def renoise(x0: Tensor, eps: Tensor, alpha: Tensor | None, sigma: Tensor) -> Tensor:
    out = new_fp32(x0, *x0.shape)
    tensors = (x0, eps, alpha, sigma, out)
    launch(renoise_sweep, _grid(x0), *tensors, _count(x0), BLOCK=_BLOCK, num_warps=_WARPS)
    return out


def vsd(
    x: Tensor,
    teacher: Tensor,
    fake: Tensor,
    uncond: Tensor | None,
    x_t: Tensor | None,
    guidance: float,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    direction = new_like(x)
    partials = new_fp32(x, x.shape[0], _chunks(x), 3)
    mask, frames, area = _frames(x, frame_mask)
    launch(
        vsd_sweep,
        _grid(x),
        x,
        teacher,
        fake,
        uncond,
        x_t,
        coefficients,
        mask,
        direction,
        partials,
        guidance,
        _count(x),
        frames,
        area,
        GUIDED=uncond is not None,
        PRECONDITIONED=x_t is not None,
        MASKED=mask is not None,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )
    return direction, total(partials, new_fp32(x, x.shape[0], 3))


def vsd_gradient(direction: Tensor, slope: Tensor) -> Tensor:
    out = new_like(direction)
    tensors = (direction, slope, out)
    launch(vsd_gradient_sweep, _grid(out), *tensors, _count(out), BLOCK=_BLOCK, num_warps=_WARPS)
    return out


def _squared_error(
    grad: Tensor | None,
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
    out: Tensor,
) -> None:
    mask, frames, area = _frames(p, frame_mask)
    launch(
        squared_error_sweep,
        _grid(p),
        p,
        target,
        x_t,
        coefficients,
        mask,
        grad,
        out,
        _count(p),
        frames,
        area,
        GRADIENT=grad is not None,
        PRECONDITIONED=x_t is not None,
        MASKED=mask is not None,
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def squared_error(
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    partials = new_fp32(p, p.shape[0], _chunks(p), 1)
    _squared_error(None, p, target, x_t, coefficients, frame_mask, partials)
    return total(partials, new_fp32(p, p.shape[0]))


def squared_error_gradient(
    grad: Tensor,
    p: Tensor,
    target: Tensor,
    x_t: Tensor | None,
    coefficients: Tensor | None,
    frame_mask: Tensor | None,
) -> Tensor:
    out = new_like(p)
    _squared_error(grad, p, target, x_t, coefficients, frame_mask, out)
    return out


def aot_cases() -> list[aot.AotCase]:
    """Everything launched at the published networks' shapes."""
    found = []
    for dtype, short in aot.DTYPES:
        x = torch.empty((1, 16, 16, 88, 160), dtype=dtype, device="meta")
        one, two, mask = (new_fp32(x, *shape) for shape in ((1,), (1, 2), (1, 16)))
        found += aot.cases("renoise", f"720p {short}", renoise, x, x, one, one)
        found += aot.cases("renoise", f"720p, signal of 1 {short}", renoise, x, x, None, one)
        found += aot.cases("vsd_loss_backward", f"720p {short}", vsd_gradient, x, one)
        for x_t, coefficients, raw in ((None, None, ""), (x, two, ", network outputs")):
            for frame_mask, masked in ((None, ""), (mask, ", masked")):
                label = f"720p{raw}{masked} {short}"
                where = (x_t, coefficients, frame_mask)
                for uncond, guided in ((None, ""), (x, ", guided")):
                    rest = (uncond, x_t, 5.0, coefficients, frame_mask)
                    found += aot.cases("vsd_loss", f"720p{guided}{raw}{masked} {short}", vsd, x, x, x, *rest)
                found += aot.cases("fake_score_loss", label, squared_error, x, x, *where)
                found += aot.cases(
                    "fake_score_loss_backward", label, squared_error_gradient, one, x, x, *where
                )
    return found

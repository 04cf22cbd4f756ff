"""adaLN's kernels for tensors of several types: the ones that its operators' usual calls do not launch."""

from __future__ import annotations

import torch

from benchmarks.gpu.calls import Addresses, calls
from benchmarks.gpu.work import Shape
from cosmos_distill.ops import registry

HALVES = (torch.bfloat16, torch.float16)
MIXES = (
    *((one, one, one) for one in registry.NARROW),
    *((torch.float32, half, half) for half in HALVES),
    *((torch.float32, half, torch.float32) for half in HALVES),
)
"""Elements of the residual, of the branch and of the output that adaLN's kernels have a build for."""


def run(shape: Shape, x: torch.dtype, y: torch.dtype, out: torch.dtype, offset: int) -> None:
    """adaLN's operators with a residual of ``x``, a branch of ``y`` and an output of ``out``."""
    made = calls(shape, dtype=x)
    cuda = made["gated_residual_adaln", "fwd"].module("cuda")
    assert cuda is not None
    residual, branch, gate, shift, scale, eps, rms, _ = made["gated_residual_adaln", "fwd"].arguments
    grad_x_new, grad, x_new, _, stats, *_, wanted = made["gated_residual_adaln", "bwd"].arguments
    branch, grad = branch.to(y), grad.to(out)
    with Addresses(offset):
        cuda.gated_residual_adaln(residual, branch, gate, shift, scale, eps, rms, out)
        cuda.gated_residual_adaln_backward(
            grad_x_new, grad, x_new, branch, stats, gate, scale, rms, y, wanted
        )
        if y == out:
            cuda.adaln_modulate(residual, shift, scale, eps, rms, out)
            cuda.adaln_modulate_backward(grad, residual, stats, scale, rms, 0b111)
            cuda.gated_residual(residual, branch, gate)
            cuda.gated_residual_backward(grad_x_new, branch, gate, y, 0b11)

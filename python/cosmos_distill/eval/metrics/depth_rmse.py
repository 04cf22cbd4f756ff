"""Does a generated clip have the depth of the real one? Scale-invariant error of depth from a network
given."""

from __future__ import annotations

import torch
from torch import Tensor

from cosmos_distill.eval.features import given
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.pools import mean
from cosmos_distill.eval.views import View

FLOOR = 1e-3
"""Depths below this share of a frame's largest count as that: a network's zeros have no logarithm."""


def scale_invariant(found: Tensor, wanted: Tensor) -> Tensor:
    """Error of depth maps [..., H, W], [...]: root of the variance over positions of log found - log wanted.
    Multiplying either by a number changes nothing."""
    apart = (_log(found) - _log(wanted)).flatten(-2)
    return (apart.square().mean(-1) - apart.mean(-1).square()).clamp_min(0).sqrt()


def _log(depth: Tensor) -> Tensor:
    depth = depth.double()
    most = depth.amax((-2, -1), keepdim=True)
    # A map without any depth is flat, whatever it says.
    return torch.where(most > 0, depth.maximum(FLOOR * most).clamp_min(1e-300).log(), 0.0)


def depths(view: View) -> Tensor:
    """Depth of every frame, fp32 [B, F, H, W]."""
    run = given.network(view.networks["depth_rmse"], "depth", view.device)
    return given.by_frame(run, view.video, view.device)


def errors(view: View) -> Tensor:
    """Mean error over the frames of each clip, fp64 [B]."""
    found, wanted = view.of(depths), view.real.of(depths)
    parts = zip(found.split(1, 1), wanted.split(1, 1), strict=True)  # frame by frame: logarithms are fp64
    return torch.cat([scale_invariant(f, w) for f, w in parts], 1).mean(1)


METRIC = Metric(
    title="depth si-RMSE",
    direction="lower",
    unit="log depth",
    source="Eigen et al. 2014, eq. 1, per frame; depth (or inverse depth) by the network given",
    reads=errors,
    pool=mean,
    paired=True,
    network=True,
)

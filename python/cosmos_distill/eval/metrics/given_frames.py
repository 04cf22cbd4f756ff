"""Given frames must come back: PSNR per frame against what the tokenizer makes of the real clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.eval.chunks import runs
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.pools import once
from cosmos_distill.eval.views import View

EXACT = 100.0
"""PSNR in dB that stands for no difference at all."""


def squared_errors(
    video: Tensor, wanted: Tensor, given: Sequence[int], device: torch.device | None = None
) -> Tensor:
    """Mean squared error of every given frame in grey levels, fp64 [B, F]; NaN on frames not given.

    Args:
        video: Generated clips, uint8 [B, 3, F, H, W].
        wanted: The real clips after the tokenizer's round trip, same shape.
        given: How many leading frames of each clip were given.
        device: Where to compute; None: where the clips are.
    """
    frames, most = video.shape[2], max(given, default=0)
    errors = torch.full((len(video), frames), torch.nan, dtype=torch.float64)
    first = 0
    for ours, theirs in runs(video[:, :, :most], wanted[:, :, :most], device=device) if most else ():
        error = (ours.float() - theirs.float()).square().sum((1, 3, 4), dtype=torch.float64).cpu()
        errors[:, first : first + ours.shape[2]] = error / (ours[:, :, 0].numel() / len(ours))
        first += ours.shape[2]
    index = torch.arange(frames)
    return torch.where(index < torch.as_tensor(given)[:, None], errors, torch.nan)


def summary(errors: Tensor) -> dict[str, Any]:
    """Of :func:`squared_errors` [B, F]: ``psnr`` in dB of every frame that was ever given, in order, at most
    100 (exact), ``exact``, and the ``clips`` that each is a mean over."""
    clips = (~errors.isnan()).sum(0)
    means = [float(errors[:, f].nanmean()) for f in range(errors.shape[1]) if clips[f]]
    return {
        "psnr": [_psnr(m) for m in means],
        "exact": all(m == 0 for m in means),
        "clips": [n for n in clips.tolist() if n],
    }


def _psnr(error: float) -> float:
    return EXACT if error == 0 else min(EXACT, 10 * float(torch.tensor(255.0**2 / error).log10()))


def _read(view: View) -> Tensor:
    if view.codec is None or view.given is None:
        raise NoScore("no frame was given")
    return squared_errors(view.video, view.codec, view.given.tolist(), view.device)


def worst(errors: Tensor, weights: Tensor | None = None) -> float:
    """PSNR in dB, at most 100, of the given frame that is farthest from what was given, of
    :func:`squared_errors` [N, F], each clip taken ``weights`` [N] times (once if left out).

    Raises:
        NoScore: no frame was given.
    """
    given = ~errors.isnan()
    clips = once(weights, errors) @ given.double()
    if not clips.any():
        raise NoScore("no frame was given")
    means = once(weights, errors) @ errors.nan_to_num(0.0) / clips
    return _psnr(float(means[clips > 0].max()))


METRIC = Metric(
    title="given frames",
    direction="higher",
    unit="dB, 100 is exact",
    source="PSNR against the tokenizer's round trip of what was given, the worst of the frames",
    reads=_read,
    pool=worst,
    paired=True,
)

"""Fréchet distance between Gaussians (Dowson and Landau 1982), of weighted samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.statistics import Sample, Statistic, clip_weights


class Gaussian(NamedTuple):
    """Mean and covariance of a set of clips."""

    mean: Tensor
    """[D], fp64"""
    covariance: Tensor
    """[D, D], fp64"""


def gaussian(features: Tensor, weights: Tensor | None = None) -> Gaussian:
    """Mean and unbiased covariance of ``features`` [B, D], each clip taken ``weights`` [B] times.

    Raises:
        NoScore: a single clip, which has no covariance.
    """
    if len(features) < 2:
        raise NoScore("one clip has no covariance: it takes two or more")
    weights = torch.ones(len(features), dtype=torch.float64) if weights is None else weights.double()
    mean = weights @ features / weights.sum()
    centred = features - mean
    return Gaussian(mean, (centred * weights[:, None]).T @ centred / (weights.sum() - 1))


def distance(a: Gaussian, b: Gaussian) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_b^1/2 S_a S_b^1/2)^1/2), not below 0."""
    return _distance(a, b, _root(b))


def _root(of: Gaussian) -> Tensor:
    values, vectors = torch.linalg.eigh(of.covariance)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _distance(a: Gaussian, b: Gaussian, root: Tensor) -> float:
    common = torch.linalg.eigvalsh(root @ a.covariance @ root).clamp_min(0).sqrt().sum()
    trace = a.covariance.trace() + b.covariance.trace() - 2 * common
    return max(0.0, float((a.mean - b.mean).square().sum() + trace))


def frechet(
    reference: Sample, points: Callable[[Tensor], Tensor] = lambda values: values
) -> Callable[[Sample], Statistic]:
    """Fréchet distance between ``reference`` and a sample.

    Clips may consist of several points each, e.g. one of each frame: values [N, P, D] instead of [N, D].

    Args:
        points: Applied to the values of either first.
    """

    def gaussian_of(sample: Sample, counts: Tensor) -> Gaussian:
        values = points(sample.values)
        weights = clip_weights(sample, counts)
        if values.dim() == 3:
            weights = weights.repeat_interleave(values.shape[1])
            values = values.flatten(0, 1)
        return gaussian(values.double(), weights)

    whole = gaussian_of(reference, torch.ones(0, dtype=torch.float64))
    root = _root(whole)

    def of(sample: Sample) -> Statistic:
        shared = (
            reference.units is not None
            and sample.units is not None
            and bool(torch.isin(sample.units, reference.units).any())
        )

        def statistic(counts: Tensor) -> float:
            if shared:
                return distance(gaussian_of(sample, counts), gaussian_of(reference, counts))
            return _distance(gaussian_of(sample, counts), whole, root)

        return statistic

    return of

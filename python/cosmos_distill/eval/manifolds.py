"""Precision and recall of sets of clips (Kynkäänniemi et al. 2019).

A set's manifold is the union of balls around its clips, each as large as the distance to the clip's k-th
nearest neighbour in the set. Precision is the share of generated clips inside the real manifold, recall the
share of real clips inside the generated one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cosmos_distill.eval.kernels import Space
from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.statistics import Sample, Statistic, clip_weights

NEIGHBOURS = 5


def radii(points: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each of ``points`` [N, D] to its k-th nearest neighbour among the others, [N].

    Raises:
        NoScore: there are not so many others.
    """
    if len(points) <= k:
        raise NoScore(f"{len(points)} clips have no {k} nearest neighbours each")
    # Differences, not products: a clip that is there twice is at distance 0 exactly.
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return apart.kthvalue(k + 1, dim=1).values  # the nearest is the point itself


def inside(points: Tensor, centres: Tensor, radius: Tensor) -> Tensor:
    """Whether each of ``points`` [M, D] lies in the ball of each of ``centres`` [N, D], bool [M, N]."""
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist") <= radius


def precision(reference: Sample) -> Callable[[Sample], Statistic]:
    """Share of a sample's clips in the manifold of ``reference``, which resampling leaves as it is."""
    space = Space.of(reference.values)
    centres = space(reference.values)
    radius = radii(centres)

    def of(sample: Sample) -> Statistic:
        hit = inside(space(sample.values), centres, radius).any(1).double()

        def statistic(counts: Tensor) -> float:
            weights = clip_weights(sample, counts)
            return float(weights @ hit / weights.sum())

        return statistic

    return of


def recall(reference: Sample) -> Callable[[Sample], Statistic]:
    """Share of the clips of ``reference`` in a sample's manifold.

    A resampled manifold lacks the balls of the shots that were not drawn (the radii of the others stay),
    and where the reference has the same shots, their clips do not count either.
    """
    space = Space.of(reference.values)
    points = space(reference.values)

    def of(sample: Sample) -> Statistic:
        own = space(sample.values)
        hit = inside(points, own, radii(own))

        def statistic(counts: Tensor) -> float:
            present = clip_weights(sample, counts) > 0
            weights = clip_weights(reference, counts)
            return float(weights @ hit[:, present].any(1).double() / weights.sum())

        return statistic

    return of

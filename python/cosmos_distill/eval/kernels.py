"""Squared maximum mean discrepancy between sets of clips whose shots are known (Gretton et al. 2012).

    MMD^2(P, Q) = E k(x, x') + E k(y, y') - 2 E k(x, y),  x, x' ~ P and y, y' ~ Q independent

Each expectation is estimated by the mean over pairs of *independent* clips, hence over pairs from different
units: a clip is compared neither with itself (Gretton's unbiased estimate, eq. 3) nor with another window
of its own shot, be that in the same set or in the other. So the estimate stays unbiased where several clips
are from one shot, a shot may have clips in both sets, and a replica that draws a shot twice is no nearer or
farther for it. Equal distributions score 0 on average; single estimates lie on either side of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_distill.eval.missing import NoScore
from cosmos_distill.eval.statistics import Sample, Statistic

DIRECTIONS = 64
Kernel = Callable[[Tensor, Tensor], Tensor]
"""Of points [N, D] and [M, D], [N, M]."""


@dataclass(frozen=True)
class Space:
    """Numbers of clips, each divided by its deviation over a reference, along the reference's principal
    directions.

    Distances are then neither ruled by the numbers that happen to be large nor by the noise of those that
    hardly differ between clips.
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor
    """[D, at most 64]"""

    @classmethod
    def of(cls, reference: Tensor) -> Space:
        """The space of ``reference`` [M, D].

        Raises:
            NoScore: fewer than three clips.
        """
        if len(reference) < 3:
            raise NoScore(f"a reference of {len(reference)} clips is too small: three or more")
        mean, scale = reference.mean(0), reference.std(0) + 1e-6
        rows = torch.linalg.svd((reference - mean) / scale, full_matrices=False)[2]
        return cls(mean, scale, rows[: min(DIRECTIONS, len(reference) - 1)].T)

    def __call__(self, values: Tensor) -> Tensor:
        """Coordinates of clips with ``values`` [N, D]."""
        return ((values - self.mean) / self.scale) @ self.directions


def gaussian(points: Tensor) -> Kernel:
    """exp(-|x - y|^2 / 2 s^2), where s is the median distance between ``points`` [M, D].

    Raises:
        NoScore: half of them are the same point.
    """
    width = torch.pdist(points).median()
    if not width > 0:
        raise NoScore("half of the reference clips are the same clip")
    return lambda x, y: torch.exp(-torch.cdist(x, y).square() / (2 * width**2))


def cubic(points: Tensor) -> Kernel:
    """(x . y / D + 1)^3, the kernel of KID (Binkowski et al. 2018), for points [M, D]."""
    size = points.shape[1]
    return lambda x, y: (x @ y.T / size + 1) ** 3


def discrepancy(
    reference: Sample, kernel: Callable[[Tensor], Kernel], scale: float = 1.0
) -> Callable[[Sample], Statistic]:
    """Squared MMD between ``reference`` and a sample, times ``scale``.

    Args:
        kernel: Makes the kernel of the reference's points.
    """
    space = Space.of(reference.values)
    points = space(reference.values)
    k = kernel(points)
    there = reference.numbered()
    within = k(points, points)

    def of(sample: Sample) -> Statistic:
        # Clips whose units are unknown share none with the reference.
        here = sample.numbered(int(there.max()) + 1 if reference.units is None or sample.units is None else 0)
        units = 1 + int(max(there.max(), here.max()))
        x, y = _membership(here, units), _membership(there, units)
        own = space(sample.values)
        sums = [(x, x, k(own, own)), (y, y, within), (x, y, k(own, points))]
        means = [_Mean(a.T @ m @ b, a.sum(0), b.sum(0)) for a, b, m in sums]

        def statistic(counts: Tensor) -> float:
            weights = torch.ones(units, dtype=torch.float64)
            weights[: len(counts)] = counts[:units]
            among, others, across = (mean(weights) for mean in means)
            return scale * (among + others - 2 * across)

        return statistic

    return of


class _Mean:
    """Mean of a kernel over pairs of clips from different units, from its sums per pair of units [U, U] and
    the numbers of clips [U] on either side."""

    def __init__(self, sums: Tensor, rows: Tensor, columns: Tensor) -> None:
        self._sums = sums.clone().fill_diagonal_(0)
        self._pairs = torch.outer(rows, columns).fill_diagonal_(0)

    def __call__(self, weights: Tensor) -> float:
        pairs = weights @ self._pairs @ weights
        if not pairs > 0:
            raise NoScore("clips of a single shot cannot be compared with independent ones")
        return float(weights @ self._sums @ weights / pairs)


def _membership(units: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(units, count).double()

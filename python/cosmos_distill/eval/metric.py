"""What a metric is: how a batch of clips becomes numbers per clip, and numbers per clip a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cosmos_distill.eval.statistics import REPLICAS, Sample, Statistic, pooled
from cosmos_distill.eval.views import View

Direction = Literal["lower", "higher", "one"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of a set of clips. Either ``pool`` or ``against`` says how it is made of numbers per clip."""

    title: str
    """For tables, without its direction."""
    direction: Direction
    """What is better: lower, higher, or nearer to one."""
    unit: str
    source: str
    """Where it is defined: paper and equation, network and its package."""
    reads: Callable[[View], Tensor]
    """Numbers per clip of a batch, [B, ...]. Metrics that name the same function share its one pass."""
    pool: Callable[[Tensor, Tensor | None], float] | None = None
    """Score of numbers per clip [N, ...], clip n taken weights[n] times (once if left out); raises
    NoScore."""
    against: Callable[[Sample], Callable[[Sample], Statistic]] | None = None
    """Prepares a reference of other real clips, then scores samples against it."""
    paired: bool = False
    """Compares each clip with the real one its conditions came from; otherwise only whole sets are
    compared."""
    weights: Sequence[str] = ()
    """Files of :mod:`cosmos_distill.data.packages` that must be in the cache."""
    network: bool = False
    """The user gives a network: a file or folder under the metric's name."""
    centred: bool = False
    """Resampling inflates the score, so its replicas are moved to the value."""
    replicas: int = REPLICAS
    """The first so many are computed."""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """Smallest and largest value there can be: intervals of moved replicas end there."""
    detail: Callable[[Sample], list[float]] | None = None
    """Several numbers that say more than the score, e.g. one of each frame step."""

    def prepare(self, reference: Sample | None) -> Callable[[Sample], Statistic]:
        """How samples are scored, given ``reference`` where the metric needs one.

        Raises:
            ValueError: it is needed and missing.
            NoScore: it is too small.
        """
        if self.pool is not None:
            return pooled(self.pool)
        assert self.against is not None
        if reference is None:
            raise ValueError(f"{self.title} needs reference clips")
        return self.against(reference)

    def error(self, value: float) -> float:
        """How far from right a value is: the smaller the better, whatever the direction. Takes arrays,
        too."""
        if self.direction == "one":
            return abs(value - 1)
        return value if self.direction == "lower" else -value

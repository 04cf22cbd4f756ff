"""What each operator has to do at the published networks' sizes, by arithmetic: bytes that have to cross
memory and floating-point operations, from the operators' declarations (ops/declaration.py). No kernel can go
below the time these take at a GPU's roofs.

The minimum counts every input once and every output once, nothing else: no statistics kept for backward
(which could be recomputed from x), no partial sums, no second reading of keys and values. What our kernels
move besides is in :mod:`benchmarks.gpu.traffic` (Triton) and :mod:`benchmarks.gpu.cuda_traffic`.

Widths: bf16 activations, fp32 modulation, weights and log-sum-exp, fp32 losses. Batch 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.devices import Device
from cosmos_distill.ops.declaration import DECLARED, Declaration, Kind, Measure
from cosmos_distill.ops.library import import_every_operator
from cosmos_distill.ops.registry import OPERATORS

BF16 = 2
FP32 = 4


@dataclass(frozen=True)
class Shape:
    """What one layer of a network sees of a clip."""

    name: str
    frames: int
    """Of the latent."""
    height: int
    width: int
    """Of the latent, in tokens (patches of 2 x 2)."""
    heads: int
    frame_modulation: bool
    """Modulation per frame (Predict2.5, whose conditioning frames have a noise level of their own), not per
    sample."""
    head_dim: int = 128

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width

    @property
    def channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def groups(self) -> int:
        """Rows of modulation."""
        return self.frames if self.frame_modulation else 1

    @property
    def latent(self) -> tuple[int, int, int, int, int]:
        """[B, C, T, H, W] of the video that the losses see: 16 channels."""
        return 1, 16, self.frames, 2 * self.height, 2 * self.width


TRANSFER1_7B = Shape("Transfer1-7B 720p", 16, 44, 80, heads=32, frame_modulation=False)
PREDICT25_2B = Shape("Predict2.5-2B 720p", 24, 44, 80, heads=16, frame_modulation=True)
PREDICT25_14B = Shape("Predict2.5-14B 720p", 24, 44, 80, heads=40, frame_modulation=True)
SHAPES = (TRANSFER1_7B, PREDICT25_2B, PREDICT25_14B)


@dataclass(frozen=True)
class Work:
    """One operator in one direction at one shape."""

    operator: str
    mode: str
    """"fwd" or "bwd"."""
    shape: Shape
    minimum: int
    """Bytes."""
    matrix_flops: int = 0
    """On bf16 matrix units."""
    vector_flops: int = 0
    """On fp32 units, a division or root counted as one."""

    def roof(self, device: Device) -> tuple[float, str]:
        """Seconds no kernel can beat on ``device``, and what binds it: "memory", "matrix" or "vector"."""
        seconds = {
            "memory": self.minimum / device.bandwidth,
            "matrix": self.matrix_flops / device.bf16_rate,
            "vector": self.vector_flops / device.fp32_rate,
        }
        bound = max(seconds, key=lambda name: seconds[name])
        return seconds[bound], bound


def sizes(shape: Shape) -> dict[str, Any]:
    """The sizes of the axes that operators name in their declarations, and ``grid``, that of the tokens with
    the angles of each of its axes."""
    half = shape.head_dim // 2
    angles = (half - 2 * (half // 3), half // 3, half // 3)
    grid = (shape.frames, shape.height, shape.width)
    _, *latent = shape.latent
    return {
        "B": 1,
        "*G": (1, shape.groups),
        "N": shape.tokens // shape.groups,
        "D": shape.channels,
        "S": shape.tokens,
        "Sq": shape.tokens,
        "Sk": shape.tokens,
        "H": shape.heads,
        "Dh": shape.head_dim,
        "L": sum(length * count for length, count in zip(grid, angles, strict=True)),
        "T": shape.frames,
        "*rest": tuple(latent),
        "grid": (*grid, *angles),
    }


def measured() -> Iterator[tuple[Declaration, Measure]]:
    """Every operator that is measured, those of a folder and of a public operator together, forward first."""
    import_every_operator()
    found = [(one, one.measure) for one in DECLARED.values() if one.measure is not None]
    first = {measure.operator: i for i, (_, measure) in reversed(list(enumerate(found)))}

    def place(one: tuple[Declaration, Measure]) -> tuple[str, int, bool]:
        operator = one[1].operator
        return OPERATORS[operator][0], first[operator], one[1].mode != "fwd"

    yield from sorted(found, key=place)


def tensor_axes(kind: Kind, there: Mapping[str, Any]) -> list[int]:
    """The shape of a tensor of that kind."""
    found: list[int] = []
    for name in (kind.axes if isinstance(kind.axes, str) else kind.measured).split():
        found += there[name] if name[0] == "*" else [there[name] if name in there else int(name)]
    return found


def _work(declared: Declaration, measure: Measure, shape: Shape) -> Work:
    there = sizes(shape)
    kinds = {one.name: one.kind for one in declared.arguments if one.kind is not None}
    given = [
        kinds[one.name]
        for one in declared.arguments
        if one.kind is not None and (not one.optional or one.name in measure.given.split())
    ]
    made = [one.kind or kinds[one.argument] for one in declared.results]

    def elements(kind: Kind) -> int:
        return math.prod(tensor_axes(kind, there))

    product = 2 * shape.tokens**2 * shape.channels
    return Work(
        measure.operator,
        measure.mode,
        shape,
        sum(
            elements(kind) * (kind.fixed or declared.kinds.usual).itemsize
            for kind in (*given, *made)
            if kind.counts
        ),
        matrix_flops=measure.products * product,
        vector_flops=measure.flops * max(map(elements, given)),
    )


def works(shape: Shape) -> list[Work]:
    """Every operator in both directions at one shape."""
    return [_work(declared, measure, shape) for declared, measure in measured()]

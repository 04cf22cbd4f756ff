"""Which region of a whole tensor a rank holds: what a checkpoint needs to be read under another layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from cosmos_distill.parallel import groups
from cosmos_distill.parallel.parts import Part


@dataclass(frozen=True)
class Block:
    """A box of a whole tensor."""

    offsets: tuple[int, ...]
    value: Tensor
    """View of the memory that holds it: saving reads it, loading writes it."""


@dataclass(frozen=True)
class Piece:
    """What this rank has of one tensor of a checkpoint. Several ranks may hold the same block."""

    shape: tuple[int, ...]
    """Of the whole tensor, the same under every layout."""
    blocks: tuple[Block, ...]


def whole(value: Tensor) -> Piece:
    """A tensor that every rank which names it holds whole."""
    return Piece(tuple(value.shape), (Block((0,) * value.ndim, value),))


def piece(value: Tensor, part: Part) -> Piece:
    """A tensor of which this rank holds the ``part``."""
    shape, offsets = _frame(tuple(value.shape), part)
    return Piece(shape, (Block(offsets, value),))


def flat_piece(values: Tensor, first: int, local: tuple[int, ...], part: Part) -> Piece:
    """A contiguous range of a flattened tensor.

    Args:
        values: elements ``first .. first + len(values) - 1`` of the rank's part when flattened, 1-D.
        local: shape of the rank's part.
        part: which part of the whole tensor that is.
    """
    shape, origin = _frame(local, part)
    blocks = tuple(
        Block(tuple(o + x for o, x in zip(origin, offsets, strict=True)), values[a:b].view(size))
        for offsets, size, a, b in _boxes(local, first, first + len(values))
    )
    return Piece(shape, blocks)


def _frame(local: tuple[int, ...], part: Part) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape of the whole tensor and where the rank's part begins in it."""
    if part.split is None:
        return local, (0,) * len(local)
    group, shape, offsets = groups.tensor_group(), list(local), [0] * len(local)
    shape[part.split] *= group.size()
    offsets[part.split] = group.rank() * local[part.split]
    return tuple(shape), tuple(offsets)


def _boxes(
    shape: tuple[int, ...], first: int, last: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int, int]]:
    """Cut elements first..last-1 of a row-major tensor into boxes: (offsets, size, from, to), the last two
    counted from ``first``. At most 2 * ndim - 1 boxes."""

    def cut(dim: int, prefix: tuple[int, ...], a: int, b: int, base: int) -> Iterator[tuple]:
        if a >= b:
            return
        inner = prod(shape[dim + 1 :])
        if dim == len(shape) or (a, b) == (0, shape[dim] * inner):
            size = (1,) * dim + shape[dim:]
            yield prefix + (0,) * (len(shape) - dim), size, base, base + b - a
            return
        row, end = -(-a // inner), b // inner
        if row > end:  # within one row
            yield from cut(dim + 1, (*prefix, a // inner), a % inner, b - (a // inner) * inner, base)
            return
        if a < row * inner:
            yield from cut(dim + 1, (*prefix, row - 1), a % inner, inner, base)
        if row < end:
            size = (1,) * dim + (end - row, *shape[dim + 1 :])
            offsets = (*prefix, row) + (0,) * (len(shape) - dim - 1)
            yield offsets, size, base + row * inner - a, base + end * inner - a
        if end * inner < b:
            yield from cut(dim + 1, (*prefix, end), 0, b - end * inner, base + end * inner - a)

    yield from cut(0, (), first, last, 0)

"""What a registered operator is, written down once: its arguments, and what kinds of tensors they are.

A declaration reads like the operator's schema, with the kind of each tensor in the place of its type and, for
each result, the argument it is like, or a kind that belongs to one:

    ``adaln_modulate(tokens x, rows shift, rows scale, float eps) -> (x, stats(x))``

A kind names its axes, ``*G N D`` (the starred one stands for as many as there are). An argument ``wanted``
of a gradient says in bits which results are (the first in the lowest); the others are empty. From these
follow the schema, the shapes that tracers see (:mod:`.library`), how the operator may be sharded
(:mod:`.dtensor`), and the tensors that it is measured and checked with (benchmarks/gpu).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .strides import new_like

WANTED = "wanted"
"""The argument of a gradient that says which of its results are."""

Given = Mapping[str, Any]
"""The arguments of a call by name."""


@dataclass(frozen=True)
class Kind:
    """What one or more of an operator's tensors are."""

    axes: str | Callable[[Tensor, Given], str]
    """Their names, apart by spaces; or how to tell them from a tensor and the arguments beside it."""
    dtype: torch.dtype | str | None = torch.float32
    """None: whatever the caller has, the same for all arguments of such kinds unless the folder's fused.py
    says otherwise. Of a result, a word: the argument that names it; None there is that of its origin."""
    measured: str = ""
    """The axes of those that operators are measured with, where that depends."""
    counts: bool = True
    """Whether what an operator has to move counts these: not statistics, which backward could find again, nor
    a few numbers per sample."""

    @property
    def fixed(self) -> torch.dtype | None:
        """Its dtype, where that is always the same."""
        return self.dtype if isinstance(self.dtype, torch.dtype) else None

    def of(self, x: Tensor, given: Given) -> list[str]:
        """The axes of ``x``, those of the star by its name each."""
        names = (self.axes if isinstance(self.axes, str) else self.axes(x, given)).split()
        found: list[str] = []
        for name in names:
            found += [name] * (x.ndim - len(names) + 1) if name[0] == "*" else [name]
        return found


def narrow(axes: str) -> Kind:
    """Tensors that kernels take as fp32, bf16 or fp16."""
    return Kind(axes, None)


def small(axes: str) -> Kind:
    """fp32 that :attr:`Kind.counts` says no to."""
    return Kind(axes, counts=False)


@dataclass(frozen=True)
class Kinds:
    """The kinds of tensors that a folder's operators take and return."""

    kinds: Mapping[str, Kind]
    split: str | Callable[[Given], str]
    """Axes over which the work may be split between devices: what lacks such an axis is needed whole by each,
    and, as a result, a sum over them."""
    usual: torch.dtype = torch.bfloat16
    """Of narrow tensors in the published networks."""


@dataclass(frozen=True)
class Measure:
    """What an operator's kernels are measured by, at the sizes of the published networks."""

    operator: str
    """The public one that they serve."""
    mode: str
    """``fwd`` or ``bwd``."""
    flops: int = 0
    """Floating-point operations for each element of the largest argument, a division or root counted as
    one."""
    products: int = 0
    """Products of a matrix of all queries with one of all keys."""
    given: str = ""
    """Those of the optional tensors that are there."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """The other arguments; what is callable is called with the sizes of all axes."""


@dataclass(frozen=True)
class Argument:
    """One argument of an operator."""

    name: str
    type: str
    """Of torch.library."""
    kind: Kind | None = None
    """None: no tensor."""

    @property
    def optional(self) -> bool:
        return self.type.endswith("?")


@dataclass(frozen=True)
class Result:
    """One result of an operator: like an argument or, with a kind, fp32 whose axes are among that
    argument's."""

    argument: str
    kind: Kind | None


@dataclass(frozen=True)
class Declaration:
    """An operator as it is declared, without the name of the backend, its last argument."""

    text: str
    kinds: Kinds
    measure: Measure | None = None

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        found = re.fullmatch(r"(\w+)\((.*)\) -> (.*)", self.text)
        if found is None:
            raise ValueError(f"not a declaration: {self.text}")
        return found[1], found[2], found[3]

    @property
    def name(self) -> str:
        return self._parts[0]

    @property
    def _several(self) -> bool:
        return self._parts[2].startswith("(")

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        found = []
        for one in self._parts[1].split(", "):
            type_, name = one.split()
            kind = self.kinds.kinds.get(type_.rstrip("?"))
            found.append(Argument(name, "Tensor" + "?" * type_.endswith("?") if kind else type_, kind))
        return tuple(found)

    @cached_property
    def results(self) -> tuple[Result, ...]:
        found = []
        for one in re.findall(r"\w+(?:\(\w+\))?", self._parts[2]):
            kind, _, argument = one.rstrip(")").rpartition("(")
            found.append(Result(argument, self.kinds.kinds[kind] if kind else None))
        return tuple(found)

    @property
    def schema(self) -> str:
        """Of torch.library."""
        given = [*(f"{one.type} {one.name}" for one in self.arguments), "str backend"]
        results = ", ".join(["Tensor"] * len(self.results))
        return f"{self.name}({', '.join(given)}) -> {f'({results})' if self._several else results}"

    def given(self, arguments: Sequence[Any]) -> dict[str, Any]:
        """Arguments of a call, in order, by name."""
        return dict(zip((one.name for one in self.arguments), arguments, strict=False))

    def shapes(self, *arguments: Any) -> Any:
        """Empty results of a call."""
        given = self.given(arguments)
        wanted = given.get(WANTED, -1)
        results = tuple(
            self._empty(one, given) if wanted >> i & 1 else self._nothing(one, given)
            for i, one in enumerate(self.results)
        )
        return results if self._several else results[0]

    def _dtype(self, result: Result, given: Given) -> torch.dtype:
        origin: Tensor = given[result.argument]
        if result.kind is None:
            return origin.dtype
        named = result.kind.fixed if result.kind.fixed else given.get(str(result.kind.dtype))
        return named or origin.dtype

    def _nothing(self, result: Result, given: Given) -> Tensor:
        origin: Tensor = given[result.argument]
        return origin.new_empty(0, dtype=self._dtype(result, given))

    def _empty(self, result: Result, given: Given) -> Tensor:
        origin: Tensor = given[result.argument]
        if result.kind is None:
            return new_like(origin)
        sizes: dict[str, list[Any]] = {}
        for axis, size in zip(self._axes(result.argument, given), origin.shape, strict=True):
            sizes.setdefault(axis, []).append(size)
        assert isinstance(result.kind.axes, str)
        shape: list[Any] = []
        for axis in result.kind.axes.split():
            shape += sizes.get(axis, []) if axis[0] == "*" else sizes[axis] if axis in sizes else [int(axis)]
        return origin.new_empty(shape, dtype=self._dtype(result, given))

    def _axes(self, argument: str, given: Given) -> list[str]:
        (kind,) = (one.kind for one in self.arguments if one.name == argument)
        assert kind is not None
        return kind.of(given[argument], given)

    def ways(self, *arguments: Any) -> list[tuple[list[int | None], list[int | None]]]:
        """For each way to split the work: the axis of each result and of each argument that is split, None
        where it has none."""
        given = self.given(arguments)
        split = self.kinds.split if isinstance(self.kinds.split, str) else self.kinds.split(given)
        into = [
            self._axes(one.name, given) if one.kind and given[one.name] is not None else []
            for one in self.arguments
        ]
        by_name = dict(zip((one.name for one in self.arguments), into, strict=True))
        out = [
            by_name[one.argument] if one.kind is None else _axes_of(one.kind, by_name[one.argument])
            for one in self.results
        ]
        return [
            ([_place(axes, name, i) for axes in out], [_place(axes, name, i) for axes in into])
            for name in split.split()
            for i in range(max(axes.count(name) for axes in into))
        ]


def _axes_of(kind: Kind, origin: Sequence[str]) -> list[str]:
    """Of a result whose axes are among those of another tensor, or numbers."""
    assert isinstance(kind.axes, str)
    return [
        axis
        for name in kind.axes.split()
        for axis in ([name] * origin.count(name) if name[0] == "*" else [name])
    ]


def _place(axes: Sequence[str], name: str, i: int) -> int | None:
    """Where the i-th axis of that name is."""
    places = [k for k, axis in enumerate(axes) if axis == name]
    return places[i] if places else None


DECLARED: dict[str, Declaration] = {}
"""Name -> every operator that has been declared: those of the folders that are imported."""


def declare(text: str, kinds: Kinds, measure: Measure | None = None) -> Declaration:
    """Write an operator down, see above.

    Raises:
        ValueError: it is not written like one.
    """
    one = Declaration(text, kinds, measure)
    tensors = {argument.name for argument in one.arguments if argument.kind is not None}
    for result in one.results:
        if result.argument not in tensors:
            raise ValueError(f"{one.name}: no argument is a tensor named {result.argument!r}")
    DECLARED[one.name] = one
    return one

"""A pickle as inert values. Nothing that it names is imported, and nothing is called.

An unpickler executes: the functions that a pickle names, and the ``__setstate__`` of what they return.
Allowing only some of them is not enough, since ``numpy.ndarray`` alone takes any address, and ``bytearray``
any size. This reader keeps a call as the record of a call; :mod:`cosmos_distill.arrays.rebuild` looks for the
few records that describe an array, and checks every number in them against the bytes that are there.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MOST_OPCODES = 2**19
"""The checkpoint of a network has some 30 for each of its tensors. One byte can stand for a list of 56."""
_MARK = object()

_NAMES = {
    "numpy": "ndarray dtype",
    # Before and after NumPy 2.
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "_codecs": "encode",
    "__builtin__": "bytes",  # without arguments, how protocols before 3 spell no bytes
    "_io": "BytesIO",
    "collections": "OrderedDict",
    "torch._utils": (
        "_rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state"
    ),
    "torch.storage": "_load_from_bytes UntypedStorage",
    "torch": (
        "DoubleStorage FloatStorage HalfStorage BFloat16Storage LongStorage IntStorage ShortStorage "
        "CharStorage ByteStorage BoolStorage UntypedStorage Size device float64 float32 float16 bfloat16 "
        "float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
    ),
}
ADMITTED = frozenset((module, name) for module, names in _NAMES.items() for name in names.split())
"""What may be named, as (module, name): what arrays and tensors need. None of it is called either."""


@dataclass(frozen=True, eq=False)
class Name:
    """A function or class that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """What an unpickler would call, with the state it would set on the result afterwards."""

    function: Name
    args: tuple[Any, ...]
    state: Any = None


def read(
    stream: io.BytesIO,
    persistent: Callable[[Any], Any] | None = None,
    admitted: frozenset[tuple[str, str]] = ADMITTED,
) -> Any:
    """The value of one pickle, from ``stream`` on: dict, list, tuple, str, bytes, numbers, :class:`Name` and
    :class:`Call`.

    Args:
        persistent: What stands for an object that lies outside of the pickle, given its id; None: such an
            object is an error.
        admitted: What may be named, as (module, name).

    Raises:
        ValueError: damaged, too long, or it names what no array and no tensor needs.
    """
    machine = _Machine(persistent, admitted)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= _MOST_OPCODES:
                raise ValueError(f"it has more than {_MOST_OPCODES} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
    raise ValueError("it has no end")


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack machine of the pickle format, of which each opcode costs no more than its own bytes."""

    def __init__(self, persistent: Callable[[Any], Any] | None, admitted: frozenset[tuple[str, str]]) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._persistent = persistent
        self._admitted = admitted

    def pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("it is damaged (a mark where a value should be)")
        return value

    def step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            items = [self.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is None:
                raise ValueError(f"it uses {name}, which no array needs")
            handler(argument)

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def _top(self, kind: type) -> Any:
        value = self._stack[-1]
        if not isinstance(value, kind):
            raise ValueError(f"it is damaged (a {type(value).__name__} where a {kind.__name__} should be)")
        return value

    def _mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        value = self.pop()
        self._stack += [value, value]

    def _append(self, _: Any) -> None:
        value = self.pop()
        self._top(list).append(value)

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _dict(self, _: Any) -> None:
        self._stack.append(_pairs(self._since_mark()))

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._top(dict).update(_pairs([key, value]))

    def _setitems(self, _: Any) -> None:
        items = self._since_mark()
        self._top(dict).update(_pairs(items))

    def _put(self, argument: int) -> None:
        if not 0 <= argument < 2**32:
            raise ValueError("it is damaged (the number of a memo)")
        self._memo[argument] = self.pop()
        self._stack.append(self._memo[argument])

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._put(len(self._memo))

    def _get(self, argument: int) -> None:
        self._stack.append(self._memo[argument])

    _binget = _long_binget = _get

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._name(module, name)

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it is damaged (the name of a function)")
        if (module, name) not in self._admitted:
            raise ValueError(f"it calls {module[:80]}.{name[:80]}, which no array needs")
        self._stack.append(Name(module, name))

    def _reduce(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise ValueError("it calls what is no function")
        if function.name == "OrderedDict":
            pairs = args[0] if args else []
            if not isinstance(pairs, list) or not all(len(pair) == 2 for pair in pairs):
                raise ValueError("it is damaged (a dictionary without pairs)")
            self._stack.append(_pairs([item for pair in pairs for item in pair]))
        else:
            self._stack.append(Call(function, args))

    _newobj = _reduce

    def _build(self, _: Any) -> None:
        state, target = self.pop(), self._stack[-1]
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # whose state is the _metadata of a state dict
            raise ValueError("it is damaged (a state without an object)")

    def _binpersid(self, _: Any) -> None:
        if self._persistent is None:
            raise ValueError("it refers to objects outside of it")
        self._stack.append(self._persistent(self.pop()))


def _short(key: Any) -> bool:
    return type(key) is int and abs(key) < 2**31


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Key, value, key, value, ... as a dictionary."""
    if len(items) % 2:
        raise ValueError("it is damaged (a key without a value)")
    # A tuple of tuples can take for ever to hash, and chosen large integers all have the same hash. A call's
    # is that of its place in memory.
    if wrong := [
        k for k in items[::2] if not (type(k) in (str, Call) or (type(k) is int and abs(k) < 2**31))
    ]:
        raise ValueError(f"it has a {type(wrong[0]).__name__} for the key of a dictionary")
    return dict(zip(items[::2], items[1::2], strict=True))

"""Arrays and tensors out of the inert values of a pickle, each number checked against the bytes there are."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from cosmos_distill.arrays.pickles import Call, Name

_MOST_DIMENSIONS = 16
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}


@dataclass(eq=False)
class Storage:
    """Bytes of a tensor, as a torch checkpoint keeps them.

    Attributes:
        dtype: What a tensor of it is, unless the tensor says something else.
        data: None until it is known where they lie.
    """

    dtype: torch.dtype
    data: torch.UntypedStorage | None = None

    @classmethod
    def named(cls, kind: Any) -> Storage:
        """Raises ValueError when ``kind`` is no type of a torch storage."""
        if not isinstance(kind, Name) or kind.name not in _STORAGES:
            raise ValueError(f"it is damaged ({_what(kind)} where the type of a storage should be)")
        return cls(_STORAGES[kind.name])


def array(value: Any) -> np.ndarray | None:
    """The NumPy array that ``value`` describes, read-only; None where it describes none.

    Raises:
        ValueError: of another kind than integer or floating point, or shape and bytes do not agree.
    """
    if not isinstance(value, Call):
        return None
    if value.function.name == "_reconstruct":
        if not isinstance(value.state, tuple) or len(value.state) != 5:
            raise ValueError("it is damaged (an array without a state)")
        _, shape, kind, fortran, content = value.state
        order = "F" if fortran is True else "C"
    elif value.function.name == "_frombuffer":
        if len(value.args) != 4:
            raise ValueError("it is damaged (an array from a buffer)")
        content, kind, shape, order = value.args
    else:
        return None
    dtype = _dtype(kind)
    data, sizes = _bytes(content), _naturals(shape, "shape")
    if order not in ("C", "F"):
        raise ValueError("it is damaged (the order of an array)")
    if prod(sizes) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {sizes} and type {dtype} has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(sizes, order="F" if order == "F" else "C")


def tensor(value: Any) -> torch.Tensor | None:
    """The torch tensor that ``value`` describes, which shares the memory of its storage; None where it
    describes none.

    Raises:
        ValueError: it reaches beyond its storage, or has more elements than that.
    """
    if not isinstance(value, Call):
        return None
    name, args = value.function.name, value.args
    if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return tensor(args[0]) if args else None
    if name == "_load_from_bytes":
        _storage(value)
        return None  # a storage alone has no shape
    if name not in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        return None
    if len(args) < 5 or (name.endswith("v3") and len(args) < 7):
        raise ValueError("it is damaged (a tensor without its parts)")
    storage, data = _storage(args[0])
    dtype = storage.dtype
    if name.endswith("v3"):
        named = getattr(torch, args[6].name, None) if isinstance(args[6], Name) else None
        if not isinstance(named, torch.dtype):
            raise ValueError(f"it is damaged ({_what(args[6])} where the type of a tensor should be)")
        dtype = named
    (offset,) = _naturals((args[1],), "offset")
    sizes, strides = _naturals(args[2], "shape"), _naturals(args[3], "strides")
    if len(sizes) != len(strides):
        raise ValueError(f"a tensor of shape {sizes} has strides {strides}")
    there, count = data.nbytes() // dtype.itemsize, prod(sizes)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if count and (last >= there or count > there):
        raise ValueError(
            f"a tensor of shape {sizes}, strides {strides} and offset {offset} does not fit into the {there} "
            "elements that are there"
        )
    if not count:
        return torch.empty(sizes, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(data, offset, sizes, strides)


def bytes_io(value: Any) -> bytes | None:
    """The content of a BytesIO; None where ``value`` is none."""
    if not isinstance(value, Call) or value.function.name != "BytesIO":
        return None
    return _bytes(value.state[0]) if isinstance(value.state, tuple) and value.state else b""


def _storage(value: Any) -> tuple[Storage, torch.UntypedStorage]:
    """What a tensor names as its storage: inside of an ordinary pickle, a torch checkpoint of its own."""
    if isinstance(value, Call) and value.function.name == "_load_from_bytes":
        from cosmos_distill.arrays.torch_files import read_legacy

        value = read_legacy(_bytes(value.args[0] if len(value.args) == 1 else None))
    if not isinstance(value, Storage) or value.data is None:
        raise ValueError("it is damaged (a tensor without its bytes)")
    return value, value.data


def _dtype(value: Any) -> np.dtype[Any]:
    """Integer or floating point, of the byte order that the state says."""
    if isinstance(value, Call) and value.function.name == "dtype" and value.args:
        text, state = value.args[0], value.state
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        # Nothing that is not spelt like this is given to numpy.dtype, which knows objects and structures.
        spelt = isinstance(text, str) and len(text) == 2 and text[0] in "fiu" and text[1] in "1248"
        if spelt and text != "f1" and order in ("<", ">", "=", "|"):
            return np.dtype(f"{order}{text}")
        raise ValueError(f"an array is of type {str(text)[:20] if isinstance(text, str) else _what(text)}")
    raise ValueError(f"it is damaged ({_what(value)} where the type of an array should be)")


def _bytes(value: Any) -> bytes:
    if isinstance(value, Call):  # protocols before 3 have no bytes: they encode a string
        if value.function.name == "encode" and value.args:
            value = value.args[0]
        elif value.function.name == "bytes" and not value.args:
            value = b""
    if isinstance(value, str):
        try:
            return value.encode("latin1")
        except UnicodeEncodeError as error:
            raise ValueError(f"it is damaged ({error})") from error
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ValueError(f"it is damaged ({_what(value)} where bytes should be)")


def _naturals(value: Any, what: str) -> tuple[int, ...]:
    if isinstance(value, Call) and value.function.name == "Size" and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple | list) or len(value) > _MOST_DIMENSIONS:
        raise ValueError(f"it is damaged ({_what(value)} for {what})")
    if wrong := [x for x in value if type(x) is not int or not 0 <= x < 2**62]:
        raise ValueError(f"it is damaged ({_what(wrong[0])} in {what})")
    if what == "shape" and prod(x or 1 for x in value) >= 2**62:  # what torch counts in 64 bits
        raise ValueError(f"it is damaged (the shape {value})")
    return tuple(value)


def _what(value: Any) -> str:
    """In words, whatever it is: printing it could take for ever."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__}"

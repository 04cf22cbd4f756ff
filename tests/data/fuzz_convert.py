"""Forged pickles for the converter, until a time is over: ``python -m tests.data.fuzz_convert --minutes 3``.

Three kinds: any opcodes with any arguments; what describes an array or a tensor, with the numbers, names and
states that a forger would choose; and pickles of real arrays with some bytes changed. Whatever the bytes say,
the result is an array no larger than they can hold, or a DataError that names the file; nothing else is
opened, and nothing is run.
"""

from __future__ import annotations

import argparse
import codecs
import io
import itertools
import math
import pickle
import pickletools
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cosmos_distill.arrays.pickles import ADMITTED
from cosmos_distill.data.convert import read_pickle
from cosmos_distill.data.errors import DataError

WATCHED = (
    "open",
    "exec",
    "compile",
    "os.",
    "subprocess.",
    "ctypes.",
    "socket.",
    "shutil.",
    "pty.",
    "marshal.",
)
HARMLESS = ("os.listdir", "os.scandir")
PER_BYTE, MOST_SECONDS = 16, 5.0
MUTANTS = 19
_allowed: set[str] = set()
_watching = False
_seen: list[str] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event.startswith(WATCHED) and event not in HARMLESS:
        if event == "open" and str(arguments[0]) in _allowed:
            return
        _seen.append(f"{event} {arguments!r:.200}")


def check(content: bytes, path: Path) -> bool:
    """Give ``content`` to the converter; whether it found an array.

    Raises AssertionError when it did anything else than what it may.
    """
    global _watching
    path.write_bytes(content)
    _allowed.add(str(path))
    _seen.clear()
    started, _watching = time.monotonic(), True
    try:
        array = read_pickle(path)
    except DataError as error:
        assert str(path) in str(error), error
        assert "enough memory" not in str(error), "it asked for memory that the bytes do not justify"
        return False
    finally:
        _watching = False
        assert not _seen, " ".join(_seen)
        assert time.monotonic() - started < MOST_SECONDS, "it took too long"
    assert array.dtype == np.float32 and array.nbytes <= PER_BYTE * len(content), array.shape
    assert math.isfinite(float(array.sum(dtype=np.float64)))  # every byte of it can be read
    return True


# What a forger would write: numbers at the edges, the names that are admitted, and real arguments.
EDGES = [
    0,
    1,
    2,
    3,
    4,
    12,
    -1,
    -4,
    255,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    -(2**63),
    2**70,
]
numbers = st.sampled_from(EDGES) | st.integers(-5, 40)
SHAPES = [(3, 4), (4, 3), (12, 1), (0, 4), (2**31, 2**31), (2**40, 2**40), (1, 2**45), (-1, -12), (1,) * 70]
shapes = st.sampled_from(SHAPES) | st.lists(numbers, max_size=5).map(tuple)
BYTES = np.arange(12, dtype="<f4").tobytes()
contents = st.sampled_from([BYTES, BYTES[:-1], b"", BYTES * 3]) | st.binary(max_size=64)
kinds = st.sampled_from(
    ["f4", "f2", "f8", "i8", "u1", "O", "O8", "V4", "S4", "U4", "M8", "m8", "b1", "c8", "f1", "f16", "4f4"]
    + ["(2,2)f4", "f4,f4", "{'a':1}", "bool", "object", "float128"]
)
orders = st.sampled_from(["<", ">", "=", "|", "!", "", None, 5])


class Node:
    """A call as a pickle spells it: function, arguments, state (no state where it is absent)."""

    def __init__(self, function: tuple[str, str], args: Any, state: Any = ...) -> None:
        self.function, self.args, self.state = function, args, state


def assemble(value: Any) -> bytes:
    """Opcodes that push ``value``, in which Node stands for a call, and ("module", "name") for a name."""
    if isinstance(value, Node):
        text = name(value.function) + assemble(value.args) + pickle.REDUCE
        return text if value.state is ... else text + assemble(value.state) + pickle.BUILD
    if isinstance(value, tuple) and all(isinstance(part, str) for part in value) and value in ADMITTED:
        return name(value)
    if isinstance(value, tuple):
        return pickle.MARK + b"".join(map(assemble, value)) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(assemble, value)) + pickle.APPENDS
    if isinstance(value, dict):
        items = b"".join(assemble(k) + assemble(v) for k, v in value.items())
        return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
    return pickle.dumps(value, 2)[2:-1]


def name(function: tuple[str, str]) -> bytes:
    return pickle.GLOBAL + "\n".join(function).encode() + b"\n"


NDARRAY, DTYPE = ("numpy", "ndarray"), ("numpy", "dtype")
STATE = (3, "<", None, None, None, -1, -1, 0)
dtypes = st.builds(
    lambda kind, order, state: Node(DTYPE, (kind, False, True), state(order)),
    kinds,
    orders,
    st.sampled_from(
        [lambda order: (3, order, *STATE[2:]), lambda order: (3, order), lambda _: (), lambda _: ...]
    ),
)


def some_wrong(
    draw: st.DrawFn, right: dict[str, Any], wrong: dict[str, st.SearchStrategy[Any]]
) -> dict[str, Any]:
    """``right`` with up to three values drawn from ``wrong``."""
    keys = draw(st.lists(st.sampled_from(sorted(wrong)), max_size=3))
    return right | {key: draw(wrong[key]) for key in keys}


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    """An array, near to what numpy writes; or only its class, called with a shape, a buffer and strides."""
    wrong = {
        "shape": shapes,
        "dtype": dtypes,
        "content": contents | numbers,
        "order": st.sampled_from([1, "A", None]),
    }
    right = {
        "shape": (3, 4),
        "dtype": Node(DTYPE, ("f4", False, True), STATE),
        "content": BYTES,
        "order": False,
    }
    v = some_wrong(draw, right, wrong)
    state = (1, v["shape"], v["dtype"], v["order"], v["content"])
    forms = [
        Node(("numpy._core.multiarray", "_reconstruct"), (NDARRAY, (0,), b"b"), state),
        Node(("numpy.core.multiarray", "_reconstruct"), (NDARRAY, v["shape"], b"b"), state),
        Node(("numpy.core.multiarray", "_reconstruct"), (NDARRAY, v["shape"], b"b"), state[:3]),
        Node(
            ("numpy._core.numeric", "_frombuffer"), (v["content"], v["dtype"], v["shape"], v["order"] or "C")
        ),
        Node(NDARRAY, (v["shape"], "f4", v["content"], 8)),
        Node(NDARRAY, (v["shape"], "f4"), state),
    ]
    return draw(st.sampled_from(forms))


def _storages() -> list[bytes]:
    found = []
    for kind in (torch.float32, torch.bfloat16, torch.int64):
        buffer = io.BytesIO()
        storage = torch.storage.TypedStorage(
            wrap_storage=torch.zeros(12, dtype=kind).untyped_storage(), dtype=kind
        )
        torch.save(storage, buffer, _use_new_zipfile_serialization=False)
        found.append(buffer.getvalue())
    return found


with warnings.catch_warnings(action="ignore"):
    STORAGES = _storages()


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """A tensor over a storage of twelve numbers that is a torch checkpoint of its own."""
    right = {
        "inner": STORAGES[0],
        "offset": 0,
        "shape": (3, 4),
        "strides": (4, 1),
        "dtype": "float32",
        "length": 8,
    }
    wrong = {
        "inner": st.sampled_from(STORAGES).flatmap(changed) | st.sampled_from(STORAGES),
        "offset": numbers,
        "shape": shapes,
        "strides": shapes,
        "dtype": st.sampled_from(["float64", "uint8", "Size", "bool"]),
        "length": st.integers(0, 8),
    }
    v = some_wrong(draw, right, wrong)
    args = (
        Node(("torch.storage", "_load_from_bytes"), (v["inner"],)),
        v["offset"],
        v["shape"],
        v["strides"],
        False,
        Node(("collections", "OrderedDict"), ()),
        ("torch", v["dtype"]),
        None,
    )
    version = draw(st.sampled_from(["v2", "v3"]))
    return Node(("torch._utils", f"_rebuild_tensor_{version}"), args[: v["length"]])


@st.composite
def forged(draw: st.DrawFn) -> bytes:
    """Arrays and tensors where the converter looks for them, and elsewhere."""
    node = draw(arrays() | tensors())
    wrapped = draw(
        st.sampled_from([node, [node], (node,), {"t5_text_embeddings": node}, [[node]], {0: node}])
    )
    return pickle.PROTO + b"\x02" + assemble(wrapped) + pickle.STOP


LENGTHS = st.sampled_from([0, 1, 3, 8, 255, 2**31 - 1, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1])


@st.composite
def opcodes(draw: st.DrawFn) -> bytes:
    """Any sequence of opcodes, with arguments of the right form and lengths that may lie."""
    names = sorted(ADMITTED)
    parts = []
    for _ in range(draw(st.integers(1, 25))):
        opcode = draw(st.sampled_from(pickletools.opcodes))
        argument = opcode.arg
        text = b""
        if opcode.name in ("GLOBAL", "INST"):
            text = "\n".join(draw(st.sampled_from(names))).encode() + b"\n"
        elif argument is not None and argument.n == pickletools.UP_TO_NEWLINE:
            text = (
                draw(st.sampled_from([b"1", b"-7", b"'x'", b"1L", b"0x1", b"1e9", b"9" * 30, b"\\x"])) + b"\n"
            )
        elif argument is not None and argument.n >= 0:
            text = draw(st.binary(min_size=argument.n, max_size=argument.n))
        elif argument is not None:
            width = {-2: 1, -3: 4, -4: 4, -5: 8}[argument.n]
            data = draw(st.binary(max_size=12))
            length = len(data) if draw(st.booleans()) else draw(LENGTHS)
            text = (length % 2 ** (8 * width)).to_bytes(width, "little") + data
        parts.append(opcode.code.encode("latin1") + text)
    return b"".join(parts) + pickle.STOP


def _seeds() -> list[bytes]:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = [
        pickle.dumps(content, protocol)
        for protocol in (0, 2, 4, 5)
        for content in ([array], {"t5_text_embeddings": array.astype(">f2")}, torch.from_numpy(array))
    ]
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(
            {"t5_text_embeddings": torch.from_numpy(array)}, buffer, _use_new_zipfile_serialization=new
        )
        found.append(buffer.getvalue())
    return found


SEEDS = _seeds()


@st.composite
def changed(draw: st.DrawFn, content: bytes | None = None) -> bytes:
    """A real pickle with bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)) if content is None else content)
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.integers(0, len(data)))
        what = draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f" + b"\xff" * 7]))
        data[where : where + draw(st.sampled_from([0, len(what), 40]))] = what
    return bytes(data)


inputs = forged() | opcodes() | changed()
QUIET = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))


def mutants(content: bytes) -> Iterator[bytes]:
    """``content`` with a few bytes changed, since hypothesis takes longer than the converter."""
    random = Random(content)
    for _ in range(MUTANTS):
        data = bytearray(content)
        for _ in range(random.randint(1, 3)):
            where = random.randrange(len(data))
            data[where : where + random.choice((0, 1, 1, 1, 2))] = random.randbytes(
                random.choice((0, 1, 1, 1, 4))
            )
            data = data or bytearray(b".")
        yield bytes(data)


def run(examples: int, number: int, path: Path) -> tuple[int, int]:
    """Try ``examples`` inputs of the series ``number``, and mutants of each.

    Returns how many were tried, and how many of them were arrays.
    """
    counts = [0, 0]

    @seed(number)
    @settings(QUIET, max_examples=examples)
    @given(inputs)
    def one(content: bytes) -> None:
        for each in (content, *mutants(content)):
            counts[1] += check(each, path)
            counts[0] += 1

    one()
    return counts[0], counts[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.data.fuzz_convert", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--series", type=int, default=int(time.time()), help="number of the first series")
    options = parser.parse_args()
    for codec in ("raw_unicode_escape", "ascii", "latin1", "cp437"):
        codecs.lookup(codec)  # Python imports these when it meets them
    sys.addaudithook(_hook)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
    end, tried, found = time.monotonic() + 60 * options.minutes, 0, 0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for number in itertools.count(options.series):
            more, arrays_ = run(200, number, Path(folder) / "forged.pickle")
            tried, found = tried + more, found + arrays_
            if time.monotonic() > end:
                break
    print(f"{tried} inputs from series {options.series} on, of which {found} were arrays; nothing was found")


if __name__ == "__main__":
    main()

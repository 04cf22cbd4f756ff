"""The converter reads arrays out of legacy pickles and runs nothing else in them."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cosmos_distill.data.convert import convert, main, read_pickle
from cosmos_distill.data.errors import DataError
from tests.data import fuzz_convert
from tests.data.fuzz_convert import BYTES, DTYPE, NDARRAY, STATE, Node, assemble
from tests.memory import limited

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
AV = {"pickle": {"ground_truth": {"embeddings": {"t5_xxl": [ARRAY]}}}}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        ARRAY,
        ARRAY.astype(np.float16),
        np.asfortranarray(ARRAY),
        [ARRAY],
        {"t5_text_embeddings": [ARRAY]},
        AV,
        torch.from_numpy(ARRAY),
        {"t5_text_embeddings": torch.from_numpy(ARRAY).bfloat16()},
    ],
    ids=["array", "half", "fortran", "list", "dictionary", "driving", "tensor", "bf16"],
)
def test_every_legacy_form_is_read(tmp_path, content, protocol):
    path = tmp_path / "a.pickle"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert read_pickle(path).tolist() == ARRAY.tolist() and read_pickle(path).dtype == np.float32


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("suffix", [".pickle", ".pt"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, suffix):
    marker, path = tmp_path / "executed", tmp_path / f"a{suffix}"
    content = [ARRAY, Evil(os.mkdir, str(marker))]
    if suffix == ".pt":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="not converted"):
        read_pickle(path)
    assert not marker.exists()


def test_an_inner_torch_pickle_is_restricted_too(tmp_path):
    """torch's own _load_from_bytes would unpickle its argument freely."""
    marker, inner, path = tmp_path / "executed", tmp_path / "inner.pt", tmp_path / "a.pickle"
    torch.save(Evil(os.mkdir, str(marker)), inner)
    path.write_bytes(pickle.dumps(Evil(torch.storage._load_from_bytes, inner.read_bytes())))
    with pytest.raises(DataError, match="not converted"):
        read_pickle(path)
    assert not marker.exists()


def test_the_array_is_called_by_its_folder(tmp_path):
    for folder, key in (("noise", "noise"), ("t5_xxl", "t5_text_embeddings")):
        path = tmp_path / folder / "a.pickle"
        path.parent.mkdir()
        path.write_bytes(pickle.dumps([ARRAY]))
        assert load_file(convert(path))[key].tolist() == ARRAY.tolist()
        assert path.exists()


def test_command_converts_folders_and_reports_what_it_could_not(tmp_path, capsys):
    for name, content in (("a", ARRAY), ("b", [{"segmentation": "rle"}]), ("c", ARRAY * np.nan)):
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(content))
    (tmp_path / "d.pickle").write_bytes(b"\x80\x04broken")
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out.count("->") == 1 and "b.pickle: holds no plain array" in err and "write" in err
    assert "c.pickle: holds NaN" in err and "d.pickle: not converted" in err
    assert sorted(p.name for p in tmp_path.glob("*.safetensors")) == ["a.safetensors"]
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 2


def test_a_forged_array_reads_no_memory(tmp_path):
    """Strides whose product with the shape wraps to nothing pass NumPy's own check, and its constructor reads
    any address, which ends the process. Hence a process of its own."""
    path = tmp_path / "a.pickle"
    forged = Node(NDARRAY, ((1, 2**20 + 1), "u1", BYTES, 0, (1, 2**44)))
    path.write_bytes(b"\x80\x02" + assemble(forged) + b".")
    command = [sys.executable, "-m", "cosmos_distill.data.convert", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "a.pickle: holds no plain array" in done.stderr, done


def array(shape=(3, 4), dtype=("f4", STATE), fortran=False, content=BYTES, **changes):
    kind = Node(DTYPE, (dtype[0], False, True), dtype[1])
    state = changes.get("state", (1, shape, kind, fortran, content))
    return Node(("numpy._core.multiarray", "_reconstruct"), (NDARRAY, (0,), b"b"), state)


FORGED_ARRAYS = {
    "more than its bytes": array((3, 5)),
    "a terabyte": array((2**20, 2**18)),
    "beyond 64 bits": array((2**62, 2**62)),
    "beyond 64 bits, wrapping to its size": array((2**32, 2**32 + 12)),
    "negative": array((-3, -4)),
    "one negative": array((-3, 4)),
    "less than its bytes": array((3, 3)),
    "no bytes": array(content=b""),
    "a number for bytes": array(content=2**40),
    "a list of objects": array(dtype=("O8", STATE), content=[1] * 12),
    "objects": array((3, 2), ("O8", STATE)),
    "structure": array((3, 4), ("V4", (3, "|", None, ("a",), {"a": (("O8", 0), 0)}, 4, 1, 0))),
    "text": array((3, 4), ("U1", STATE)),
    "times": array((3, 2), ("M8", STATE)),
    "complex": array((3, 2), ("c8", STATE)),
    "a type of two": array((3, 1), ("4f4", STATE)),
    "a type in words": array(dtype=("float32, object", STATE)),
    "no type": array(dtype=(7, STATE)),
    "no state": array(state=...),
    "half a state": array(state=(1, (3, 4))),
    "a state of numbers": array(state=7),
    "a byte order of its own": array(dtype=("f4", (3, "!"))),
    "from a buffer that is short": Node(
        ("numpy._core.numeric", "_frombuffer"), (BYTES, Node(DTYPE, ("f4",), STATE), (2**20, 2**20), "C")
    ),
    "the class with a size": Node(NDARRAY, ((2**20, 2**18), "f4")),
    "the class with a state": Node(NDARRAY, ((3, 4), "f4"), (1, (2**20, 2**18), None, False, BYTES)),
}


@pytest.mark.parametrize("value", FORGED_ARRAYS.values(), ids=FORGED_ARRAYS)
def test_a_forged_array_is_refused(tmp_path, value):
    path = tmp_path / "a.pickle"
    path.write_bytes(b"\x80\x02" + assemble([value]) + b".")
    with limited(), pytest.raises(DataError, match=r"a\.pickle: (not converted|holds no plain array)"):
        read_pickle(path)


def nested(code: bytes, times: int) -> bytes:
    return b"\x80\x02" + code * times


BOMBS = {
    "a length of a terabyte": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    "a length beyond 64 bits": b"\x80\x04\x8e" + b"\xff" * 8 + b"x.",
    "a text of a terabyte": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "a frame of a terabyte": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "a number of gigabytes": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "a number of a million digits": b"L" + b"9" * 10**6 + b"L\n.",
    "lists in lists": b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "tuples in tuples": b"\x80\x02]" + b"\x85" * 50_000 + b".",
    "a list that holds itself": b"\x80\x02]q\x00h\x00a.",
    "a tuple doubled a thousand times": b"\x80\x02N" + b"2\x86" * 1000 + b".",
    "the same as a key": b"\x80\x02}N" + b"2\x86" * 1000 + b"Ns.",
    "the same as the name of a function": b"\x80\x04N" + b"2\x86" * 1000 + b"N\x93.",
    "a million lists": b"\x80\x02" + b"]" * 1_000_000 + b".",
    "keys with one hash": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(50_000))
    + b"u.",
    "memos far apart": b"\x80\x02Nr\xff\xff\xff\xff" + b"p99999999999\n.",
    "a memo that is not there": b"\x80\x02h\x07.",
    "an empty stack": b"\x80\x02R.",
    "objects from outside": b"\x80\x02X\x01\x00\x00\x000Q.",
    "an extension": b"\x80\x02\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "no end": b"\x80\x02N",
    "nothing": b"",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_no_opcode_costs_more_than_its_bytes(tmp_path, content):
    path = tmp_path / "a.pickle"
    path.write_bytes(content)
    with (
        limited(2**29),
        pytest.raises(DataError, match=r"a\.pickle: (not converted|holds no plain array)") as error,
    ):
        read_pickle(path)
    assert "enough memory" not in str(error.value)


def test_forged_pickles_find_nothing(tmp_path):
    """A few of those that tests/data/fuzz_convert.py tries for as long as one likes."""
    tried, arrays = fuzz_convert.run(40, 0, tmp_path / "a.pickle")
    assert tried >= 800 and arrays >= 5


def test_nothing_is_overwritten(tmp_path):
    path, target = tmp_path / "a.pickle", tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(ARRAY))
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"a\.pickle: not converted, .*a\.safetensors is there"):
        convert(path)
    assert target.read_bytes() == b"mine"
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"a\.safetensors is there"):
        convert(path)
    assert not (tmp_path / "elsewhere").exists()
    target.unlink()
    assert convert(path) == convert(path) == target  # what it wrote itself is no obstacle
    torch.save(torch.from_numpy(ARRAY + 1), tmp_path / "a.pt")
    assert main([str(tmp_path)]) == 2
    assert load_file(target)["t5_text_embeddings"].tolist() == ARRAY.tolist()


def test_a_link_where_it_writes_first_is_not_followed(tmp_path):
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(ARRAY))
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".a.safetensors.tmp").symlink_to(tmp_path / "mine")
    convert(tmp_path / "a.pickle")
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_every_error_names_the_file_and_none_ends_the_rest(tmp_path, capsys):
    os.mkfifo(tmp_path / "a.pickle")
    (tmp_path / "b.pkl").mkdir()
    (tmp_path / "c.pt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.pth").write_bytes(b"PK\x03\x04 broken")
    (tmp_path / "E.PICKLE").write_bytes(pickle.dumps(ARRAY))
    assert main([str(tmp_path), str(tmp_path / "z.pickle")]) == 2
    out, err = capsys.readouterr()
    assert out.count("->") == 1 and "E.PICKLE" in out
    lines = err.splitlines()
    assert len(lines) == 5 and all("not converted" in line for line in lines)
    for name, reason in (
        ("a.pickle", "named pipe"),
        ("b.pkl", "folder"),
        ("c.pt", "No such"),
        ("d.pth", "zip"),
    ):
        assert any(name in line and reason in line for line in lines), (name, err)
    assert "z.pickle" in lines[-1]


def test_a_full_disk_names_the_file_and_ends_no_other(tmp_path, capsys, monkeypatch):
    for name in "ab":
        (tmp_path / f"{name}.pickle").write_bytes(pickle.dumps(ARRAY))
    replace, full = Path.replace, []

    def once(self, target):
        if not full:
            full.append(self)
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", once)
    assert main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "a.safetensors" in err and "full" in err and "b.pickle -> b.safetensors" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pickle", "b.pickle", "b.safetensors"]


def test_what_a_file_or_its_name_says_does_not_reach_the_terminal_as_it_is(tmp_path, capsys):
    (tmp_path / "a.pkl").write_bytes(b"cos\x1b[2J\nsystem\x07\n(tR.")
    (tmp_path / os.fsdecode(b"caf\xe9.pkl")).write_bytes(pickle.dumps(ARRAY))
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "os\\x1b[2J.system\\x07" in err and "caf\\udce9.safetensors" in out
    (out + err).encode()


def test_numbers_beyond_fp32_are_refused_without_a_warning(tmp_path, capsys):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(np.full((2, 2), 1e300)))
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path}/a.pkl: holds NaN or infinity: make the file again"
    ]

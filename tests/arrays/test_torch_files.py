"""Torch checkpoints without torch.load: the same tensors, and nothing from outside of the file."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_distill.arrays import pickles, rebuild, torch_files
from cosmos_distill.models.common import files
from tests.memory import limited

T = torch.arange(12.0).reshape(3, 4)
FORMS = {
    "plain": T,
    "bf16": T.bfloat16(),
    "fp64": T.double(),
    "int64": T.long(),
    "bool": T > 3,
    "fp8": T.to(torch.float8_e4m3fn),
    "uint16": T.to(torch.uint16),
    "transposed": T.T,
    "strided": T[1:, ::2],
    "scalar": torch.tensor(3.0),
    "empty": torch.zeros(0, 4),
    "parameter": torch.nn.Parameter(T),
}


def same(found: torch.Tensor | None, wanted: torch.Tensor) -> bool:
    assert found is not None
    wanted = wanted.detach()
    return (found.dtype, found.shape) == (wanted.dtype, wanted.shape) and torch.equal(
        found.double(), wanted.double()
    )


@pytest.mark.parametrize("value", FORMS.values(), ids=FORMS)
def test_every_form_of_a_tensor_is_read(tmp_path: Path, value: torch.Tensor) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model": OrderedDict(a=value, b=value, none=None, te=io.BytesIO(b"xy"))}, path)
    state = files.read(path)
    assert state.keys() == {"a", "b", "te"} and state["te"].tolist() == [120, 121]
    assert same(state["a"], value) and same(state["b"], value)
    torch.save(value, path, _use_new_zipfile_serialization=False)
    assert same(rebuild.tensor(torch_files.read_any(path)), value)
    for protocol in range(6):
        stream = io.BytesIO(pickle.dumps(value, protocol))
        assert same(rebuild.tensor(pickles.read(stream)), value)


def test_a_module_s_state_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(module.state_dict(), tmp_path / "x.pt")  # which carries _metadata
    found = files.read(tmp_path / "x.pt")
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())


class Raw:
    """A tensor as torch pickles one, with numbers of the forger's choice."""

    def __init__(self, storage: Any, *numbers: Any) -> None:
        self.args = (storage, *numbers, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, self.args


def saved(path: Path, *numbers: Any, legacy: bool = False) -> Path:
    storage = torch.storage.TypedStorage(wrap_storage=T.untyped_storage(), dtype=T.dtype, _internal=True)
    torch.save({"a": Raw(storage, *numbers)}, path, _use_new_zipfile_serialization=not legacy)
    return path


FORGED = {
    "offset beyond": (12, (3, 4), (4, 1)),
    "offset far beyond": (2**40, (1, 1), (1, 1)),
    "negative offset": (-1, (3, 4), (4, 1)),
    "shape beyond": (0, (3, 5), (5, 1)),
    "a terabyte": (0, (2**19, 2**19), (2**19, 1)),
    "a terabyte of one number": (0, (2**19, 2**19), (0, 0)),
    "strides beyond": (0, (3, 4), (2**40, 1)),
    "strides that wrap": (0, (1, 2**20 + 1), (1, 2**44)),
    "negative strides": (11, (3, 4), (-4, -1)),
    "negative shape": (0, (-3, -4), (4, 1)),
    "no strides": (0, (3, 4), ()),
    "words": (0, ("3", 4), (4, 1)),
    "fractions": (0, (3.0, 4), (4, 1)),
    "True": (True, (3, 4), (4, 1)),
    "beyond 64 bits": (0, (2**64, 1), (1, 1)),
    "too many dimensions": (0, (1,) * 200, (1,) * 200),
}


@pytest.mark.parametrize("numbers", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("legacy", [False, True])
def test_no_tensor_reaches_beyond_its_storage(tmp_path: Path, numbers: tuple[Any, ...], legacy: bool) -> None:
    path = saved(tmp_path / "x.pt", *numbers, legacy=legacy)
    content = torch_files.read_any(path)
    with limited(), pytest.raises(ValueError, match=r"does not fit|damaged|has strides"):
        rebuild.tensor(content["a"])
    if not legacy:
        with pytest.raises(ValueError, match=r"x\.pt: a: "):
            files.read(path)


def entries(path: Path, change: Callable[[dict[str, bytes]], None], compression: int = 0) -> None:
    """Write the archive again with its entries changed."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def replaced(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(content: dict[str, bytes]) -> None:
        name = next(n for n in content if n.endswith("data.pkl"))
        assert old in content[name]
        content[name] = content[name].replace(old, new)

    return change


def test_what_an_archive_says_of_a_storage_is_compared_with_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    key, twelve = b"X\x01\x00\x00\x000", b"K\x0c"
    changes: dict[str, Callable[[dict[str, bytes]], None]] = {
        "more elements than bytes": replaced(twelve + b"t", b"J\xff\xff\xff\x7ft"),
        "negative": replaced(twelve + b"t", b"J\xff\xff\xff\xfft"),
        "another type": replaced(b"FloatStorage", b"DoubleStorage"),
        "no type": replaced(b"FloatStorage", b"device"),
        "another file": replaced(key, b"X\x10\x00\x00\x00../../etc/passwd"),
        "missing": lambda content: [content.pop(n) for n in list(content) if n.endswith("data/0")] and None,
        "short": lambda content: content.update({n: b"1" for n in list(content) if n.endswith("data/0")}),
        "other order": lambda content: content.update(
            {n: b"big" for n in content if n.endswith("byteorder")}
        ),
        "no pickle": lambda content: content.update({n: b"" for n in content if n.endswith("data.pkl")}),
    }
    for what, change in changes.items():
        torch.save({"a": T}, path)
        entries(path, change)
        with limited(), pytest.raises(ValueError, match=r"x\.pt.*none of it was executed"):
            files.read(path)
            pytest.fail(what)
    torch.save({"a": T}, path)
    entries(path, lambda _: None, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is missing or compressed"):
        files.read(path)


def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(ValueError, match="is TorchScript, a program"):
        files.read(tmp_path / "x.pt")


def test_an_entry_that_lies_beyond_every_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "far.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("far/data.pkl", pickle.dumps({}, protocol=2))
        archive.infolist()[0].header_offset = 2**63
    with pytest.raises(ValueError, match="damaged"):
        torch_files.read(path)


def test_what_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    for read in (torch_files.read, torch_files.read_any):
        with pytest.raises(ValueError, match="is a named pipe, not a file"):
            read(tmp_path / "x.pt")


def test_no_call_of_a_pickle_is_made(tmp_path: Path) -> None:
    """torch's own restricted reader makes this one."""

    class Large:
        def __reduce__(self) -> Any:
            return bytearray, (2**40,)

    torch.save({"a": Large()}, tmp_path / "x.pt")
    with limited(), pytest.raises(ValueError, match=r"x\.pt.*calls __builtin__\.bytearray"):
        files.read(tmp_path / "x.pt")

"""Files of named tensors: forged headers, checksums, indices that lead elsewhere."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_distill.arrays import named
from cosmos_distill.models.common import files
from cosmos_distill.storage import publish_tensors
from tests.memory import limited

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def forged(path: Path, header: Any, content: bytes = bytes(16), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + content)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


FORGED: dict[str, tuple[Any, int | None]] = {
    "a header longer than the file": ({"a": entry([4], 0, 16)}, 10**6),
    "a header of a terabyte": ({"a": entry([4], 0, 16)}, 2**40),
    "a header beyond 64 bits": ({"a": entry([4], 0, 16)}, 2**64 - 1),
    "no header": ({"a": entry([4], 0, 16)}, 0),
    "a terabyte": ({"a": entry([2**38], 0, 2**40)}, None),
    "shape and bytes differ": ({"a": entry([2**38], 0, 16)}, None),
    "beyond 64 bits": ({"a": entry([2**40, 2**40], 0, 16)}, None),
    "overlapping": ({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}, None),
    "twice the same bytes": ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, None),
    "a hole": ({"a": entry([1], 0, 4), "b": entry([1], 12, 16)}, None),
    "backwards": ({"a": entry([4], 16, 0)}, None),
    "negative": ({"a": entry([-4], 0, 16)}, None),
    "a fraction": ({"a": entry([4], 0, 16) | {"shape": [4.0]}}, None),
    "objects": ({"a": entry([4], 0, 16, "O")}, None),
    "beyond the end": ({"a": entry([8], 0, 32)}, None),
    "bytes that belong to nobody": ({"a": entry([2], 0, 8)}, None),
    "no JSON": (b"{", None),
    "a list": ([1], None),
    "deeply nested": (b'{"a":' + b"[" * 100_000, None),
    "no text": (b"\xff\xfe{}", None),
}


@pytest.mark.parametrize("header,length", FORGED.values(), ids=FORGED)
def test_a_forged_header_is_refused(tmp_path: Path, header: Any, length: int | None) -> None:
    path = forged(tmp_path / "x.safetensors", header, length=length)
    for read in (named.load, named.header, files.read):
        with limited(), pytest.raises(ValueError, match=r"x\.safetensors"):
            read(path)


def test_checksum_is_of_names_shapes_types_and_bytes() -> None:
    value = named.digest(TENSORS)
    assert value == named.digest(dict(reversed(TENSORS.items())))
    a, b = TENSORS["a"], TENSORS["b"]
    changed = a.clone()
    changed[1, 2] = 7
    for other in (
        {"a": a, "c": b},
        {"a": a},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.view(torch.int32), "b": b},
        {"a": a, "b": b.view(torch.float16)},
        {"a": changed, "b": b},
    ):
        assert named.digest(other) != value
    assert named.digest({"a": a.T.contiguous().T, "b": b}) == value  # not of how they lie in memory
    assert len(named.digest({"scalar": torch.tensor(1.0), "empty": torch.zeros(0, 3), "flag": a > 2})) == 64


def test_changed_weights_are_noticed_and_files_without_a_checksum_load(tmp_path: Path) -> None:
    path = publish_tensors(TENSORS, tmp_path / "student.safetensors", {"step": 1})
    assert torch.equal(named.load(path)["a"], TENSORS["a"]) and named.metadata(path) == {"step": 1}
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"student\.safetensors is damaged or was changed \(its weights have the"
    ):
        named.load(path)
    with pytest.raises(ValueError, match="damaged or was changed"):
        files.read(path)
    save_file(load_file(path), tmp_path / "plain.safetensors")
    assert named.load(tmp_path / "plain.safetensors").keys() == TENSORS.keys()


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '"words"'])
def test_a_description_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", {named.METADATA: text})
    for read in (named.load, named.metadata):
        with pytest.raises(ValueError, match=r"x\.safetensors is damaged"):
            read(tmp_path / "x.safetensors")


OUTSIDE = [
    "..", ".", "", "../secret.safetensors", "/etc/passwd", "sub/../../secret.safetensors", "sub",
    "model.pt", "secret.safetensors/", "..\\secret.safetensors", "a\0.safetensors", 7, None, ["a"], {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=repr)
def test_an_index_names_files_beside_it_only(tmp_path: Path, name: Any) -> None:
    save_file(TENSORS, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file(TENSORS, folder / "sub" / "x.safetensors")
    (folder / "model.pt").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match=r"index\.json points outside its folder"):
        files.read(folder)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000]
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"index\.json"):
        files.read(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_that_are_a_pipe_do_not_block(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        files.read(tmp_path / f"x{suffix}")
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    with pytest.raises(ValueError, match="is a named pipe, not a file"):
        files.read(tmp_path)

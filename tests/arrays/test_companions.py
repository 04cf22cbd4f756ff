"""One array of a small file: what its header declares is compared with what there is, before it is read."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cosmos_distill.arrays import companions
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.text import load_array
from cosmos_distill.members import Member, open_bytes
from tests.memory import limited

ARRAY = np.arange(12, dtype=np.float32).reshape(3, 4)
KEY = "noise"


@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f8", "i1", ">i4", "u8"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npz_is_read_as_numpy_reads_it(tmp_path: Path, dtype: str, save: object, order: str) -> None:
    path, array = tmp_path / "a.npz", ARRAY.astype(dtype, order=order)  # type: ignore[call-overload]
    save(path, noise=array, text=np.array(["words"]))  # type: ignore[operator]
    assert companions.header(path, KEY) == (np.dtype(dtype).name, (3, 4))
    found = companions.read(path, KEY)
    assert found.dtype == np.float32 and found.flags.writeable and found.tolist() == ARRAY.tolist()


def npz(
    path: Path, content: bytes, declared: int | None = None, compression: int = zipfile.ZIP_STORED
) -> Path:
    """An archive with one member of ``content``, which says of itself that it has ``declared`` bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("noise.npy", content)
    if declared is not None:
        data = bytearray(path.read_bytes())
        central = data.index(b"PK\x01\x02")
        data[22:26] = data[central + 24 : central + 28] = struct.pack("<I", declared)
        path.write_bytes(data)
    return path


def npy(shape: str, descr: str = "'<f4'", content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + content


FORGED = {
    "a terabyte in 200 bytes": npy("(16, 16384, 1048576)"),
    "beyond 64 bits": npy("(4294967296, 4294967296)"),
    "negative": npy("(-3, -4)", content=ARRAY.tobytes()),
    "negative, of nothing": npy("(-3, 0)"),
    "too short": npy("(3, 4)", content=ARRAY.tobytes()[:-1]),
    "too long": npy("(3, 4)", content=ARRAY.tobytes() + b"x"),
    "objects": npy("(3, 4)", "'|O'", ARRAY.tobytes() * 2),
    "objects in a structure": npy("(3,)", "[('a', '|O')]", ARRAY.tobytes()),
    "structure": npy("(3,)", "[('a', '<f4'), ('b', '<f4')]", ARRAY.tobytes()[:24]),
    "complex": npy("(3, 2)", "'<c8'", ARRAY.tobytes()),
    "text": npy("(3, 4)", "'<U1'", ARRAY.tobytes()),
    "times": npy("(3, 2)", "'<M8[ns]'", ARRAY.tobytes()),
    "nonsense for a type": npy("(3, 4)", "'nonsense'", ARRAY.tobytes()),
    "code for a type": npy("(3, 4)", "__import__('os').mkdir('executed')", ARRAY.tobytes()),
    "nested deeply": npy("(3, 4)", "[" * 50),
    "a version of the future": npy("(3, 4)", content=ARRAY.tobytes(), version=b"\x09\x00"),
    "no array": b"words",
    "empty": b"",
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
def test_what_an_npz_declares_must_be_there(tmp_path: Path, content: bytes) -> None:
    path = npz(tmp_path / "a.npz", content)
    with limited(), pytest.raises(DataError, match=r"a\.npz"):
        load_array(path, KEY)


def test_a_member_that_declares_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    header = npy("(1, 1, 536870912)")
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = npz(tmp_path / "a.npz", header, 2**31 + len(header), compression)
        with limited(), pytest.raises(DataError, match=r"a\.npz.*declares 2147483"):
            load_array(path, KEY)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """Two gigabytes of zeros in two megabytes: what it declares is true, and too much."""
    path, size = tmp_path / "bomb.npz", 2**31
    header = npy("(1, 1, 536870912)")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(header) + deflate.flush(zlib.Z_FULL_FLUSH)
    piece = deflate.compress(b"\0" * 2**22) + deflate.flush(zlib.Z_FULL_FLUSH)  # depends on nothing before it
    body += piece * (size // 2**22) + deflate.flush()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("noise.npy", body)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02", len(body))
    for where in (8, central + 10):
        data[where : where + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
    for where in (22, central + 24):
        data[where : where + 4] = struct.pack("<I", size + len(header))
    path.write_bytes(data)
    with limited(), pytest.raises(DataError, match=r"bomb\.npz: noise declares 2147483648 bytes, more than"):
        load_array(path, KEY)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_numpy_does_not_know_is_refused(tmp_path: Path, compression: int) -> None:
    path = npz(tmp_path / "a.npz", npy("(3, 4)", content=ARRAY.tobytes()), None, compression)
    with pytest.raises(DataError, match="compressed as NumPy never does"):
        load_array(path, KEY)


def test_a_damaged_member_is_noticed(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", npy("(3, 4)", content=ARRAY.tobytes()))
    data = bytearray(path.read_bytes())
    data[data.index(ARRAY.tobytes()) + 20] ^= 64
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz.*CRC"):
        load_array(path, KEY)


def test_a_sparse_file_is_no_reason_to_ask_for_a_terabyte(tmp_path: Path) -> None:
    header = b'{"noise":{"dtype":"F32","shape":[274877906944],"data_offsets":[0,1099511627776]}}'
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + 2**40)
    with pytest.raises(DataError, match=r"a\.safetensors"):
        load_array(path, KEY)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_only_numbers_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({KEY: torch.ones(3, 4).to(dtype)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match="not of real numbers"):
        load_array(tmp_path / "a.safetensors", KEY)


def others(path: Path, kind: str) -> None:
    """What is no file, at ``path``."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name is short
        try:
            socket.socket(socket.AF_UNIX).bind(path.name)
        finally:
            os.chdir(here)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    others(path, kind)
    word = "named pipe" if kind == "pipe" else kind
    with pytest.raises(DataError, match=rf"a\{suffix} is a {word}, not a file"):
        load_array(path, KEY)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz"):
        with pytest.raises(DataError, match=rf"a\{suffix}: cannot be read \(No such file"):
            load_array(tmp_path / f"a{suffix}", KEY)
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected a \.safetensors or \.npz file"):
        load_array(tmp_path / "a.npy", KEY)


def test_the_size_of_an_archive_is_bounded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for i in range(1001):
            archive.writestr(f"{i}.npy", b"")
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="holds 1001 arrays"):
        load_array(tmp_path / "a.npz", KEY)


def test_a_header_is_not_read_beyond_what_headers_have(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{KEY}.npy", "w") as file:
        file.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**28))
        for _ in range(256):
            file.write(bytes(2**20))
    with limited(2**26), pytest.raises(ValueError, match=r"a\.npz: 'noise\.npy' cannot be read"):
        companions.read(path, KEY)
    with limited(2**26), pytest.raises(ValueError, match=r"a\.npz: 'noise\.npy' cannot be read"):
        companions.header(path, KEY)


@pytest.mark.parametrize("shape", [(0, 2**61), (0, 2**63), (0, 2**40, 2**40), (1,) * 40, (1,) * 70], ids=str)
def test_shapes_that_no_array_has_are_refused_by_name(tmp_path: Path, shape: tuple[int, ...]) -> None:
    content = ARRAY.tobytes()[: 4 * int(shape[0] == 1)]
    header = {KEY: {"dtype": "F32", "shape": shape, "data_offsets": [0, len(content)]}}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content)
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    npz(tmp_path / "a.npz", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)
    for name in ("a.safetensors", "a.npz"):
        with pytest.raises(ValueError, match=name):
            companions.read(tmp_path / name, KEY)


def test_names_in_a_file_are_shown_short_and_as_python_spells_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("\x1b[2J" * 100, b"")
    save_file({f"{i}\x1b{'x' * 500}": torch.zeros(1) for i in range(50)}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        with pytest.raises(ValueError, match=name) as refusal:
            companions.read(tmp_path / name, KEY)
        said = str(refusal.value).removeprefix(str(tmp_path))
        assert said.isprintable() and len(said) < 600


def test_a_name_that_is_not_utf8_is_said_to_be_that(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="has a name that is not UTF-8"):
        companions.read(path, KEY)


@pytest.mark.parametrize("dtype", [">f4", "<f2", "f8", "g"])
def test_types_are_named_without_their_byte_order(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "a.npz", noise=ARRAY.astype(dtype))
    assert companions.header(tmp_path / "a.npz", KEY) == (np.dtype(dtype).newbyteorder("=").name, (3, 4))


def member(path: Path, content: bytes) -> Member:
    """Bytes somewhere in a file, as a part of it."""
    path.write_bytes(b"before" + content + b"behind")
    return Member(path, "c.noise.safetensors", 6, len(content))


def test_the_header_of_a_part_of_an_archive_is_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {KEY: torch.randn(64, 64, dtype=torch.float64).bfloat16(), "other": torch.zeros(9)}
    save_file(tensors, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    part, asked = member(tmp_path / "a.tar", content), []
    read = io.RawIOBase.read

    def open_counted(file: Member) -> io.RawIOBase:
        opened = open_bytes(file)
        monkeypatch.setattr(opened, "read", lambda n: asked.append(n) or read(opened, n), raising=False)
        return opened

    monkeypatch.setattr(companions, "open_bytes", open_counted)
    assert companions.header(part, KEY) == companions.header(tmp_path / "whole.safetensors", KEY)
    assert 0 < sum(asked) < 300
    found = companions.read(part, KEY)
    assert (found == companions.read(tmp_path / "whole.safetensors", KEY)).all() and found.dtype == np.float32


def said(header: object, behind: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(behind)


WRONG = {
    "nothing": b"",
    "an end in its length": b"\x08\x00",
    "a header beyond its end": struct.pack("<Q", 2**40) + b"{}",
    "no JSON": said(b"{]"),
    "no table": said([1]),
    "no entry": said({KEY: 1}),
    "an array beyond its end": said({KEY: {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}),
    "an array of another length": said({KEY: {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}),
    "a shape below nothing": said({KEY: {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}),
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_part_of_an_archive_that_is_damaged_is_named(content: bytes, tmp_path: Path) -> None:
    part = member(tmp_path / "a.tar", content)
    for look in (companions.header, companions.read):
        with pytest.raises(ValueError, match=r"a\.tar/c\.noise\.safetensors is damaged"):
            look(part, KEY)

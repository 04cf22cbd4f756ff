"""Files of their own, members of archives on disk and in a store: the same bytes, and the same refusals."""

import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from cosmos_distill.data import clips
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.index import Index, index_of
from cosmos_distill.data.opening import open_regular
from cosmos_distill.data.text import array_header, load_array
from cosmos_distill.members import Member, Url, address, content_hash, open_bytes, place, read_bytes, stamp
from tests.data.folders import write_clip


def archived(path: Path, files: list[Path]) -> list[Member]:
    """A tar of ``files``, as members of it."""
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    with tarfile.open(path) as tar:
        return [Member(path, one.name, one.offset_data, one.size) for one in tar]


def in_store(member: Member, url: str) -> Member:
    """The same member of a copy of its archive in fsspec's store in memory."""
    assert isinstance(member.archive, Path)
    with fsspec.open(url, "wb") as stream:
        stream.write(member.archive.read_bytes())
    return Member(Url(url), member.member, member.offset, member.size)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    write_clip(tmp_path / "long.mp4", 9, g="4")
    write_clip(tmp_path / "other.mkv", 5, level=90)
    array = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float16)
    save_file({"noise": array, "other": array[0]}, str(tmp_path / "a.safetensors"))
    np.savez_compressed(tmp_path / "b.npz", noise=array)
    return [tmp_path / name for name in ("long.mp4", "other.mkv", "a.safetensors", "b.npz")]


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_member_is_read_as_the_same_file_on_disk(files: list[Path], tmp_path: Path, where: str) -> None:
    members = archived(tmp_path / "shard.tar", files)
    if where == "store":
        members = [in_store(member, "memory://bucket/shard.tar") for member in members]
    for file, member in zip(files[:2], members[:2], strict=True):
        assert clips.probe(member) == clips.probe(file)
        whole, inside = clips.window(file, range(1, 5, 2)), clips.window(member, range(1, 5, 2))
        assert np.array_equal(whole.frames, inside.frames) and whole[1:] == inside[1:]
        assert np.array_equal(clips.decode(file)[0], clips.decode(member)[0])
        assert content_hash(file) == content_hash(member)
    for file, member in zip(files[2:], members[2:], strict=True):
        assert array_header(file, "noise") == array_header(member, "noise")
        assert np.array_equal(load_array(file, "noise"), load_array(member, "noise"))


def test_what_is_not_there_is_said_by_name(files: list[Path], tmp_path: Path) -> None:
    member = archived(tmp_path / "shard.tar", files)[0]
    beyond = Member(tmp_path / "shard.tar", "x.mp4", member.offset, 10**9)
    with pytest.raises(DataError, match=r"shard.tar/x.mp4.*its archive ends after"):
        open_regular(beyond)
    with pytest.raises(DataError, match="is empty"):
        open_regular(Member(tmp_path / "shard.tar", "x.mp4", member.offset, 0))
    with pytest.raises(DataError, match=r"memory://bucket/none.tar"):
        open_regular(Url("memory://bucket/none.tar"))
    with pytest.raises(DataError, match="nosuch"):
        open_regular(Url("nosuch://bucket/none.tar"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no regular file"):
        open_regular(Member(tmp_path / "pipe", "x.mp4", 0, 5))
    with pytest.raises(ValueError, match="too many"):
        read_bytes(files[0], 10)


def test_a_part_of_a_file_ends_where_it_ends(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(bytes(range(100)))
    with open_bytes(Member(tmp_path / "whole", "part", 10, 20)) as part:
        assert part.read() == bytes(range(10, 30)) and part.read() == b""
        assert part.seek(-3, os.SEEK_END) == 17 and part.read(100) == bytes(range(27, 30))
        assert part.seek(-30, os.SEEK_CUR) < 0 and part.tell() == 20  # as FFmpeg expects, and no exception
        assert part.seek(25) == 25 and part.read(1) == b""


def test_facts_about_a_member_hold_while_its_archive_does(files: list[Path], tmp_path: Path) -> None:
    one, other = archived(tmp_path / "shard.tar", files)[:2]
    os.utime(tmp_path / "shard.tar", ns=(1, 1))
    index, asked = Index(None), []

    def find(file: Member) -> int:
        asked.append(file)
        return file.size

    import cosmos_distill.data.index as module

    settled, module.SETTLED_NS = module.SETTLED_NS, -(10**12)
    try:
        for _ in range(2):
            assert index.fact(one, "size", find) == one.size and index.fact(other, "size", find) == other.size
        assert asked == [one, other]
        (tmp_path / "shard.tar").touch()
        index.fact(one, "size", find)
        assert asked == [one, other, one]
    finally:
        module.SETTLED_NS = settled
    assert stamp(one) == stamp(tmp_path / "shard.tar") and place(one) != place(other)


def test_addresses() -> None:
    assert address("/data/clips") is None and address(Path("clips")) is None and address("C:clips") is None
    assert address(Path("s3://bucket/a b/{0..9}.tar")) == "s3://bucket/a b/{0..9}.tar"
    assert address("memory://x") == address(Path("memory:/x")) == "memory://x"
    assert address(Path("file:///data/clips")) == "file:///data/clips"
    assert index_of("memory://x") is index_of(Path("memory://x"))


def test_the_word_of_a_store_stands_for_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmos_distill import members

    said = {"type": "file", "size": 2**50, "ETag": '"a"'}
    monkeypatch.setattr(members, "_info", lambda url: said)
    first = content_hash(Member(Url("s3://bucket/x.tar"), "clip.mp4", 512, 2**40))
    assert first == content_hash(Member(Url("s3://elsewhere/y.tar"), "other.mp4", 512, 2**40))
    assert first != content_hash(Member(Url("s3://bucket/x.tar"), "clip.mp4", 1024, 2**40))
    said["ETag"] = '"b"'
    assert first != content_hash(Member(Url("s3://bucket/x.tar"), "clip.mp4", 512, 2**40))

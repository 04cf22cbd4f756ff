"""Small videos, pictures and folders of clips that the inputs are made of."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

FRAMES = 12


def frames(count: int = FRAMES, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """A bright square that moves over a grey ramp; RGB uint8 [height, width, 3]."""
    ramp = np.tile(np.linspace(20, 200, width, dtype=np.uint8)[None, :, None], (height, 1, 3))
    found = []
    for i in range(count):
        image = ramp.copy()
        image[8:20, (3 * i) % (width - 10) :][:, :10] = (230, 200, 90)
        found.append(image)
    return found


def video(path: Path, images: list[np.ndarray] | None = None, *, codec: str = "libx264", fps: int = 24,
          times: list[int] | None = None, kind: str = "mp4", pix_fmt: str = "yuv420p") -> Path:  # fmt: skip
    """Write a video; ``times`` of the frames in 1/1000 s make its rate variable."""
    import av

    images = frames() if images is None else images
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, av.open(file, "w", format=kind) as out:
        stream: Any = out.add_stream(codec, rate=fps)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def sound(path: Path) -> Path:
    """A file with sound alone."""
    import av

    with path.open("wb") as file, av.open(file, "w", format="mp4") as out:
        stream: Any = out.add_stream("aac", rate=44100)
        silence = np.zeros((1, 1024), np.float32)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate = 44100
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def embedding(path: Path, value: Any = None, key: str = "t5_text_embeddings") -> Path:
    """A prompt as the smoke networks take it, fp32 [5, 64]."""
    from safetensors.numpy import save_file

    array = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) if value is None else value
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: array}, str(path))
    return path


def folder(root: Path, names: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """A folder of clips with their prompts, in the published layout of Transfer1."""
    for name in names:
        video(root / "videos" / f"{name}.mp4")
        embedding(root / "t5_xxl" / f"{name}.safetensors")
    return root

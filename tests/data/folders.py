"""Small folders of clips in the published layout."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.numpy import save_file

from cosmos_distill.config import Data
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clips import Split
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.prefetch import Prefetch, within_share
from cosmos_distill.data.sources import open_source

TEXT = 12
"""Width of the embeddings."""


def write_clip(
    path: Path,
    frames: int,
    height: int = 32,
    width: int = 64,
    level: int = 0,
    fps: int = 24,
    noise: int = 0,
    **options: str,
) -> None:
    """A bright square that moves right; the background has grey level ``level``, or the noise of a seed. The
    header comes first, and every frame stands for itself. ``options`` are the encoder's."""
    random = np.random.default_rng(noise)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        settings = {"crf": "5", "preset": "ultrafast", "g": "1"} | options
        stream = container.add_stream("libx264", rate=fps, options=settings)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            image = np.full((height, width, 3), level, np.uint8)
            if noise:
                image[height * 5 // 8 :] = random.integers(0, 255, image[height * 5 // 8 :].shape)
            image[8:20, 4 + 2 * i : 16 + 2 * i] = (230, 200, 90)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_text(root: Path, name: str, tokens: int = 7) -> None:
    (root / "t5_xxl").mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(tokens).standard_normal((tokens, TEXT)).astype(np.float32)
    save_file({"t5_text_embeddings": array}, str(root / "t5_xxl" / f"{name}.safetensors"))


def write_noise(root: Path, name: str, shape=(16, 3, 8, 8), scale: float = 1.0) -> None:
    (root / "noise").mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32) * scale
    save_file({"noise": array}, str(root / "noise" / f"{name}.safetensors"))


def write_folder(root: Path, clips: int, frames: int = 12, control: str | None = None) -> list[Path]:
    """``clips`` clips with their text, named c00, c01, ...; returns the videos."""
    videos = []
    for i in range(clips):
        name = f"c{i:02d}"
        videos.append(root / "videos" / f"{name}.mp4")
        write_clip(videos[-1], frames, level=10 * i)
        write_text(root, name, tokens=5 + i)
        if control is not None:
            write_clip(root / control / f"{name}.mp4", frames, level=255 - 10 * i)
    return videos


def lose(path: Path, begin: float, end: float = 1.0) -> None:
    """Zeros in place of a share of the pictures, as a failing disk or an unfinished copy leaves them. What a
    header says of them stays true."""
    whole = bytearray(path.read_bytes())
    at = whole.index(b"mdat") + 4
    first, last = (at + int((len(whole) - at) * share) for share in (begin, end))
    whole[first:last] = bytes(last - first)
    path.write_bytes(whole)


def open_(data: Data, control: str | None = "edge", split: Split = "train", seed: int = 0) -> FolderSource:
    """A source of small clips."""
    source = open_source(data, control, seed, split=split, text_channels=TEXT, text_tokens=16)
    assert isinstance(source, FolderSource)
    return source


def digests(batch: Batch) -> list[str]:
    """Of all that a batch holds, by sample."""
    assert batch.conditioning.hint is not None
    parts = batch.latents, batch.conditioning.hint, batch.conditioning.text, batch.conditioning.fps
    return [
        hashlib.sha256(name.encode() + b"".join(part[i].numpy().tobytes() for part in parts)).hexdigest()
        for i, name in enumerate(batch.names)
    ]


def shares(data: Data, rank: int) -> dict[str, list[str]]:
    """What one of two ranks reads, by first sample: three steps of four samples, two at a time."""
    source = Prefetch(open_(data), following=within_share(4, 2))
    firsts = [8 * step + 4 * rank + half for step in range(3) for half in (0, 2)]
    found = {str(first): digests(source.batch(first, 2)) for first in firsts}
    source.close()
    return found


if __name__ == "__main__":  # the second rank, over a folder of the first one's
    torch.set_num_threads(1)
    clips = Data(source="folder", tokenizer="haar", frames=5, height=32, width=32, root=Path(sys.argv[1]))
    print(json.dumps(shares(clips, 1)))

"""Builds a zoo of real formats: tiny random models and clips, laid out and named as people have them.

python -m tests.real_formats.make FOLDER

    transfer1/   base_model.pt and edge_control.pt, edge_control_distilled.pt, tokenizer/ (CV8x8x8), t5/
    predict25/   <uuid>_ema_bf16.pt, <uuid>.pt, Wan2.1_VAE.pth, vae/ (the same of diffusers), reason1/
    clips/       videos/*.mp4 and captions/*.txt
    layouts/     the same clips with their captions elsewhere, or with embeddings
    forms/       every other form of a network that is read (tests/real_formats/forms.py)
    refused/     what is refused by name

The networks have the sizes of the presets transfer1-smoke and predict2.5-smoke.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.data.folders import write_clip
from tests.real_formats import networks, text_encoders, tokenizers

CAPTIONS = {
    "street": "a red car drives through the rain at night",
    "snow": "the camera follows two people on a snowy street",
    "night": "two people drive a car at night",
    "rain": "a snowy car follows the camera",
    "walk": "two people walk through the rain",
    "camera": "the camera drives on a red street",
}
FRAMES = 26
"""Of a clip: a window of 9 frames at a stride of 2, and some more."""
WIDTH = 64
"""Of a prompt's embedding, which the networks take."""


def transfer1(folder: Path) -> None:
    """Cosmos-Transfer1-7B, Cosmos-Tokenize1-CV8x8x8-720p and T5-11B, small."""
    networks.transfer1(folder)
    tokenizers.cosmos(folder / "tokenizer")
    text_encoders.t5(folder / "t5", width=WIDTH)


def predict25(folder: Path) -> None:
    """Cosmos-Predict2.5-2B, Wan 2.1's VAE in both its forms and Cosmos-Reason1, small."""
    networks.predict25(folder)
    tokenizers.wan(folder / "Wan2.1_VAE.pth", folder / "vae")
    text_encoders.reason1(folder / "reason1", layers=WIDTH // 32)
    networks.saved(
        folder / "distilled" / f"{networks.DISTILLED}_ema_bf16.pt",
        networks.official(networks.PREDICT25, seed=2),
    )


def videos(folder: Path) -> None:
    """A clip for each caption, in H.264."""
    for number, name in enumerate(CAPTIONS):
        write_clip(folder / f"{name}.mp4", FRAMES, height=48, width=64, level=10 * number, noise=number)


def clips(folder: Path) -> None:
    """Videos, each with its caption in a text file of its name."""
    videos(folder / "videos")
    texts(folder / "captions")


def texts(folder: Path) -> None:
    """A text file for each caption."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in CAPTIONS.items():
        (folder / f"{name}.txt").write_text(caption + "\n")


def layouts(folder: Path, linked: Path) -> None:
    """The clips of ``linked`` by links, with their captions in every other place."""
    for layout, write in LAYOUTS.items():
        (folder / layout).mkdir(parents=True, exist_ok=True)
        target = folder / layout / "videos"
        target.symlink_to(os.path.relpath(linked / "videos", folder / layout))
        write(folder / layout)


def _metas(folder: Path) -> None:
    texts(folder / "metas")


def _json(folder: Path) -> None:
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))


def _jsonl(folder: Path) -> None:
    lines = [json.dumps({"id": name, "caption": caption}) for name, caption in CAPTIONS.items()]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")


def _csv(folder: Path) -> None:
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "caption"), *CAPTIONS.items()])


def _embeddings(folder: Path, width: int = WIDTH) -> None:
    for place in ("t5_xxl", "reason1"):
        (folder / place).mkdir(exist_ok=True)
        for number, name in enumerate(CAPTIONS):
            array = np.random.default_rng(number).standard_normal((6, width), np.float32)
            save_file({"t5_text_embeddings": array}, folder / place / f"{name}.safetensors")


def _narrow(folder: Path) -> None:
    _embeddings(folder, 32)


LAYOUTS = {
    "nothing": lambda folder: None,
    "embeddings": _embeddings,
    "narrow": _narrow,
    "metas": _metas,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}


def make(folder: Path) -> Path:
    """Build all of it in ``folder``, which must be empty or new."""
    from tests.real_formats import forms

    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty: name a new folder")
    transfer1(folder / "transfer1")
    predict25(folder / "predict25")
    clips(folder / "clips")
    layouts(folder / "layouts", folder / "clips")
    for form in forms.MADE:
        form.make(folder)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("python -m tests.real_formats.make FOLDER")
    print(make(Path(sys.argv[1])))

"""Student files, and where clips go."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import cosmos_distill
from tests.robustness.inputs import Input

WEIGHTS = Path(cosmos_distill.__file__).parent / "weights"
STUDENT, PREDICT = WEIGHTS / "transfer1-smoke.safetensors", WEIGHTS / "predict2.5-smoke.safetensors"
KEPT = b"somebody's clip"


def sample(*words: Any, student: Path = STUDENT) -> list[Any]:
    """One clip."""
    return ["sample", student, "--clips", 1, "--out", "clips", *words]


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "mine.safetensors").write_bytes(change(STUDENT.read_bytes()))
        return sample(student=Path("mine.safetensors"))

    return make


def _said(**changes: Any) -> Callable[[Path], Any]:
    """A student that says something else of itself."""

    def make(folder: Path) -> Any:
        with safe_open(STUDENT, framework="pt") as file:
            said = json.loads(file.metadata()["cosmos_distill"])
        save_file(
            load_file(STUDENT), folder / "mine.safetensors", {"cosmos_distill": json.dumps(said | changes)}
        )
        return sample(student=Path("mine.safetensors"))

    return make


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        tensors = load_file(STUDENT)
        change(tensors)
        with safe_open(STUDENT, framework="pt") as file:
            save_file(tensors, folder / "mine.safetensors", file.metadata())
        return sample(student=Path("mine.safetensors"))

    return make


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = torch.nan


def _bare(folder: Path) -> Any:
    save_file(load_file(STUDENT), folder / "mine.safetensors")
    return sample(student=Path("mine.safetensors"))


def _path(prepare: Callable[[Path], object]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        prepare(folder / "mine.safetensors")
        return sample(student=Path("mine.safetensors"))

    return make


def _earlier(name: str, *words: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "clips").mkdir()
        (folder / "clips" / name).write_bytes(KEPT)
        return sample(*words)

    return make


def _huge(tensors: dict[str, torch.Tensor]) -> None:
    for value in tensors.values():
        value.mul_(1e18)


def _target(prepare: Callable[[Path], object]) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        prepare(folder / "clips")
        return sample()

    return make


INPUTS = {
    "missing": Input(
        lambda f: sample(student=Path("mine.safetensors")), ("mine.safetensors", "no such file"), quick=True
    ),
    "folder": Input(_path(Path.mkdir), ("mine.safetensors",), quick=True),
    "pipe": Input(_path(os.mkfifo), ("mine.safetensors",), quick=True),
    "dangling link": Input(_path(lambda p: p.symlink_to("gone")), ("mine.safetensors",), quick=True),
    "empty": Input(_bytes(lambda b: b""), ("mine.safetensors",), quick=True),
    "text": Input(_bytes(lambda b: b"hello\n" * 9), ("mine.safetensors",), quick=True),
    "cut off": Input(_bytes(lambda b: b[:-1000]), ("mine.safetensors",), quick=True),
    "cut off in its header": Input(_bytes(lambda b: b[:100]), ("mine.safetensors",), quick=True),
    "header of 2**60 bytes": Input(
        _bytes(lambda b: (2**60).to_bytes(8, "little") + b[8:]), ("mine.safetensors",), quick=True
    ),
    "without its words": Input(_bare, ("mine.safetensors",), quick=True),
    "newer format": Input(_said(format=99), ("mine.safetensors",), quick=True),
    "network unknown": Input(_said(network="transfer9"), ("mine.safetensors",), quick=True),
    "network of another size": Input(_said(network="transfer1-mini"), ("mine.safetensors",), quick=True),
    "schedule unknown": Input(_said(schedule={"kind": "own"}), ("mine.safetensors",), quick=True),
    "sampler unknown": Input(_said(sampler={"kind": "own"}), ("mine.safetensors",), quick=True),
    "precision unknown": Input(_said(precision="fp3"), ("mine.safetensors",), quick=True),
    "data of a newer version": Input(_said(data={"later": 1}), ("mine.safetensors",), quick=True),
    "a tensor missing": Input(_tensors(lambda t: t.pop(sorted(t)[0])), ("mine.safetensors",), quick=True),
    "a tensor too many": Input(_tensors(lambda t: t.update(more=torch.zeros(1))), ("more",), quick=True),
    "NaN in it": Input(_tensors(_nan), ("not finite",), quick=True),
    "earlier clip": Input(_earlier("clip-000.mp4"), ("clip-000.mp4", "--overwrite"), quick=True),
    "earlier grid": Input(_earlier("grid.png"), ("grid.png", "--overwrite"), quick=True),
    "earlier clip to be replaced": Input(
        _earlier("clip-000.mp4", "--overwrite"),
        right=lambda folder: (folder / "clips/clip-000.mp4").read_bytes() != KEPT,
    ),
    "other files in the folder": Input(
        _earlier("mine.txt"), right=lambda folder: (folder / "clips/mine.txt").read_bytes() == KEPT
    ),
    "out is a file": Input(_target(lambda p: p.write_bytes(KEPT)), ("clips", "file"), quick=True),
    "out is a dangling link": Input(_target(lambda p: p.symlink_to("gone")), ("clips", "gone"), quick=True),
    "out is empty": Input(lambda f: [*sample()[:-1], ""], ("out", "empty"), quick=True),
    "out begins with a tilde": Input(lambda f: [*sample()[:-1], "~/clips"], ("~",), quick=True),
    "no clips": Input(lambda f: sample("--clips", 0), ("clips",), quick=True),
    "fewer than no clips": Input(lambda f: sample("--clips", -2), ("clips",), quick=True),
    "batch 0": Input(lambda f: sample("--batch", 0), ("batch",), quick=True),
    "seed negative": Input(
        lambda f: sample("--seed", -1),
        ("seed",),
        right=lambda folder: (folder / "clips/clip-000.mp4").exists(),
    ),
    "prompt too long": Input(
        lambda f: sample("--prompt", "word " * 99, student=PREDICT), ("99 words",), quick=True
    ),
    "prompt without control": Input(
        lambda f: sample("--prompt", "a bike"), ("--prompt", "--video"), quick=True
    ),
    "prompt beside frames of nothing": Input(
        lambda f: sample("--prompt", "a bike", "--condition-frames", 1, student=PREDICT),
        ("--prompt", "--start"),
        quick=True,
    ),
    "prompt alone": Input(
        lambda f: sample("--prompt", "a bike", student=PREDICT),
        right=lambda folder: (folder / "clips/clip-000.mp4").exists(),
    ),
    "embedding missing": Input(
        lambda f: sample("--prompt-embedding", "nowhere.npz", student=PREDICT), ("nowhere.npz",), quick=True
    ),
    "video and control video": Input(
        lambda f: sample("--video", "a.mp4", "--control-video", "b.mp4"), ("exclude each other",), quick=True
    ),
    "video for a student without control": Input(
        lambda f: sample("--video", "a.mp4", student=PREDICT), ("video",), quick=True
    ),
    "folder of clips for a student of none": Input(
        lambda f: sample("--data-root", "nowhere"), ("--data-root", "leave it out"), quick=True
    ),
    "negative prompt without guidance": Input(
        lambda f: [*_said(sampler={"kind": "few_step"})(f), "--negative-prompt-embedding", "nowhere.npz"],
        ("--negative-prompt-embedding", "without guidance"),
        quick=True,
    ),
    "weights that overflow": Input(_tensors(_huge), ("mine.safetensors", "NaN or infinity")),
    "earlier clip that is a dangling link": Input(
        _target(lambda p: (p.mkdir(), (p / "clip-000.mp4").symlink_to("gone"))),
        ("clip-000.mp4", "--overwrite"),
        quick=True,
    ),
    "more frames than were trained": Input(
        lambda f: sample("--condition-frames", 3, student=PREDICT), ("condition-frames",), quick=True
    ),
}

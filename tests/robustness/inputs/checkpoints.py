"""Checkpoints given to ``consolidate``, teachers, and where the result goes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.robustness.inputs import Input
from tests.robustness.inputs.students import STUDENT
from tests.robustness.kills import RECIPES


def _saved(folder: Path) -> Path:
    from cosmos_distill.train.checkpoint import Store, whole

    with Store(folder / "checkpoints", keep=1) as store:
        tensors = {"network_student": {"w": whole(torch.ones(3))}}
        store.save(12, tensors, {"fingerprint": {"method.name": "KD"}})
    return folder / "checkpoints" / "step_000000012"


def consolidate(
    change: Callable[[Path], object] = lambda path: None, *words: str, target: str = "out.safetensors"
) -> Callable[[Path], Any]:
    """A checkpoint that something happens to, consolidated."""

    def make(folder: Path) -> Any:
        change(_saved(folder))
        return ["consolidate", "checkpoints/step_000000012", target, *words]

    return make


def _text(name: str, content: str = "nonsense") -> Callable[[Path], object]:
    return lambda path: (path / name).write_text(content)


def _there(folder: Path) -> Any:
    words = consolidate()(folder)
    (folder / "out.safetensors").write_text("mine")
    return words


def _teacher(prepare: Callable[[Path], object], name: str = "teacher.safetensors") -> Callable[[Path], Any]:
    """The first stage of the smoke recipe with somebody's teacher."""

    def make(folder: Path) -> Any:
        prepare(folder / name)
        return [
            RECIPES["transfer1"],
            "--scale",
            "smoke",
            "--out",
            "out",
            "--teacher",
            name,
            "--only",
            "generate",
        ]

    return make


class _Dangerous:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def _half(path: Path) -> None:
    path.write_bytes(STUDENT.read_bytes()[: STUDENT.stat().st_size // 2])


SHARD = "network_student/shard-00001.safetensors"
INPUTS = {
    "missing": Input(lambda f: ["consolidate", "nowhere", "out.safetensors"], ("nowhere",), quick=True),
    "a file": Input(
        lambda f: ((f / "x").write_text("") and None) or ["consolidate", "x", "out.safetensors"],
        ("x",),
        quick=True,
    ),
    "folder of checkpoints": Input(
        lambda f: _saved(f) and ["consolidate", "checkpoints", "out.safetensors"],
        ("step_000000012",),
        quick=True,
    ),
    "index damaged": Input(consolidate(_text("index.json")), ("index.json",), quick=True),
    "index of a newer version": Input(
        consolidate(_text("index.json", '{"format": 99, "step": 12, "files": {}}')), ("99",), quick=True
    ),
    "index a list": Input(consolidate(_text("index.json", "[]")), ("index.json",), quick=True),
    "state damaged": Input(consolidate(_text("state.json")), ("state.json",), quick=True),
    "tensors damaged": Input(consolidate(_text(SHARD)), (SHARD,), quick=True),
    "tensors missing": Input(consolidate(lambda p: (p / SHARD).unlink()), (SHARD,), quick=True),
    "a file too many": Input(
        consolidate(lambda p: (p / SHARD).with_name("mine.safetensors").write_text("x")),
        ("mine.safetensors",),
        quick=True,
    ),
    "the whole disk": Input(
        lambda folder: ["consolidate", "/", "out.safetensors"], ("/ is no checkpoint",), quick=True
    ),
    "role unknown": Input(consolidate(lambda p: None, "--role", "tutor"), ("tutor", "student"), quick=True),
    "no average": Input(consolidate(lambda p: None, "--weights", "ema"), ("average",), quick=True),
    "target exists": Input(_there, ("out.safetensors", "--overwrite"), quick=True),
    "target is a folder": Input(
        consolidate(lambda p: p.parents[1].joinpath("out").mkdir(), target="out"), ("out",), quick=True
    ),
    "target in no folder": Input(consolidate(target="nowhere/out.safetensors"), ("nowhere",), quick=True),
    "target below a file": Input(
        consolidate(lambda p: p.parents[1].joinpath("x").write_text(""), target="x/out"),
        ("x/out",),
        quick=True,
    ),
    "target in the checkpoint": Input(
        consolidate(target=f"checkpoints/step_000000012/{SHARD}2"), ("checkpoint itself",), quick=True
    ),
    "target a dangling link": Input(
        consolidate(lambda p: p.parents[1].joinpath("out").symlink_to("gone/x"), target="out"),
        ("out",),
        quick=True,
    ),
    "teacher is text": Input(_teacher(lambda p: p.write_text("hello")), ("teacher.safetensors",)),
    "teacher is empty": Input(_teacher(Path.touch), ("teacher.safetensors",)),
    "teacher is cut off": Input(_teacher(_half), ("teacher.safetensors",)),
    "teacher is an empty folder": Input(_teacher(Path.mkdir), ("teacher.safetensors",)),
    "teacher is a folder of other things": Input(
        _teacher(lambda p: (p.mkdir(), (p / "cat.png").touch())), ("--teacher", ".safetensors"), quick=True
    ),
    "teacher is a folder of other things in the plan": Input(
        lambda f: [*_teacher(Path.mkdir)(f), "--dry-run"], ("--teacher", ".safetensors"), quick=True
    ),
    "teacher is a dangling link": Input(
        _teacher(lambda p: p.symlink_to("gone")), ("teacher.safetensors",), quick=True
    ),
    "teacher of another network": Input(
        _teacher(lambda p: p.write_bytes(STUDENT.with_name("predict2.5-smoke.safetensors").read_bytes())), ()
    ),
    "teacher asks for code": Input(
        _teacher(lambda p: p.write_bytes(pickle.dumps(_Dangerous())), "t.pt"), ("t.pt",)
    ),
    "teacher of an unknown kind": Input(
        _teacher(lambda p: p.write_text("x"), "teacher.onnx"), ("teacher.onnx",)
    ),
}

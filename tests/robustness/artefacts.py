"""What a finished run leaves in its folder, and what can become of such a file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

STAGES = ("generate", "kd", "dmd2", "evaluate", "export")
KINDS = {
    "lock": "run.lock",
    "recipe": "recipe.json",
    "report": "report.json",
    "page": "report.html",
    **{f"manifest of {name}": f"{name}/manifest.json" for name in STAGES},
    "first pairs": "generate/pairs/pairs-00000000.safetensors",
    "last pairs": "generate/pairs/pairs-00000016.safetensors",
    "log of generate": "generate/log.jsonl",
    "log of kd": "kd/log.jsonl",
    "log of dmd2": "dmd2/log.jsonl",
    "log of evaluate": "evaluate/log.jsonl",
    "events": "kd/tensorboard/events*",
    "last picture": "dmd2/grids/step_000000020.png",
    "index of a checkpoint": "kd/checkpoints/step_000000020/index.json",
    "state of a checkpoint": "kd/checkpoints/step_000000020/state.json",
    "tensors of a checkpoint": "dmd2/checkpoints/step_000000020/ema_student/shard-00001.safetensors",
    "student of kd": "kd/student.safetensors",
    "student of dmd2": "dmd2/student.safetensors",
    "drawn clips": "evaluate/samples/teacher-000000.safetensors",
    "scores": "evaluate/scores.json",
    "picture of the evaluation": "evaluate/grid.png",
    "exported student": "export/student.safetensors",
}
"""Name -> where one such file lies in the folder of a Transfer1 smoke run."""


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def _newer(path: Path) -> None:
    """As a later version would write it: another version, another key; of what is no JSON, longer."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"version": "99.0", "format": 99, "of_later": [1]}))
    else:
        path.write_bytes(path.read_bytes() + b"\n")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": _truncated,
    "flipped": _flipped,
    "text": lambda path: path.write_text("this was something else\n"),
    "newer": _newer,
}


def find(run: Path, kind: str) -> Path:
    """The file of a kind in a run folder."""
    return next(run.glob(KINDS[kind]))


def obey(said: str, run: Path) -> list[Path]:
    """Do what a refusal says: delete what it names. Returns what was deleted; its advice must be one of those
    that the program gives."""
    # A box wraps where it likes: paths are looked for without any white space.
    text = re.sub(r"[│╭╮╰╯─\s]", "", said)
    if match := re.search(r"ordelete(\S+?)toredo", text):
        named = re.split(r",|and(?=/)", match[1])
    elif match := re.search(
        r"(/\S+?)(?:waschangedafter\S+ordeletethatfile|(?:iscorrupt|cannotberead)\S*deletethisfile)", text
    ):
        named = [match[1]]
    else:
        raise AssertionError(f"no advice to follow: {said}")
    paths = [Path(name) for name in named]
    for path in paths:
        assert path.is_relative_to(run) and path.exists(), f"{path} is not there to be deleted: {said}"
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return paths

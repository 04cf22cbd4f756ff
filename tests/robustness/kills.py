"""Runs of the real command that are killed at random moments, and whether they end as if nothing had been."""

from __future__ import annotations

import hashlib
import json
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.run.commands import ENV, PREDICT25, RECIPE, losses

PROGRAM: tuple[str, ...] = ("-m", "cosmos_distill")
RECIPES = {"transfer1": RECIPE, "predict25": PREDICT25}
PER_RUN = 5
"""Kills of one run, at most."""
_SHARE = 0.6
"""Moments are drawn from this share of the time that a whole run takes: what is complete is not done again,
so that later attempts are shorter."""
_TIMED = {"latency", "step"}
"""Parts of scores.json that are measured by the clock."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    after: float
    """Seconds since the process began."""
    stage: str
    """The stage that was under way."""


@dataclass(frozen=True)
class Trial:
    """A run that was killed, and then left to end."""

    kills: list[Kill]
    status: int
    """Exit status of the last attempt, which nobody killed."""
    differs: list[str] = field(default_factory=list)
    """Files that are not those of the run that was never killed."""

    @property
    def equal(self) -> bool:
        """Whether it ended with the same bits."""
        return self.status == 0 and not self.differs


def results(out: Path) -> dict[str, str]:
    """Everything that a run computed, as file -> digest: weights, optimiser states and random states of all
    checkpoints, pairs, drawn clips, pictures, training logs and scores. Without times, which differ."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors":
            found[name] = _tensors(path)
        elif path.suffix == ".png":
            found[name] = _sha256(path.read_bytes())
        elif path.name == "scores.json":
            scores = json.loads(path.read_text())
            found[name] = _sha256(json.dumps({k: v for k, v in scores.items() if k not in _TIMED}).encode())
        elif path.name == "log.jsonl" and (path.parent / "checkpoints").is_dir():
            found[name] = _sha256(json.dumps(losses(path)).encode())
        elif path.name.startswith(".") or path.suffix == ".tmp":
            found[name] = "left behind"
    return found


def trial(
    recipe: str, out: Path, whole: dict[str, str], seconds: float, draw: random.Random, most: int
) -> Trial:
    """Kill a run of ``recipe`` up to ``most`` times, let it end, and compare it.

    Args:
        whole: results of a run that was never killed.
        seconds: which that took.
    """
    kills: list[Kill] = []
    while len(kills) < most:
        moment, begin = draw.uniform(0, _SHARE * seconds), time.monotonic()
        process = _start(recipe, out)
        try:
            process.wait(timeout=moment)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            if process.wait() != -signal.SIGKILL:  # it has ended in the meantime
                break
            kills.append(Kill(round(time.monotonic() - begin, 2), _stage(out)))
    status = _start(recipe, out).wait()
    found = results(out)
    differs = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
    return Trial(kills, status, differs)


def trials(
    recipe: str, kills: int, work: Path, whole: dict[str, str], seconds: float, seed: int, done: int = 0
) -> Iterator[Trial]:
    """Runs until ``kills`` kills were made; of a run that ended well nothing is kept.

    Args:
        done: runs of an earlier process, whose moments are not drawn again.
    """
    while kills > 0:
        out = work / f"{recipe}-{done:03d}"
        shutil.rmtree(out, ignore_errors=True)
        draw = random.Random(f"{seed} {recipe} {done}")
        one = trial(recipe, out, whole, seconds, draw, min(PER_RUN, kills))
        if one.equal:
            shutil.rmtree(out)
        kills, done = kills - len(one.kills), done + 1
        yield one


def record(recipe: str, kills: int, work: Path, path: Path, seed: int) -> dict[str, Any]:
    """Kill runs of ``recipe`` until the record at ``path`` holds ``kills`` kills; written after every run, so
    that another call goes on."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    mine = found.setdefault(
        recipe, {"seed": seed, "machine": platform.processor() or platform.machine(), "runs": []}
    )
    done = sum(len(one["kills"]) for one in mine["runs"])
    whole, seconds = uninterrupted(recipe, work)
    for one in trials(recipe, kills - done, work, whole, seconds, seed, len(mine["runs"])):
        mine["runs"].append(asdict(one) | {"equal": one.equal})
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1) + "\n")
        temporary.replace(path)
        print(
            f"{recipe}: run {len(mine['runs'])}, {len(one.kills)} kills, {'equal' if one.equal else one}",
            flush=True,
        )
    return mine


def uninterrupted(recipe: str, work: Path) -> tuple[dict[str, str], float]:
    """Results of a run that nobody kills, and the seconds that it takes; kept in ``work``."""
    out, begin = work / recipe, time.monotonic()
    kept = work / f"{recipe}.json"
    if not kept.exists():
        shutil.rmtree(out, ignore_errors=True)
        if (status := _start(recipe, out).wait()) != 0:
            raise RuntimeError(f"the uninterrupted run ended with status {status}: look into {out}")
        kept.write_text(json.dumps([results(out), time.monotonic() - begin]))
    whole, seconds = json.loads(kept.read_text())
    return whole, seconds


def table(found: dict[str, Any]) -> str:
    """The record for people, as Markdown."""
    lines = ["| recipe | runs | kills | equal | killed in |", "|---|---|---|---|---|"]
    for recipe, mine in found.items():
        runs = mine["runs"]
        kills = [kill for one in runs for kill in one["kills"]]
        equal = sum(len(one["kills"]) for one in runs if one["equal"])
        where = ", ".join(f"{stage} {n}" for stage, n in Counter(k["stage"] for k in kills).most_common())
        lines.append(f"| {recipe} | {len(runs)} | {len(kills)} | {equal} of {len(kills)} | {where} |")
    return "\n".join(lines)


def _start(recipe: str, out: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        *PROGRAM,
        str(RECIPES[recipe]),
        "--scale",
        "smoke",
        "--out",
        str(out),
    ]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=ENV, stdout=log, stderr=log)


def _stage(out: Path) -> str:
    """The stage that had begun last, or what comes before and after all of them."""
    manifests = sorted(out.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    if not manifests:
        return "start"
    try:
        complete = json.loads(manifests[-1].read_text())["outputs"] is not None
    except (OSError, ValueError, KeyError):
        complete = False
    return f"after {manifests[-1].parent.name}" if complete else manifests[-1].parent.name


def _tensors(path: Path) -> str:
    """Of names, types and values alone: what an export says of itself counts attempts and seconds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Bad inputs, each made here: it is refused by name, skipped and counted, or taken rightly.

A file of this folder holds those of one kind in :data:`INPUTS`. They run in this process, through the same
``main`` as the command.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

KINDS = (
    "recipes", "options", "folders", "environment", "students", "checkpoints",
    "videos", "images", "arrays", "clips",
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """Something that a user might give."""

    make: Callable[[Path], Any]
    """Makes it in an empty folder, which is the working directory, and returns the words that follow
    ``cosmos-distill``, or does by itself what the command would and returns None or what it said."""
    names: tuple[str, ...] = ()
    """What a refusal, or the word of what was skipped, has to name; nothing where it must be taken."""
    right: Callable[[Path], bool] | None = None
    """Whether what came out is right, where it may be taken; left out: it must be refused or skipped."""
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables to set, or to unset; where there are any, in a process of its own."""
    quick: bool = False
    """Cheap enough for every run of the tests."""


@dataclass(frozen=True)
class Verdict:
    """What became of an input."""

    outcome: str
    """refused, skipped, right; or wrong."""
    said: str


def collect(beginnings: Sequence[str] = ()) -> dict[str, Input]:
    """All inputs by ``kind/name``, or those whose names begin so."""
    found = {
        f"{kind}/{name}": one
        for kind in KINDS
        for name, one in importlib.import_module(f"{__name__}.{kind}").INPUTS.items()
    }
    return {n: one for n, one in found.items() if not beginnings or n.startswith(tuple(beginnings))}


def judge(one: Input, folder: Path) -> Verdict:
    """Give an input to the program, and look at what it does."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    status, said = _run(one, folder)
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", said).split())
    unwrapped = "".join(text.split())
    missing = [name for name in one.names if "".join(name.split()) not in unwrapped]
    if "Traceback (most recent call last)" in text or "Exception ignored" in text:
        return Verdict("wrong", f"a traceback: {text}")
    if status == 2:
        if one.right is not None and not one.names:
            return Verdict("wrong", f"refused, though nothing is wrong with it: {text}")
        if missing:
            return Verdict("wrong", f"refused without naming {missing}: {text}")
        if "goes on from what is complete" in text:
            return Verdict("wrong", f"refused, and said to go on: {text}")
        return Verdict("refused", text)
    if status:
        return Verdict("wrong", f"status {status}: {text}")
    if one.right is not None:
        return Verdict("right" if one.right(folder) else "wrong", text)
    if one.names and not missing and re.search("skip|not used", text):
        return Verdict("skipped", text)
    return Verdict("wrong", f"taken without a word: {text[-300:]}")


def _apart(words: Sequence[Any], environment: Mapping[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "cosmos_distill", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def _run(one: Input, folder: Path) -> tuple[int, str]:
    from cosmos_distill.cli import main
    from cosmos_distill.cli.ending import end

    said, before = io.StringIO(), Path.cwd()
    heard = logging.StreamHandler(said)
    logging.getLogger("cosmos_distill").addHandler(heard)
    environment = {
        k: v for k, v in (os.environ | {"COLUMNS": "200"} | one.environment).items() if v is not None
    }
    try:
        os.chdir(folder)
        if one.environment:
            return _apart(one.make(folder), environment)
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            try:
                words = one.make(folder)
                if isinstance(words, list):
                    return main([str(word) for word in words]), said.getvalue()
                print(words or "")
                return 0, said.getvalue()
            except SystemExit as error:
                return error.code if isinstance(error.code, int) else 1, said.getvalue()
            except Exception as error:
                try:
                    return end(error, traceback=False, running=False), said.getvalue()
                except Exception:
                    return 1, traceback.format_exc()
    finally:
        os.chdir(before)
        logging.getLogger("cosmos_distill").removeHandler(heard)


def main(beginnings: Sequence[str], work: Path, record: Path | None = None) -> int:
    """Judge them one by one; prints what was wrong and the counts, returns the number of wrong ones."""
    verdicts = {}
    for name, one in collect(beginnings).items():
        verdicts[name] = judge(one, work / name.replace("/", "-").replace(" ", "_"))
        shutil.rmtree(work / name.replace("/", "-").replace(" ", "_"), ignore_errors=True)
        found = verdicts[name]
        print(
            f"{found.outcome:8} {name}" + (f": {found.said[:400]}" if found.outcome == "wrong" else ""),
            flush=True,
        )
    print(table({n: v.outcome for n, v in verdicts.items()}))
    if record is not None:
        record.write_text(json.dumps({n: v.outcome for n, v in verdicts.items()}, indent=0) + "\n")
    return sum(v.outcome == "wrong" for v in verdicts.values())


def table(found: Mapping[str, str]) -> str:
    """Counts of outcomes by kind, as Markdown."""
    outcomes = ("refused", "skipped", "right", "wrong")
    lines = [f"| kind | inputs | {' | '.join(outcomes)} |", "|---|---|---|---|---|---|"]
    for kind in (*dict.fromkeys(name.partition("/")[0] for name in found), "all"):
        of = Counter(outcome for n, outcome in found.items() if kind in ("all", n.partition("/")[0]))
        lines.append(f"| {kind} | {sum(of.values())} | {' | '.join(str(of[o]) for o in outcomes)} |")
    return "\n".join(lines)

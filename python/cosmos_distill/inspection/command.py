"""The command ``cosmos-distill inspect``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

import cosmos_distill
from cosmos_distill.data import keeping
from cosmos_distill.data.index import index_of
from cosmos_distill.data.keeping import Fault
from cosmos_distill.errors import Refusal
from cosmos_distill.files import printable, regular
from cosmos_distill.inspection import looking, page
from cosmos_distill.inspection.looking import Looked
from cosmos_distill.inspection.options import InspectOptions
from cosmos_distill.inspection.pictures import Pictures
from cosmos_distill.run.folder import blocked
from cosmos_distill.run.progress import work
from cosmos_distill.storage import publish, publish_json
from cosmos_distill.train.guard import StopFlag

_SHOWN = 5
_HEAD = 4096
"""Bytes at the beginning of a file that say whether it is one of ours."""


def inspect(root: Path, options: InspectOptions, stop: StopFlag, console: Console | None = None) -> None:
    """Look at the clips of ``root`` and write the page, and the numbers where they are asked for.

    Raises:
        Refusal: there is no clip, or a file that is not ours has the name of what would be written.
        Interrupted: ``stop`` said so; what was measured is remembered.
    """
    console = console or Console()
    refuse_others(options.out)
    if options.json is not None:
        if options.json.absolute() == options.out.absolute():
            raise Refusal(f"--json {options.json} is the page's own name: choose another file")
        refuse_others(options.json)
    begin, pictures = time.monotonic(), Pictures()
    with _Bars(console, stop) as bars:
        looked = looking.look(root, pictures, bars.begin, options.cuts)
    faults = keeping.faults(options.keep, looked.known)
    index = index_of(root)
    html = page.html(
        looked,
        faults,
        options.keep,
        lambda name: pictures.of(looked.files[name], index),
        seconds=time.monotonic() - begin,
        version=cosmos_distill.__version__,
    )
    publish(options.out, html)
    if options.json is not None:
        publish_json(options.json, document(looked, faults, options), indent=1)
    _say(looked, faults, console)
    console.print(f"page: {options.out}", markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """A progress bar that begins when it is known how much there is to do."""

    def __init__(self, console: Console, stop: StopFlag) -> None:
        self._console, self._stop = console, stop
        self._open: Any = None

    def __enter__(self) -> _Bars:
        return self

    def begin(self, total: int, title: str) -> Callable[[int], None]:
        kept = "what was measured is remembered, and the same command goes on"
        self._open = work(self._console, title, total, self._stop, kept)
        advance: Callable[[int], None] = self._open.__enter__().advance
        return advance

    def __exit__(self, *error: Any) -> None:
        if self._open is not None:
            self._open.__exit__(*error)


def refuse_others(path: Path) -> None:
    """Raises Refusal when ``path`` cannot be written, or holds what this command did not write."""
    if reason := blocked(path.parent):
        raise Refusal(f"{path} cannot be written: its folder {reason}: choose another file")
    if not path.parent.is_dir():
        raise Refusal(f"{path} cannot be written: there is no folder {path.parent}: make it first")
    if not os.path.lexists(path):
        return
    try:
        regular(path)
        with path.open("rb") as file:
            ours = page.MADE_BY.encode() in file.read(_HEAD)
    except (OSError, ValueError):
        ours = False
    if not ours or path.is_symlink():
        raise Refusal(f"{path} exists and was not written by this command: choose another file")


def document(looked: Looked, faults: dict[str, Fault], options: InspectOptions) -> dict[str, Any]:
    """The numbers of every clip, as JSON."""
    clips = []
    for name, known in looked.known.items():
        info, stats, fault = known.info, known.stats, faults.get(name)
        assert info is not None and stats is not None
        clips.append(
            {
                "name": printable(name),
                "file": printable(str(looked.files[name])),
                "bytes": looked.bytes[name],
                "frames": info.frames,
                "height": info.height,
                "width": info.width,
                "fps": None if info.photo else info.rate,
                "seconds": None if info.photo else info.duration,
                **stats.plain(),
                **({} if known.cuts is None else {"cuts": [cut.frame for cut in known.cuts]}),
                "words": known.words,
                "left_out": None if fault is None else printable(fault.reason),
            }
        )
    return {
        "made_by": page.MADE_BY,
        "version": cosmos_distill.__version__,
        "data": printable(str(looked.root)),
        "keep": asdict(options.keep),
        "left_out": keeping.counted(fault.word for fault in faults.values()),
        "alike": [[printable(name) for name in group] for group in looked.alike],
        "broken": {printable(name): printable(why) for name, why in looked.broken.items()},
        "clips": clips,
    }


def _say(looked: Looked, faults: dict[str, Fault], console: Console) -> None:
    def line(text: str) -> None:
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    line(f"{len(looked.known)} clips of {looked.root}, {len(looked.broken)} files that cannot be used")
    for name, why in list(looked.broken.items())[:_SHOWN]:
        line(f"  {name}: {why}")
    if (more := len(looked.broken) - _SHOWN) > 0:
        line(f"  and {more} more")
    if said := keeping.said(keeping.counted(fault.word for fault in faults.values())):
        line(f"beyond the thresholds: {said}")

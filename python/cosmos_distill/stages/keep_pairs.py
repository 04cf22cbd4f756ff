"""Pairs of the teacher that a training stage leaves out, by how their clips look: still, saturated, alike.

Every clip is decoded once, alone, and measured like those of a folder
(:mod:`cosmos_distill.data.clip_stats`); the data-parallel ranks share the shards. The numbers are kept in the
stage's folder by their shard's checksum: an interrupted look goes on, and a stage that goes on judges by the
numbers that it began with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosmos_distill.config import Keep, Train
from cosmos_distill.data import keeping
from cosmos_distill.data.clip_stats import ClipStats, Frames
from cosmos_distill.data.frames import to_frames
from cosmos_distill.data.keeping import Fault, Known
from cosmos_distill.data.pairs import PairSource, pair_name
from cosmos_distill.errors import Refusal
from cosmos_distill.files import read_json
from cosmos_distill.launch import ranks
from cosmos_distill.launch.shared import drawn
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.run.checks import option
from cosmos_distill.run.manifest import CHECKSUM, checksum
from cosmos_distill.run.progress import work
from cosmos_distill.run.runner import Run
from cosmos_distill.storage import publish_json

FILE = "pairs.json"
_EVERY = 10.0
"""Seconds between two times that the numbers are kept."""

Numbers = dict[str, list[dict[str, Any]]]
"""Of the pairs of each shard, by its checksum: :meth:`ClipStats.plain`."""


def leave_out(name: str, stage: Train, run: Run, folder: Path, source: PairSource | None) -> None:
    """Have ``source`` leave out the pairs that are beyond ``stage.keep_pairs``. All ranks call this.

    Args:
        source: of a rank that reads, None on the others.

    Raises:
        Refusal: no pair is left.
        Interrupted: a stop was requested; whole shards are kept.
    """
    numbers = _measured(name, run, folder, source)

    def judge() -> dict[int, Fault]:
        assert source is not None
        faults = judged(stage.keep_pairs, source, numbers)
        said = keeping.said(keeping.counted(fault.word for fault in faults.values()), "pair")
        if len(faults) == source.pairs:
            raise Refusal(
                f"'{name}': none of the pairs of '{stage.pairs_from}' is left ({said}): loosen "
                f"{option(f'stages.{name}.keep_pairs')}.*"
            )
        if said:
            run.console.print(f"[bold]{name}[/]  left out: {said}")
        return faults

    faults = on_rank_zero(judge)
    if source is not None:
        source.leave_out(faults)


def judged(keep: Keep, source: PairSource, numbers: Mapping[str, list[dict[str, Any]]]) -> dict[int, Fault]:
    """Which pairs thresholds leave out, by number, and why."""
    stats = [ClipStats.of_plain(plain) for sha256, _ in source.shards() for plain in numbers[sha256]]
    named = {pair_name(pair): pair for pair in range(source.pairs)}
    clips = {name: Known(stats=stats[pair]) for name, pair in named.items()}
    return {named[name]: fault for name, fault in keeping.faults(keep, clips).items()}


def _measured(name: str, run: Run, folder: Path, source: PairSource | None) -> Numbers:
    """Numbers of all pairs, on rank 0; elsewhere those that the stage's folder holds."""
    shards = on_rank_zero(lambda: source.shards() if source is not None else [])
    numbers = on_rank_zero(lambda: _read(folder / FILE))
    numbers = {sha256: numbers[sha256] for sha256, _ in shards if sha256 in numbers}
    missing = [(shard, count) for shard, (sha256, count) in enumerate(shards) if sha256 not in numbers]
    if not missing:
        return numbers
    total = -(-sum(count for _, count in missing) // groups.data_size())
    kept = "what was measured is kept, and the same command goes on"
    with work(run.console, f"{name}: looking at pairs", total, run.stop, kept) as bar:

        def measure(shard: int, count: int) -> tuple[int, list[dict[str, Any]]]:
            found = []
            for latents in source.latents(shard).split(1) if source is not None else ():
                video = to_frames(source.decode(latents))[0] if source is not None else None
                assert video is not None
                found.append(Frames.of_video(video).stats().plain())
                bar.advance()
            return shard, found

        said = time.monotonic()
        try:
            for shard, found in drawn(missing, measure, bar.together):
                numbers[shards[shard][0]] = found
                if time.monotonic() - said > _EVERY:
                    _keep(folder, numbers)
                    said = time.monotonic()
        finally:
            if ranks.is_main():
                _keep(folder, numbers)
    return numbers


def _keep(folder: Path, numbers: Numbers) -> None:
    document = {"shards": numbers}
    publish_json(folder / FILE, {**document, CHECKSUM: checksum(document)})


def _read(path: Path) -> Numbers:
    """What :func:`_keep` wrote; nothing where that is gone or damaged, and is found out again."""
    try:
        document = read_json(path)
        said = document.pop(CHECKSUM)
        numbers: Numbers = document["shards"]
        return numbers if said == checksum(document) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}

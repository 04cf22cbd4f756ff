"""F1 over edges, against counting by hand."""

import numpy as np
import pytest
import torch

from cosmos_distill.controls.edge import canny
from cosmos_distill.eval.metrics import canny_f1
from cosmos_distill.eval.missing import NoScore


def squares(left: int) -> torch.Tensor:
    video = torch.zeros(1, 3, 2, 32, 32, dtype=torch.uint8)
    video[..., 8:20, left : left + 12] = 255
    return video


def test_counts_are_those_of_the_control_function() -> None:
    a, b = squares(8), squares(10)
    ea, eb = (canny(np.ascontiguousarray(v[0].permute(1, 2, 3, 0).numpy()))[..., 0] > 0 for v in (a, b))
    expected = [(ea & eb).sum(), (ea & ~eb).sum(), (~ea & eb).sum()]
    assert canny_f1.counts(a, b)[0].tolist() == [float(x) for x in expected]
    assert expected[0] and expected[1]


def test_same_clip_scores_one_and_a_moved_one_less() -> None:
    assert canny_f1.score(canny_f1.counts(squares(8), squares(8))) == 1.0
    assert 0 < canny_f1.score(canny_f1.counts(squares(8), squares(10))) < 0.9


def test_clips_are_pooled() -> None:
    counts = torch.tensor([[8.0, 2.0, 0.0], [0.0, 0.0, 5.0]]).double()
    assert canny_f1.score(counts) == pytest.approx(2 * 8 / (2 * 8 + 2 + 5))
    assert canny_f1.score(counts, torch.tensor([2.0, 0.0])) == pytest.approx(16 / 18)
    with pytest.raises(NoScore, match="no clip has an edge"):
        canny_f1.score(torch.zeros(1, 3).double())

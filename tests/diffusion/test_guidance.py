"""Guidance in both conventions."""

from dataclasses import replace

import pytest
import torch

from cosmos_distill.config import Guidance
from cosmos_distill.diffusion import combine

COND, UNCOND = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])


def test_the_two_conventions_by_hand():
    torch.testing.assert_close(combine(COND, UNCOND, Guidance(5, "added")), torch.tensor([7.0, -21.0]))
    torch.testing.assert_close(combine(COND, UNCOND, Guidance(5, "standard")), torch.tensor([6.0, -17.0]))


@pytest.mark.parametrize("guidance", [Guidance(5, "added"), Guidance(7.5, "standard")])
def test_conversion_keeps_the_prediction(guidance):
    expected = combine(COND, UNCOND, guidance)
    torch.testing.assert_close(combine(COND, UNCOND, guidance.as_added()), expected)
    torch.testing.assert_close(combine(COND, UNCOND, guidance.as_standard()), expected)
    assert guidance.as_added().scale == guidance.as_standard().scale - 1
    zeroed = replace(guidance, unconditional_frames="zeroed")
    assert {g.unconditional_frames for g in (zeroed.as_added(), zeroed.as_standard())} == {"zeroed"}


def test_off_is_the_conditional_prediction():
    for off in (Guidance(0, "added"), Guidance(1, "standard")):
        torch.testing.assert_close(combine(COND, UNCOND, off), COND)

"""What an operator computes is up to its tensors, not to torch's default dtype or device."""

from __future__ import annotations

import pytest
import torch

from cosmos_distill import ops
from tests.ops.calls import assert_whatever_the_default, bit_equal, defaults, draw, public

SETTINGS = [torch.float64, torch.bfloat16, "meta"]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name", public())
def test_every_differentiable_operator(name: str, backend: str | None, setting: torch.dtype | str):
    assert_whatever_the_default(setting, name, backend)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_the_optimiser(backend: str | None, setting: torch.dtype | str):
    results = []
    for within in (torch.float32, setting):
        groups = [[draw(5, 7).abs()] for _ in range(5)]
        with defaults(within):
            step = ops.AdamWStep(step=3, lr=0.1, ema_rate=0.2)
            ops.adamw_ema(*groups, step, backend=backend)
        results.append([tensor for group in groups for tensor in group])
    assert bit_equal(*results)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_plain_torch(setting: torch.dtype | str):
    logits, parts = (draw(2, 3), draw(3, 2).t()), ([draw(1, 2, 2, 4)] * 2, [draw(1, 2, 2)] * 2)

    def results() -> list[torch.Tensor]:
        losses = ops.generator_loss(logits[0]), ops.discriminator_loss(*logits)
        return [*losses, ops.combine_guidance(*logits, 3.0), *ops.merge_attention(*parts)]

    want = results()
    with defaults(setting):
        assert bit_equal(results(), want)

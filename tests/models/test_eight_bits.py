"""Weights in eight bits: what is stored so, how far it is off, and that it is read as it was written."""

from __future__ import annotations

from pathlib import Path

import torch

from cosmos_distill.families import preset
from cosmos_distill.models import build
from cosmos_distill.models.common import eight_bits, weights
from cosmos_distill.storage import publish_tensors
from tests.real_formats.networks import randomize


def network(name: str = "transfer1-smoke", seed: int = 1) -> torch.nn.Module:
    found = build(preset(name), dtype=torch.float32, seed=None)
    randomize(found, seed)
    return found


def test_matrices_of_blocks_have_eight_bits_and_a_scale_for_every_row() -> None:
    for name in ("transfer1-smoke", "predict2.5-smoke", "transfer2.5-smoke"):
        state = network(name).state_dict()
        state["base.blocks.0.mlp.up.weight"][3] = 0  # a row of nothing
        state["base.blocks.0.mlp.up.weight"][4] *= 1000
        stored = eight_bits.stored(state)
        small = [key for key, value in stored.items() if value.dtype == torch.float8_e4m3fn]
        each = 4 + 4 + 2  # of two attentions and an MLP
        blocks = {key.rsplit(".", 3)[0] for key in small}
        assert len(small) == each * len(blocks) and any(b.startswith("base.") for b in blocks)
        rest = {k: v for k, v in stored.items() if k not in small and not k.endswith(eight_bits.SCALE)}
        assert {value.dtype for value in rest.values()} == {torch.bfloat16}
        for key in small:
            scale = stored[key + eight_bits.SCALE]
            assert scale.shape == state[key].shape[:1] and scale.dtype == torch.float32
            back = stored[key].float() * scale[:, None]
            # Three bits behind the point; what is small against its row is of the smallest step.
            bound = torch.maximum(state[key].abs() / 16, scale[:, None] * 2**-9)
            assert (back - state[key]).abs().le(bound * 1.001).all()


def test_a_file_is_read_as_the_network_that_was_scored(tmp_path: Path) -> None:
    one, two = network(), network(seed=2)
    path = publish_tensors(eight_bits.stored(one.state_dict()), tmp_path / "student.safetensors", {})
    weights.load_into(two, path)
    eight_bits.round_weights(one)
    found = two.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in one.state_dict().items())
    large = sum(2 * p.numel() for p in one.parameters())
    matrices = sum(p.numel() for name, p in one.named_parameters() if eight_bits.is_stored_so(name, p))
    assert path.stat().st_size < large - 0.85 * matrices + 30_000  # and the header

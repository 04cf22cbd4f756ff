"""Transfer1 with several control branches over one base, as its published networks are put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cosmos_distill.families import preset
from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.common.branches import Branches
from cosmos_distill.models.transfer1.network import Transfer1
from tests.models.conftest import TINY
from tests.real_formats import networks

TWO = replace(TINY, branches=2)


def other(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    g = torch.Generator().manual_seed(11)
    return torch.randn(inputs["hint"].shape, generator=g, dtype=torch.float64)


def alone(network: Transfer1, branch: int) -> Transfer1:
    """The network of one branch by itself."""
    found = build(TINY, dtype=torch.float64, seed=None)
    own = f"control.branches.{branch}."
    state = {
        name.replace(own, "control."): value
        for name, value in network.state_dict().items()
        if name.startswith(("base.", own))
    }
    found.load_state_dict(state)
    assert isinstance(found, Transfer1)
    return found


def test_residuals_are_added_with_their_weights(make_network, make_inputs) -> None:
    network, inputs = make_network(torch.float64, config=TWO), make_inputs(2, torch.float64)
    hints = inputs["hint"], other(inputs)
    shown = inputs | {"hint": torch.cat(hints, dim=1)}
    for branch, weight in ((0, 1.0), (0, 0.3), (1, 0.7)):
        share = [0.0, 0.0]
        share[branch] = weight
        one = alone(network, branch)(**inputs | {"hint": hints[branch]}, control_weight=weight)
        torch.testing.assert_close(network(**shown, control_weight=torch.tensor(share)), one)
    # Both: what the first blocks of the base are given is the sum of what each branch makes.
    found: list[list[torch.Tensor]] = []
    kept = [b.register_forward_hook(lambda m, a, out: found.append(out)) for b in network.control.branches]
    both = network(**shown, control_weight=torch.tensor([0.4, 0.6]))
    for hook in kept:
        hook.remove()
    single = alone(network, 0)
    single.control.register_forward_hook(lambda m, a, out: [x + y for x, y in zip(*found, strict=True)])
    torch.testing.assert_close(single(**inputs), both)
    assert not torch.allclose(both, network(**shown, control_weight=torch.tensor([0.6, 0.4])))
    by_clip = torch.tensor([[0.4, 0.6], [1.0, 0.0]])
    each = [network(**shown, control_weight=row)[n] for n, row in enumerate(by_clip)]
    torch.testing.assert_close(network(**shown, control_weight=by_clip), torch.stack(each))
    b, _, t, h, w = inputs["x"].shape
    maps = by_clip[..., None, None, None].expand(b, 2, t, h // 2, w // 2)
    torch.testing.assert_close(network(**shown, control_weight=maps), torch.stack(each))
    with pytest.raises(ValueError, match="the network takes 2 controls of up to 128 each"):
        network(**inputs | {"hint": shown["hint"][:, :5]})


def test_untrained_branches_change_nothing_and_are_recomputed_alike(make_inputs, make_network) -> None:
    inputs = make_inputs(1, torch.float64)
    shown = inputs | {"hint": torch.cat([inputs["hint"], other(inputs)[:1]], dim=1)}
    network = build(TWO, dtype=torch.float64, seed=3)
    without = network(**{name: value for name, value in inputs.items() if name != "hint"})
    assert torch.equal(network(**shown), without)
    grads = []
    for how in ("none", "full"):
        network = make_network(torch.float64, config=TWO)
        assert isinstance(network.control, Branches)
        network.activation_checkpointing = how
        network(**shown).square().sum().backward()
        grads.append({name: p.grad for name, p in network.named_parameters()})
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    assert all(grad is not None and grad.any() for grad in grads[0].values())


def test_published_networks_of_one_control_each_are_one_network(tmp_path: Path) -> None:
    networks.transfer1(tmp_path)
    second = networks.official(networks.TRANSFER1, seed=3)
    control = {name: value for name, value in second.items() if not name.startswith("base_model.")}
    networks.saved(tmp_path / "vis_control.pt", control)
    files = [tmp_path / f"{name}.pt" for name in ("base_model", "edge_control", "vis_control")]
    network = build(replace(preset(networks.TRANSFER1), branches=2), dtype=torch.bfloat16, seed=None)
    weights.load_into(network, tuple(files))
    state = network.state_dict()
    for branch, file in enumerate(files[1:]):
        pair = build(preset(networks.TRANSFER1), dtype=torch.bfloat16, seed=None)
        weights.load_into(pair, (files[0], file))
        for name, value in pair.state_dict().items():
            assert torch.equal(value, state[name.replace("control.", f"control.branches.{branch}.")]), name
    weights.load_into(network, (files[1], files[2], files[0]))  # the base may come last
    assert torch.equal(
        network.state_dict()["control.branches.0.positions.t"], state["control.branches.0.positions.t"]
    )
    with pytest.raises(ValueError, match="does not fit this network"):
        weights.load_into(network, (files[0], files[1]))
    with pytest.raises(ValueError, match="have one control, and this network several"):
        weights.to_official(state, network.family)
    weights.save(network, tmp_path / "own.safetensors")
    again = build(replace(preset(networks.TRANSFER1), branches=2), dtype=torch.bfloat16, seed=None)
    weights.load_into(again, tmp_path / "own.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


def test_branches_need_blocks() -> None:
    with pytest.raises(ValueError, match="2 branches need control_blocks"):
        replace(TWO, control_blocks=0)
    assert (TWO.controls, TINY.controls, replace(TINY, control_blocks=0).controls) == (2, 1, 0)

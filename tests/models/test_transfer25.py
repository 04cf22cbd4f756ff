"""Transfer2.5: sizes, control blocks against diffusers' ControlNet, several controls with weights, names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cosmos_distill.families import read
from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.common.branches import Branches
from cosmos_distill.models.transfer25.config import PRESETS, Transfer25Config
from cosmos_distill.models.transfer25.names import Transfer25Names
from cosmos_distill.models.transfer25.several import balanced, combine
from tests.models.transfer25 import SEVERAL, TINY, made, with_hint


@pytest.fixture
def inputs(predict_inputs):
    """Of a forward pass in fp64, with a control."""
    return with_hint(predict_inputs(2, torch.float64))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_of_the_published_network() -> None:
    network = build(PRESETS["transfer2.5-2b"], device="meta", dtype=torch.bfloat16, seed=None)
    d, rank, text, patch = 2048, 256, 1024, 4
    attention = 4 * d * d + 2 * 128 + 2 * d * d + 2 * text * d + 2 * 128
    block = attention + 8 * d * d + 3 * (d * rank + rank * 3 * d)
    branch = 130 * patch * d + (d * d + d) + 4 * (block + d * d + d)
    base = build(read("predict2.5-2b"), device="meta", seed=None).base  # type: ignore[arg-type]
    assert count(network.base) == count(base) == 2_059_174_912
    assert isinstance(network.control, Branches) and count(network.control) == branch == 298_872_832
    several = build(PRESETS["transfer2.5-2b-multi"], device="meta", seed=None)
    assert count(several) == count(base) + 4 * branch
    assert [int(i) for i in network.control.branches[0].blocks] == [0, 1, 2, 3]  # of blocks 0, 7, 14, 21


def test_an_untrained_branch_changes_nothing(inputs) -> None:
    network = build(TINY, dtype=torch.float64, seed=3)
    hint = inputs.pop("hint")
    assert torch.equal(network(**inputs), network(**inputs, hint=hint))
    zero = {n for n, p in network.control.named_parameters() if not p.any() and "modulations" not in n}  # type: ignore[union-attr]
    assert zero == {n for n, _ in network.control.named_parameters() if ".before." in n or ".after." in n}  # type: ignore[union-attr]


def test_features_are_taken_before_their_block_is_steered(inputs) -> None:
    network = made()
    steered = network(**inputs, features=range(5))[1]
    plain = network(**{k: v for k, v in inputs.items() if k != "hint"}, features=range(5))[1]
    assert torch.equal(steered[0], plain[0])
    assert not torch.allclose(steered[1], plain[1])
    output, found = network(**inputs, features=(1,), features_only=True)
    assert output is None and torch.equal(found[1], steered[1])


def test_weights_of_a_control(inputs) -> None:
    network = made()
    one, half, none = (network(**inputs, control_weight=w) for w in (1.0, 0.5, 0.0))
    hint = inputs["hint"]
    without = network(**{k: v for k, v in inputs.items() if k != "hint"})
    torch.testing.assert_close(none, without)
    assert not torch.allclose(half, one) and not torch.allclose(half, none)
    b, _, t, h, w = hint.shape
    maps = torch.full((b, t, h // 2, w // 2), 0.5, dtype=hint.dtype)
    torch.testing.assert_close(network(**inputs, control_weight=maps), half)
    torch.testing.assert_close(network(**inputs, control_weight=torch.tensor([0.5])), half)
    with pytest.raises(ValueError, match="for 2 controls, and the network has 1"):
        network(**inputs, control_weight=torch.ones(2))


def test_several_controls_are_added_with_their_weights_and_a_missing_one_is_not_there(inputs) -> None:
    network = made(SEVERAL)
    g = torch.Generator().manual_seed(5)
    hints = torch.randn((2, 48, *inputs["x"].shape[2:]), generator=g, dtype=torch.float64)
    shown = inputs | {"hint": hints}
    both = network(**shown, control_weight=torch.tensor([0.7, 0.0, 0.4]))
    missing = hints.clone()
    missing[:, 16:32] = 0  # no second control
    found = network(**inputs | {"hint": missing}, control_weight=torch.tensor([0.7, 9.0, 0.4]))
    torch.testing.assert_close(found, both)
    assert not torch.allclose(network(**shown, control_weight=torch.tensor([0.7, 0.1, 0.4])), both)
    per_clip = torch.tensor([[0.7, 0.0, 0.4], [0.7, 0.0, 0.4]], dtype=torch.float64)
    maps = per_clip[..., None, None, None].expand(-1, -1, 3, 3, 4)
    torch.testing.assert_close(network(**shown, control_weight=maps), both)
    by_clip = torch.tensor([[0.7, 0.0, 0.4], [0.1, 0.9, 0.0]], dtype=torch.float64)
    each = [network(**shown, control_weight=weights)[n] for n, weights in enumerate(by_clip)]
    torch.testing.assert_close(network(**shown, control_weight=by_clip), torch.stack(each))
    # One branch alone is the network of that control.
    alone = made()
    state = network.state_dict()
    names = {n: n.replace("branches.0", "branches.2") for n in alone.state_dict()}
    alone.load_state_dict({n: state[theirs] for n, theirs in names.items()})
    last = network(**shown, control_weight=torch.tensor([0.0, 0.0, 0.6]))
    torch.testing.assert_close(alone(**inputs | {"hint": hints[:, 32:]}, control_weight=0.6), last)
    with pytest.raises(ValueError, match="3 controls of up to 20 each"):
        network(**inputs | {"hint": hints[:, :32]})


@pytest.mark.parametrize("what", ["full", "selective"])
def test_recomputed_blocks_have_the_same_gradients(inputs, what) -> None:
    grads = []
    for how in ("none", what):
        network = made(dtype=torch.float64)
        network.activation_checkpointing = how
        assert network.activation_checkpointing == how
        network(**inputs).square().sum().backward()
        grads.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])  # type: ignore[arg-type]
    assert all(g is not None and g.any() for g in grads[0].values())


PUBLISHED = {
    "base.blocks.4.self_attn.q.weight": "net.blocks.4.self_attn.q_proj.weight",
    "base.text_projection.proj.bias": "net.crossattn_proj.0.bias",
    "control.branches.0.hint_embed.proj.weight": "net.control_embedder.proj.1.weight",
    "control.branches.0.before.bias": "net.control_blocks.0.before_proj.bias",
    "control.branches.0.after.2.weight": "net.control_blocks.2.after_proj.weight",
    "control.branches.0.blocks.1.cross_attn.k_norm": "net.control_blocks.1.cross_attn.k_norm.weight",
    "control.branches.0.blocks.1.mlp.up.weight": "net.control_blocks.1.mlp.layer1.weight",
    "control.branches.0.blocks.2.modulations.1.linear_2.weight":
        "net.control_blocks.2.adaln_modulation_cross_attn.2.weight",
}  # fmt: skip
NUMBERED = {
    "control.branches.2.hint_embed.proj.weight": "net.control_embedder.2.proj.1.weight",
    "control.branches.1.before.weight": "net.control_blocks_1.0.before_proj.weight",
    "control.branches.2.blocks.1.mlp.down.weight": "net.control_blocks_2.1.mlp.layer2.weight",
}


def test_official_names() -> None:
    ours = made().state_dict()
    found = Transfer25Names().to_official(ours)
    assert PUBLISHED.items() <= found.items() and len(set(found.values())) == len(ours)
    several = Transfer25Names().to_official(made(SEVERAL).state_dict())
    assert NUMBERED.items() <= several.items() and len(set(several.values())) == len(several)
    with pytest.raises(ValueError, match=r"no official name.*Transfer2\.5"):
        Transfer25Names().to_official(["control.branches.0.zero"])


@pytest.mark.parametrize("config", [TINY, SEVERAL], ids=["one control", "three controls"])
@pytest.mark.parametrize("prefix", ["net.", "net_ema.", ""])
def test_official_round_trip(config: Transfer25Config, prefix: str, tmp_path: Path) -> None:
    network = made(config, torch.float32)
    state = weights.to_official(network.state_dict(), network.family)
    carried = {"net.pos_embedder.seq": torch.arange(8.0), "net.accum_iteration": torch.tensor(3.0)}
    torch.save({prefix + n.removeprefix("net."): v for n, v in (state | carried).items()}, tmp_path / "in.pt")
    again = build(config, seed=None)
    assert weights.load_into(again, tmp_path / "in.pt").keys() == carried.keys()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    weights.save_official(again, tmp_path / "out.safetensors", carried)
    assert weights.load(tmp_path / "out.safetensors")[0].keys() == network.state_dict().keys()


def test_files_of_other_networks_are_told_apart(tmp_path: Path) -> None:
    network = made(dtype=torch.float32)
    official = weights.to_official(network.state_dict(), network.family)
    save_file({n: v for n, v in official.items() if "control" not in n}, tmp_path / "base.safetensors")
    with pytest.raises(ValueError, match="missing: control"):
        weights.load_into(build(TINY, seed=None), tmp_path / "base.safetensors")
    save_file(official | {"net.blocks.0.surprise": torch.ones(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"unexpected: net\.blocks\.0\.surprise"):
        weights.load(tmp_path / "more.safetensors")


def test_networks_of_one_control_become_one_of_several(inputs) -> None:
    networks = [made(seed=seed) for seed in (1, 2, 3)]
    for other in networks[1:]:
        other.base.load_state_dict(networks[0].base.state_dict())
    together = build(SEVERAL, dtype=torch.float64, seed=None)
    together.load_state_dict(combine([network.state_dict() for network in networks]))
    hint = inputs.pop("hint")
    shown = {"hint": torch.cat([hint] * 3, dim=1), "control_weight": torch.tensor([0.0, 0.8, 0.0])}
    torch.testing.assert_close(
        together(**inputs, **shown), networks[1](**inputs, hint=hint, control_weight=0.8)
    )
    with pytest.raises(ValueError, match=r"network 1 has another base than network 0 \(base\."):
        combine([made(seed=1).state_dict(), made(seed=2).state_dict()])
    with pytest.raises(ValueError, match="network 0 has not one control branch"):
        combine([together.state_dict()])


def test_weights_that_add_up_to_more_than_one_are_divided_by_their_sum() -> None:
    assert balanced(torch.tensor([0.5, 0.25])).tolist() == [0.5, 0.25]
    assert balanced(torch.tensor([1.0, 2.0, 1.0])).tolist() == [0.25, 0.5, 0.25]
    maps = torch.stack([torch.ones(1, 2, 2), torch.tensor([[[0.0, 1.0], [3.0, 0.0]]])])[None]
    assert balanced(maps)[0, :, 0].tolist() == [[[1.0, 0.5], [0.25, 1.0]], [[0.0, 0.5], [0.75, 0.0]]]

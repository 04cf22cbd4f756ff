"""Behaviour of the whole network: sizes, control branch, features, batches, checkpointing, errors."""

import dataclasses
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from cosmos_distill import ops
from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.common.position import rotary_tables
from cosmos_distill.models.transfer1.config import PRESETS, Transfer1Config


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_parameters_of_the_7b():
    network = build(PRESETS["transfer1-7b"], device="meta", dtype=torch.bfloat16, seed=None)
    d, rank, text = 4096, 256, 1024
    adaln = d * rank + rank * 3 * d
    block = (4 * d * d + 256) + (2 * d * d + 2 * text * d + 256) + 8 * d * d + 3 * adaln
    trunk = 72 * d + d * d + d * 3 * d + d + (128 + 120 + 120) * d
    final = d * rank + rank * 2 * d + d * 64
    hint_sizes = (d, 16, 16, 32, 32, 96, 96, 256, d)
    hint = 129 * 4 * d + sum(a * b + b for a, b in itertools.pairwise(hint_sizes))
    assert count(network.base) == 28 * block + trunk + final == 7_236_208_640
    assert count(network.control) == 3 * block + trunk + hint + 3 * (d * d + d) == 890_089_248
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in network.parameters())


def plain_control(w, config, x, c_noise, text, hint, condition, padding, fps):
    """The control branch in plain torch, from the official tensor names: one residual per block."""
    b, _, t, h, wd = x.shape
    d, heads = config.width, config.heads
    tokens = t * h // 2 * wd // 2

    def patches(v):  # features (channel, row, column), channel slowest
        v = v.unfold(3, 2, 2).unfold(4, 2, 2)  # B C T h w 2 2
        return v.permute(0, 2, 3, 4, 1, 5, 6).reshape(b, tokens, -1)

    def rms(v, weight):
        return v / (v.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    pad = padding[:, :, None].expand(b, 1, t, h, wd)
    hint = torch.cat([hint, torch.zeros(b, config.hint_channels - hint.shape[1], t, h, wd, dtype=x.dtype)], 1)
    guide = patches(torch.cat([hint, pad], 1)) @ w["x_embedder2.proj.1.weight"].T
    layers = len(config.hint_widths) + 1
    for i in range(layers):
        guide = guide @ w[f"input_hint_block.{2 * i}.weight"].T + w[f"input_hint_block.{2 * i}.bias"]
        guide = guide * torch.sigmoid(guide) if i < layers - 1 else guide

    v = patches(torch.cat([x, condition, pad], 1)) @ w["x_embedder.proj.1.weight"].T
    frequency = torch.tensor([10000 ** (-i / (d // 2)) for i in range(d // 2)], dtype=x.dtype)
    angle = c_noise[:, None] * config.timestep_scale * frequency
    sinusoid = torch.cat([angle.cos(), angle.sin()], 1)
    lora = F.silu(sinusoid @ w["t_embedder.1.linear_1.weight"].T) @ w["t_embedder.1.linear_2.weight"].T
    e = F.silu(rms(sinusoid, w["affline_norm.weight"]))

    position = [(i, j, k) for i in range(t) for j in range(h // 2) for k in range(wd // 2)]
    pos = torch.stack([
        w["extra_pos_embedder.pos_emb_t"][i] + w["extra_pos_embedder.pos_emb_h"][j]
        + w["extra_pos_embedder.pos_emb_w"][k] for i, j, k in position
    ])  # fmt: skip
    pos = pos / (pos.norm(dim=-1, keepdim=True) / math.sqrt(d) + 1e-6)
    side = config.head_dim // 6 * 2
    dims = (config.head_dim - 2 * side, side, side)
    ratios = (config.control_rope_ratio_t, 1.0, 1.0)
    turn = torch.zeros(b, tokens, config.head_dim // 2, dtype=x.dtype)
    for s in range(b):
        for n, axes in enumerate(position):
            scaled = (axes[0] * 24 / float(fps[s]), *axes[1:])
            turn[s, n] = torch.tensor([
                p * (10000 * r ** (dim / (dim - 2))) ** (-2 * i / dim)
                for p, dim, r in zip(scaled, dims, ratios, strict=True) for i in range(dim // 2)
            ])  # fmt: skip
    turn = torch.polar(torch.ones_like(turn), turn)[:, :, None]

    def rotate(q):  # pairs (i, i + half) as complex numbers
        a, c = q.chunk(2, -1)
        z = torch.complex(a, c) * turn
        return torch.cat([z.real, z.imag], -1)

    def attention(name, query, context, rotary):
        q, k, u = ((s @ w[f"{name}to_{n}.0.weight"].T).reshape(b, -1, heads, config.head_dim)
                   for n, s in (("q", query), ("k", context), ("v", context)))  # fmt: skip
        q, k = rms(q, w[f"{name}to_q.1.weight"]), rms(k, w[f"{name}to_k.1.weight"])
        if rotary:
            q, k = rotate(q), rotate(k)
        score = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(config.head_dim)
        out = torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), u).reshape(b, -1, d)
        return out @ w[f"{name}to_out.0.weight"].T

    residuals = []
    for i in range(config.control_blocks):
        v = v + pos
        for s in range(3):
            p = f"blocks.block{i}.blocks.{s}."
            m = e @ w[p + "adaLN_modulation.1.weight"].T @ w[p + "adaLN_modulation.2.weight"].T + lora
            shift, scale, gate = (y[:, None] for y in m.chunk(3, -1))
            y = (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
            y = y * (1 + scale) + shift
            if s < 2:
                y = attention(f"{p}block.attn.", y, text if s else y, rotary=s == 0)
            else:
                y = F.gelu(y @ w[p + "block.layer1.weight"].T) @ w[p + "block.layer2.weight"].T
            v = v + gate * y
        if i == 0:
            v = v + guide
        residuals.append(v @ w[f"zero_blocks.block{i}.weight"].T + w[f"zero_blocks.block{i}.bias"])
    return residuals


@pytest.fixture
def small_heads(make_network):
    """A network with heads of the given width."""
    config = make_network().config

    def make(dtype, head_dim):
        return make_network(dtype, config=dataclasses.replace(config, head_dim=head_dim, width=2 * head_dim))

    return make


HEAD_DIMS = [12, 14, 16, 18, 20, 22, 26]
"""Of the rotary split's t, h, w: 4 4 4, 6 4 4, 8 4 4, 6 6 6, 8 6 6, 10 6 6, 10 8 8."""


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_control_branch_equals_a_plain_reference(small_heads, make_inputs, head_dim):
    network, i = small_heads(torch.float64, head_dim), make_inputs(2, torch.float64)
    official = weights.to_official(
        {k: v for k, v in network.state_dict().items() if k.startswith("control.")}, network.family
    )
    w = {k.removeprefix("net."): v for k, v in official.items()}
    expected = plain_control(w, network.config, *(i[k] for k in (
        "x", "c_noise", "text", "hint", "condition_mask", "padding_mask", "fps")))  # fmt: skip
    pad = i["padding_mask"][:, :, None].expand(2, 1, *i["x"].shape[2:])
    found = network.control(
        torch.cat([i["x"], i["condition_mask"], pad], 1),
        i["c_noise"], i["text"], i["hint"], pad, fps=i["fps"],
    )  # fmt: skip
    assert len(found) == len(expected) == network.config.control_blocks
    for a, b in zip(found, expected, strict=True):
        error = float(((a - b).abs().max() / b.abs().max()).detach())
        print(f"control residual: {error:.2e}")
        assert error < 2e-6  # the rotary tables are fp32 on purpose


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_small_heads_are_computed_by_the_kernels_as_in_fp64(small_heads, make_inputs, head_dim):
    out = [small_heads(dtype, head_dim)(**make_inputs(2, dtype)) for dtype in (torch.float64, torch.float32)]
    torch.testing.assert_close(out[1].double(), out[0], rtol=0, atol=1e-4)


def test_a_rank_with_all_tokens_holds_no_rotary_table_of_theirs(make_network, make_inputs):
    network, x = make_network(), make_inputs()["x"]
    places = network.base.places(x, torch.tensor([12.0, 24.0]))
    tokens = math.prod(places.grid)
    (angles,) = places.rotary.values()
    assert [a.shape[-2] for a in angles] == list(places.grid) and tokens not in places.grid
    q = torch.randn(2, tokens, 2, 20)
    weight = torch.ones(20)
    found = ops.qk_norm_rope(q, q, weight, weight, **places.rotary, backend="reference")
    want = ops.qk_norm_rope(q, q, weight, weight, *rotary_tables(angles), backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_an_untrained_control_branch_changes_nothing(make_inputs, make_network):
    network, inputs = build(make_network().config, seed=3), make_inputs()
    assert torch.equal(network(**inputs), network(**inputs | {"hint": None}))
    trained = make_network()
    assert not torch.equal(trained(**inputs), trained(**inputs | {"hint": None}))


def test_control_weight_scales_the_residuals(make_network, make_inputs):
    network, inputs = make_network(torch.float64), make_inputs(2, torch.float64)
    off = network(**inputs | {"hint": None})
    assert torch.allclose(network(**inputs, control_weight=0.0), off, atol=1e-12)
    weights_map = torch.full((2, 3, 3, 4), 0.3, dtype=torch.float64)
    half = network(**inputs, control_weight=0.3)
    assert torch.allclose(network(**inputs, control_weight=weights_map), half, atol=1e-12)
    weights_map[1] = 0
    by_clip = torch.tensor([[0.3], [1.0]]).to(weights_map)
    each = [network(**inputs, control_weight=float(w))[n] for n, w in enumerate(by_clip)]
    assert torch.allclose(network(**inputs, control_weight=by_clip), torch.stack(each), atol=1e-12)
    mixed = network(**inputs, control_weight=weights_map)
    assert torch.allclose(mixed[0], half[0], atol=1e-12)
    assert torch.allclose(mixed[1], off[1], atol=1e-12)


def test_control_weight_may_be_wider_than_the_network(make_network, make_inputs):
    network, inputs = make_network(torch.bfloat16), make_inputs(2, torch.bfloat16)
    out = network(**inputs, control_weight=torch.full((2, 3, 3, 4), 0.5))
    assert torch.equal(out, network(**inputs, control_weight=0.5))


def test_features_are_taken_before_the_residual(make_network, make_inputs):
    network, inputs = make_network(), make_inputs()
    out, with_hint = network(**inputs, features=(0, 2))
    _, without = network(**inputs | {"hint": None}, features=(0, 2))
    assert with_hint.keys() == {0, 2}
    assert with_hint[0].shape == (2, 3, 3, 4, network.config.width)
    assert torch.equal(with_hint[0], without[0])
    assert not torch.allclose(with_hint[2], without[2])
    assert torch.equal(out, network(**inputs))


def test_features_only_stops_after_the_last_feature(make_network, make_inputs):
    network, inputs = make_network(), make_inputs()
    _, expected = network(**inputs, features=(1,))
    network.base.blocks[2].forward = None  # calling it would fail
    network.base.final_layer.forward = None
    out, found = network(**inputs, features=(1,), features_only=True)
    assert out is None
    assert torch.equal(found[1], expected[1])


def test_samples_of_a_batch_are_independent(make_network, make_inputs):
    """Different fps, masks, noise levels and texts in one batch; each sample as if it were alone."""
    network, inputs = make_network(torch.float64), make_inputs(3, torch.float64)
    together, features = network(**inputs, features=(1,))
    for i in range(3):
        alone, feature = network(**{k: v[i : i + 1] for k, v in inputs.items()}, features=(1,))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-11)
        torch.testing.assert_close(features[1][i : i + 1], feature[1], rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["condition_mask", "padding_mask", "fps", "text", "c_noise", "hint"])
def test_every_input_matters(make_network, make_inputs, name):
    network, inputs = make_network(), make_inputs()
    other = inputs[name] * 0.5 if name == "fps" else 1 - inputs[name]
    assert not torch.allclose(network(**inputs), network(**inputs | {name: other}), atol=1e-4)


def test_defaults_of_optional_inputs(make_network, make_inputs):
    network, inputs = make_network(), make_inputs()
    short = {k: inputs[k] for k in ("x", "c_noise", "text", "hint")}
    neutral = {
        "condition_mask": torch.zeros_like(inputs["condition_mask"]),
        "padding_mask": torch.zeros_like(inputs["padding_mask"]),
        "fps": torch.full((2,), 24.0),
    }
    torch.testing.assert_close(network(**short), network(**short, **neutral), rtol=0, atol=1e-6)


@pytest.mark.parametrize("what", ["full", "selective"])
def test_activation_checkpointing_gives_equal_gradients(what, make_network, make_inputs):
    inputs, grads = make_inputs(), []
    for recompute in ("none", what):
        network = make_network()
        network.activation_checkpointing = recompute
        calls = []
        network.base.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        network(**inputs).square().mean().backward()
        assert len(calls) == 1 + (recompute != "none")  # run again in the backward pass
        grads.append({k: p.grad for k, p in network.named_parameters()})
    assert all(g is not None for g in grads[0].values())
    assert all(torch.equal(grads[0][k], grads[1][k]) for k in grads[0])


def test_initial_weights_are_keyed_by_seed(make_network):
    config = make_network().config
    first, again, other = (build(config, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["base.patch_embed.proj.weight"], other["base.patch_embed.proj.weight"])
    assert not torch.equal(first["base.positions.h"], first["control.positions.h"])
    zero = {k for k, v in first.items() if not v.any()}
    assert zero == {
        k for k in first
        if (".blocks." in k and k.endswith("linear_2.weight")) or ".zero_blocks." in k
        or k.endswith(".bias") or k == "control.hint_encoder.6.weight"
    }  # fmt: skip


def test_errors_say_what_is_wrong(make_network, make_inputs):
    network, inputs = make_network(), make_inputs()

    def forward(**changes):
        return network(**{k: v for k, v in {**inputs, **changes}.items() if v is not None})

    bare = {"hint": None, "condition_mask": None, "padding_mask": None}
    with pytest.raises(ValueError, match=r"x must be \[B, 16"):
        forward(x=torch.zeros(2, 17, 3, 6, 8))
    with pytest.raises(ValueError, match="7 x 8 is not a multiple of the patch size 2"):
        forward(x=torch.zeros(2, 16, 3, 7, 8), **bare)
    with pytest.raises(ValueError, match=r"3 x 14 x 8 exceeds .* 4 x 12 x 16"):
        forward(x=torch.zeros(2, 16, 3, 14, 8), **bare)
    with pytest.raises(ValueError, match="5 x 6 x 8 exceeds"):
        forward(x=torch.zeros(2, 16, 5, 6, 8), **bare)
    with pytest.raises(ValueError, match="hint has 129 channels, the network takes 128"):
        forward(hint=torch.zeros(2, 129, 3, 6, 8))
    with pytest.raises(ValueError, match=r"numbered 0\.\.2"):
        forward(features=(3,))
    with pytest.raises(ValueError, match="features_only needs"):
        forward(features_only=True)


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="is not width"):
        Transfer1Config(width=48, blocks=1, control_blocks=1, heads=2, head_dim=20)
    with pytest.raises(ValueError, match=r"control_blocks 2 must lie in 0\.\.1"):
        Transfer1Config(width=48, blocks=1, control_blocks=2, heads=2, head_dim=24)
    with pytest.raises(ValueError, match="needs control_blocks 0"):
        Transfer1Config(width=48, blocks=1, control_blocks=1, heads=2, head_dim=24, text_projection=8)
    for head_dim, said in (
        (10, "from 12"),
        (2, "from 12"),
        (-12, "from 12"),
        (13, "13 is odd"),
        (15, "is odd"),
    ):
        with pytest.raises(ValueError, match=f"head_dim .*{said}"):
            Transfer1Config(width=abs(2 * head_dim), blocks=1, control_blocks=1, heads=2, head_dim=head_dim)

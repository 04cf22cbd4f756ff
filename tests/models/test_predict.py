"""The Predict2.5 network: sizes, a time for every frame, the frozen projection, official names."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.predict25.config import PRESETS
from cosmos_distill.models.predict25.names import Predict25Names


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    "preset, blocks, d, total",
    [("predict2.5-2b", 28, 2048, 2_059_174_912), ("predict2.5-14b", 36, 5120, 14_368_047_104)],
)
def test_parameters_of_the_published_networks(preset, blocks, d, total):
    network = build(PRESETS[preset], device="meta", dtype=torch.bfloat16, seed=None)
    rank, text = 256, 1024
    adaln = d * rank + rank * 3 * d
    block = (4 * d * d + 256) + (2 * d * d + 2 * text * d + 256) + 8 * d * d + 3 * adaln
    embeddings = 72 * d + d * d + d * 3 * d + d
    final = d * rank + rank * 2 * d + d * 64
    projection = 100_352 * text + text
    assert count(network) == blocks * block + embeddings + final + projection == total
    assert network.control is None
    assert all(p.is_meta for p in network.parameters())


def test_a_time_for_every_frame_moves_that_frame(make_predict, predict_inputs):
    """Without attention between frames, what a frame is told stays in the frame."""
    network, inputs = make_predict(torch.float64), predict_inputs(2, torch.float64)
    same = inputs["c_noise"][:, -1]
    torch.testing.assert_close(
        network(**inputs | {"c_noise": same}),
        network(**inputs | {"c_noise": same[:, None].expand(2, 3)}),
        rtol=0,
        atol=1e-12,
    )
    for block in network.base.blocks.values():
        block.self_attn.forward = lambda x, **_: torch.zeros_like(x)
    before = network(**inputs)
    inputs["c_noise"] = inputs["c_noise"].clone()
    inputs["c_noise"][1, 2] += 0.2
    moved = (network(**inputs) - before).abs().amax((1, 3, 4)) > 1e-6
    assert moved.tolist() == [[False] * 3, [False, False, True]]


def test_samples_of_a_batch_are_independent(make_predict, predict_inputs):
    network, inputs = make_predict(torch.float64), predict_inputs(3, torch.float64)
    together, features = network(**inputs, features=(0, 2))
    assert features[2].shape == (3, 3, 3, 4, network.config.width)
    for i in range(3):
        alone, feature = network(**{k: v[i : i + 1] for k, v in inputs.items()}, features=(0, 2))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-11)
        torch.testing.assert_close(features[2][i : i + 1], feature[2], rtol=0, atol=1e-11)
    out, only = network(**inputs, features=(0,), features_only=True)
    assert out is None and torch.equal(only[0], features[0])


@pytest.mark.parametrize("name", ["condition_mask", "padding_mask", "text", "c_noise"])
def test_every_input_matters(make_predict, predict_inputs, name):
    network, inputs = make_predict(), predict_inputs()
    assert not torch.allclose(network(**inputs), network(**inputs | {name: 1 - inputs[name]}), atol=1e-4)


def test_frames_per_second_do_not_matter(make_predict, predict_inputs):
    network, inputs = make_predict(), predict_inputs()
    assert torch.equal(network(**inputs), network(**inputs, fps=torch.tensor([12.0, 30.0])))


@pytest.mark.parametrize("what", ["full", "selective"])
def test_activation_checkpointing_gives_equal_gradients(what, make_predict, predict_inputs):
    inputs, grads = predict_inputs(), []
    for recompute in ("none", what):
        network = make_predict()
        network.activation_checkpointing = recompute
        assert network.activation_checkpointing == recompute
        network(**inputs).square().mean().backward()
        grads.append({k: p.grad for k, p in network.named_parameters() if p.requires_grad})
    assert all(torch.equal(grads[0][k], grads[1][k]) for k in grads[0])


def test_the_text_projection_is_frozen_in_every_role(make_predict, predict_inputs):
    network = make_predict()
    frozen = {"base.text_projection.proj.weight", "base.text_projection.proj.bias"}
    for role in (network, network.requires_grad_(False).requires_grad_(True)):
        assert {k for k, p in role.named_parameters() if not p.requires_grad} == frozen
    network(**predict_inputs()).square().mean().backward()
    assert {k for k, p in network.named_parameters() if p.grad is None} == frozen


def _wrapped(network, how):
    """The network inside something that asks for all gradients."""
    base = network.base
    if how == "copied":
        base.text_projection = copy.deepcopy(base.text_projection)
    elif how == "pickled":
        base.text_projection = pickle.loads(pickle.dumps(base.text_projection))
    elif how == "cast":
        network = network.double().float()
    elif how == "from meta":
        state = {k: v.clone() for k, v in network.state_dict().items()}
        network = build(network.config, device="meta", seed=None).to_empty(device="cpu")
        network.load_state_dict(state)
    elif how == "assigned":
        state = {k: nn.Parameter(v.clone()) for k, v in network.state_dict().items()}
        network.load_state_dict(state, assign=True)
    elif how == "parameter by parameter":
        for parameter in network.parameters():
            parameter.requires_grad = True
    elif how == "base alone":
        base.requires_grad_(True)
    return nn.ModuleDict({"student": network}).requires_grad_(True)


WRAPPED = [
    "module",
    "copied",
    "pickled",
    "cast",
    "from meta",
    "assigned",
    "parameter by parameter",
    "base alone",
]


@pytest.mark.parametrize("how", WRAPPED)
def test_no_wrapper_trains_the_text_projection(how, make_predict, predict_inputs):
    """It is asked for through its surroundings, given an optimiser with weight decay, and does not move."""
    wrapper = _wrapped(make_predict(), how)
    names = [name for name, _ in wrapper.named_parameters()]
    assert names == [f"student.{name}" for name, _ in make_predict().named_parameters()]
    assert {k for k, p in wrapper.named_parameters() if not p.requires_grad} == {
        f"student.base.text_projection.proj.{x}" for x in ("weight", "bias")
    }
    _step(wrapper, wrapper.student, wrapper.student(**predict_inputs()))


@pytest.mark.parametrize("kind", ["FSDP", "DDP"])
def test_no_data_parallel_wrapper_trains_the_text_projection(kind, make_predict, predict_inputs):
    """On the group of one rank that a network by itself makes."""
    network = make_predict()
    wrapper = nn.ModuleDict({"student": network})
    if kind == "DDP":
        wrapper.requires_grad_(True)
        parallel = nn.parallel.DistributedDataParallel(network).requires_grad_(True)
        parallel(**predict_inputs()).sum().backward()  # a gradient it waits for in vain would fail the second
        _step(wrapper, network, parallel(**predict_inputs()))
    else:
        for module in (*network.base.blocks.values(), network.base):
            fully_shard(module)
        _step(wrapper.requires_grad_(True), network, network(**predict_inputs()))


def _step(wrapper, network, out):
    """An optimiser's step moves all weights but the frozen ones."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    optimizer = torch.optim.AdamW(wrapper.parameters(), lr=0.1, weight_decay=0.1)
    out.square().mean().backward()
    optimizer.step()
    still = {k for k, v in network.state_dict().items() if equal(v, before[k])}
    assert still == {"base.text_projection.proj.weight", "base.text_projection.proj.bias"}


def equal(a, b):
    a, b = (x.full_tensor() if isinstance(x, DTensor) else x for x in (a, b))
    return torch.equal(a, b)


def test_initial_weights_are_predicts(make_predict):
    """Truncated normals of 1/sqrt(fan-in); zero in the second AdaLN linear of blocks and final layer."""
    state = build(make_predict().config, seed=3).state_dict()
    zero = {k for k, v in state.items() if not v.any()}
    assert zero == {
        k for k in state
        if (".modulation" in k and k.endswith("linear_2.weight")) or k.endswith(".bias")
    }  # fmt: skip
    drawn = {k: v for k, v in state.items() if k not in zero and not k.endswith(("norm", "norm.weight"))}
    for name, value in drawn.items():
        std = value.shape[-1] ** -0.5
        assert float(value.abs().max()) <= 3 * std, name
        assert float(value.std()) == pytest.approx(0.987 * std, rel=0.2), name
    again = build(make_predict().config, seed=3).state_dict()
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_errors_say_what_is_wrong(make_predict, predict_inputs):
    network, inputs = make_predict(), predict_inputs()
    with pytest.raises(ValueError, match="no control branch: leave the hint out"):
        network(**inputs, hint=inputs["x"])
    for bad in (torch.ones(2, 2), torch.ones(2, 6), torch.ones(3), torch.ones(2, 3, 1)):
        with pytest.raises(ValueError, match=r"c_noise must be \[2\] or \[2, 3\]"):
            network(**inputs | {"c_noise": bad})


PUBLISHED = {
    "base.patch_embed.proj.weight": "net.x_embedder.proj.1.weight",
    "base.time_embed.linear_1.weight": "net.t_embedder.1.linear_1.weight",
    "base.time_embed.linear_2.weight": "net.t_embedder.1.linear_2.weight",
    "base.time_embed.norm.weight": "net.t_embedding_norm.weight",
    "base.blocks.2.self_attn.q.weight": "net.blocks.2.self_attn.q_proj.weight",
    "base.blocks.2.self_attn.k_norm": "net.blocks.2.self_attn.k_norm.weight",
    "base.blocks.1.cross_attn.v.weight": "net.blocks.1.cross_attn.v_proj.weight",
    "base.blocks.1.cross_attn.out.weight": "net.blocks.1.cross_attn.output_proj.weight",
    "base.blocks.0.mlp.up.weight": "net.blocks.0.mlp.layer1.weight",
    "base.blocks.0.mlp.down.weight": "net.blocks.0.mlp.layer2.weight",
    "base.blocks.1.modulations.0.linear_1.weight": "net.blocks.1.adaln_modulation_self_attn.1.weight",
    "base.blocks.1.modulations.1.linear_2.weight": "net.blocks.1.adaln_modulation_cross_attn.2.weight",
    "base.blocks.1.modulations.2.linear_2.weight": "net.blocks.1.adaln_modulation_mlp.2.weight",
    "base.final_layer.linear.weight": "net.final_layer.linear.weight",
    "base.final_layer.modulation.linear_2.weight": "net.final_layer.adaln_modulation.2.weight",
    "base.text_projection.proj.weight": "net.crossattn_proj.0.weight",
    "base.text_projection.proj.bias": "net.crossattn_proj.0.bias",
}
CARRIED = {
    "net.pos_embedder.seq": torch.arange(8, dtype=torch.float32),
    "net.pos_embedder.dim_spatial_range": torch.arange(3, dtype=torch.float32),
    "net.pos_embedder.dim_temporal_range": torch.arange(4, dtype=torch.float32),
    "net.accum_video_sample_counter": torch.tensor(12.0),
    "net.blocks.0.self_attn.attn_op._extra_state": torch.zeros(0, dtype=torch.uint8),
}


@pytest.fixture
def official(make_predict):
    """Tensors of an official file, in its names and with what it carries besides."""
    network = make_predict(torch.bfloat16)
    return weights.to_official(network.state_dict(), network.family) | CARRIED


def test_official_names(make_predict):
    """Literal names, as published: the map is not only its own inverse."""
    ours = make_predict().state_dict()
    assert PUBLISHED.keys() <= ours.keys()
    names = Predict25Names()
    assert names.to_official(PUBLISHED) == PUBLISHED
    assert len(set(names.to_official(ours).values())) == len(ours)
    with pytest.raises(ValueError, match="no official name"):
        names.to_official(["base.positions.t"])


@pytest.mark.parametrize("prefix, suffix", [("net.", ".pt"), ("net_ema.", ".safetensors"), ("", ".pt")])
def test_official_round_trip_is_bit_exact(make_predict, official, tmp_path, prefix, suffix):
    path = tmp_path / f"in{suffix}"
    named = {prefix + k.removeprefix("net."): v for k, v in official.items()}
    torch.save(named, path) if suffix == ".pt" else save_file(named, path)
    network = build(make_predict().config, dtype=torch.bfloat16, seed=None)
    carried = weights.load_into(network, path)
    assert carried.keys() == CARRIED.keys()
    weights.save_official(network, tmp_path / "out.safetensors", carried)
    back = load_file(tmp_path / "out.safetensors")
    assert back.keys() == official.keys()
    for name, value in official.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


def test_our_own_file_loads(make_predict, tmp_path):
    network = make_predict()
    weights.save(network, tmp_path / "a.safetensors")
    other = build(network.config, seed=None)
    assert weights.load_into(other, tmp_path / "a.safetensors") == {}
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_what_does_not_fit_is_refused(make_predict, make_network, official, tmp_path):
    path = tmp_path / "x.safetensors"
    network = make_predict(torch.bfloat16)

    def refuse(tensors, *patterns, into=network):
        save_file(tensors, path)
        with pytest.raises(ValueError) as error:
            weights.load_into(into, path)
        for pattern in patterns:
            assert pattern in str(error.value)

    refuse({k: v for k, v in official.items() if "crossattn" not in k}, "missing: base.text_projection")
    refuse(official | {"net.blocks.0.lora.weight": torch.ones(1)}, "unexpected: net.blocks.0.lora.weight")
    two = official | {"net_fake." + k.removeprefix("net."): v.clone() for k, v in official.items()}
    refuse(two, "unexpected: net_fake.")
    refuse(official, "missing: base.positions", into=make_network(torch.bfloat16))


def test_rotary_frequencies_of_the_published_ratios():
    """Ratio 3 over 42 dimensions makes theta 31,696 for height and width; time keeps 10,000."""
    from cosmos_distill.models.common.position import rotary_angles

    config = PRESETS["predict2.5-2b"]
    ratios = config.rope_ratio_t, None, torch.device("cpu"), config.rope_ratio_hw
    t, h, w = (axis[1] for axis in rotary_angles((2, 2, 2), 128, *ratios))
    assert float(t[1]) == pytest.approx(10_000 ** (-2 / 44), rel=1e-5)
    assert float(h[1]) == pytest.approx(31_696 ** (-2 / 42), rel=1e-5)
    assert float(w[1]) == pytest.approx(31_696 ** (-2 / 42), rel=1e-5)

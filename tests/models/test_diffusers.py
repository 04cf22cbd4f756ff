"""The base network against an implementation that is not ours: diffusers' CosmosTransformer3DModel."""

import pytest
import torch
from torch.nn import functional as F

from cosmos_distill.models.common import weights
from cosmos_distill.models.common.dit import Residuals
from tests import lanes

lanes.require("diffusers")

from diffusers.models.transformers import transformer_cosmos  # noqa: E402

import cosmos_distill.ops.integrations.diffusers  # noqa: E402, F401  # so that diffusers needs no torchvision


def diffusers_twin(network):
    c = network.config
    theirs = transformer_cosmos.CosmosTransformer3DModel(
        in_channels=c.latent_channels + 1,
        out_channels=c.latent_channels,
        num_attention_heads=c.heads,
        attention_head_dim=c.head_dim,
        num_layers=c.blocks,
        mlp_ratio=c.mlp_ratio,
        text_embed_dim=c.text_dim,
        adaln_lora_dim=c.adaln_rank,
        max_size=(c.max_frames, c.max_height, c.max_width),
        rope_scale=(c.rope_ratio_t, c.rope_ratio_hw, c.rope_ratio_hw),
        extra_pos_embed_type="learnable" if c.learnable_positions else None,
        use_crossattn_projection=c.text_projection is not None,
        crossattn_proj_in_channels=c.text_channels,
        encoder_hidden_states_channels=c.text_dim,
        controlnet_block_every_n=1,
    ).to(network.dtype)
    theirs.load_state_dict(weights.to_diffusers(network.state_dict()))  # strict: the names cover everything
    for block in theirs.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q.eps = attention.norm_k.eps = 1e-6  # 1e-5 there, 1e-6 in the official network
    return theirs


def compare(network, inputs, residuals, tolerance):
    """Largest relative errors (output, gradients); asserts both are below ``tolerance``."""
    theirs = diffusers_twin(network)
    # diffusers takes one of each for the whole batch.
    padding = inputs["padding_mask"][:1]
    fps = inputs["fps"][:1].to(network.dtype) if "fps" in inputs else None
    c_noise = inputs["c_noise"]
    x = [inputs["x"].clone().requires_grad_() for _ in range(2)]
    text = [inputs["text"].clone().requires_grad_() for _ in range(2)]
    b, _, t, h, w = inputs["x"].shape
    batch_padding = padding[:, :, None].expand(b, 1, t, h, w)
    ours, _ = network.base(
        torch.cat([x[0], inputs["condition_mask"], batch_padding], dim=1),
        c_noise,
        text[0],
        fps=None if fps is None else fps.expand(b),
        steering=Residuals(residuals),
    )
    (other,) = theirs(
        x[1],
        c_noise if c_noise.ndim == 1 else c_noise[:, None, :, None, None],
        text[1],
        block_controlnet_hidden_states=residuals or None,
        fps=fps,
        condition_mask=inputs["condition_mask"],
        padding_mask=F.interpolate(padding, scale_factor=8, mode="nearest"),  # at the size of the video
        return_dict=False,
    )
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(ours)
    (ours * probe).sum().backward()
    (other * probe).sum().backward()

    def error(a, b):
        return float(((a - b).abs().max() / b.abs().max()).detach())

    grads = {k: p.grad for k, p in network.base.named_parameters() if p.requires_grad}
    expected = weights.from_diffusers({k: p.grad for k, p in theirs.named_parameters()})
    for frozen in [k for k in expected if "text_projection" in k]:
        del expected[frozen]
    assert {f"base.{k}" for k in grads} == expected.keys()
    assert all(float(g.abs().max()) > 0 for g in grads.values())
    worst = max(
        *(error(grads[k.removeprefix("base.")], v) for k, v in expected.items()),
        error(x[0].grad, x[1].grad),
        error(text[0].grad, text[1].grad),
    )
    print(f"\n{network.dtype}: output {error(ours, other):.2e}, gradients {worst:.2e}")
    assert error(ours, other) < tolerance
    assert worst < tolerance


def _residuals(network, inputs, count):
    b, _, t, h, w = inputs["x"].shape
    g = torch.Generator().manual_seed(5)
    shape = (b, t * h * w // 4, network.config.width)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(network.dtype) for _ in range(count)]


def test_base_equals_diffusers_in_fp64(make_network, make_inputs, exact):
    compare(make_network(torch.float64), make_inputs(2, torch.float64), [], 1e-11)


def test_base_equals_diffusers_in_fp32(make_network, make_inputs):
    compare(make_network(), make_inputs(2), [], 2e-5)


def test_residuals_enter_where_diffusers_adds_them(make_network, make_inputs, exact):
    network, inputs = make_network(torch.float64), make_inputs(2, torch.float64)
    compare(network, inputs, _residuals(network, inputs, network.config.blocks), 1e-11)


@pytest.mark.parametrize("per_frame", [True, False], ids=["time per frame", "time per sample"])
def test_predict_equals_diffusers_in_fp64(make_predict, predict_inputs, exact, per_frame):
    inputs = predict_inputs(2, torch.float64)
    if not per_frame:
        inputs["c_noise"] = inputs["c_noise"][:, -1]
    compare(make_predict(torch.float64), inputs, [], 1e-11)


def test_predict_equals_diffusers_in_fp32(make_predict, predict_inputs):
    compare(make_predict(), predict_inputs(2), [], 2e-5)


@pytest.mark.parametrize("make", ["make_network", "make_predict"])
def test_diffusers_names_round_trip(make, request):
    state = request.getfixturevalue(make)().state_dict()
    back = weights.from_diffusers(weights.to_diffusers(state))
    assert back.keys() == {k for k in state if k.startswith("base.")}
    assert all(torch.equal(back[k], state[k]) for k in back)


@pytest.mark.parametrize("make", ["make_network", "make_predict"])
def test_a_diffusers_folder_loads(make, request, tmp_path):
    """Saved by diffusers itself, in two shards with an index."""
    network = request.getfixturevalue(make)()
    diffusers_twin(network).save_pretrained(tmp_path / "transformer", max_shard_size="200KB")
    assert (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").exists()
    state, carried = weights.load(tmp_path / "transformer")
    assert not carried
    assert all(torch.equal(state[f"base.{k}"], v) for k, v in network.base.state_dict().items())


def test_names_diffusers_does_not_know():
    with pytest.raises(ValueError, match=r"base\.x has no name in diffusers"):
        weights.to_diffusers({"base.x": torch.ones(1)})
    with pytest.raises(ValueError, match="before_proj"):
        weights.from_diffusers({"transformer_blocks.0.before_proj.weight": torch.ones(1)})

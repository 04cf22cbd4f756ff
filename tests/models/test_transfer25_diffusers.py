"""Transfer2.5 against an implementation that is not ours: diffusers' CosmosTransformer3DModel with
CosmosControlNetModel, forward and backward, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from tests import lanes
from tests.models.transfer25 import SEVERAL, TINY, made, with_hint

lanes.require("diffusers")

from diffusers.models.controlnets import controlnet_cosmos  # noqa: E402
from diffusers.models.transformers import transformer_cosmos  # noqa: E402

import cosmos_distill.ops.integrations.diffusers  # noqa: E402, F401  # so that diffusers needs no torchvision


def twins(network):
    """(transformer, controlnet) of diffusers with the same weights."""
    c = network.config
    common = {
        "num_attention_heads": c.heads, "attention_head_dim": c.head_dim, "mlp_ratio": c.mlp_ratio,
        "text_embed_dim": c.text_dim, "adaln_lora_dim": c.adaln_rank,
        "max_size": (c.max_frames, c.max_height, c.max_width),
        "rope_scale": (c.rope_ratio_t, c.rope_ratio_hw, c.rope_ratio_hw), "extra_pos_embed_type": None,
        "use_crossattn_projection": True, "crossattn_proj_in_channels": c.text_channels,
        "encoder_hidden_states_channels": c.text_dim,
    }  # fmt: skip
    transformer = transformer_cosmos.CosmosTransformer3DModel(
        in_channels=c.latent_channels + 1, out_channels=c.latent_channels, num_layers=c.blocks,
        controlnet_block_every_n=c.control_every, **common,
    )  # fmt: skip
    controlnet = controlnet_cosmos.CosmosControlNetModel(
        n_controlnet_blocks=len(range(0, c.blocks, c.control_every)), in_channels=c.hint_channels + 2,
        latent_channels=c.latent_channels + 2, model_channels=c.width, **common,
    )  # fmt: skip
    state = weights.to_pipeline(network.state_dict(), network.family)
    for theirs, name in ((transformer, "transformer"), (controlnet, "controlnet")):
        theirs.to(network.dtype).load_state_dict(state[name])  # strict: the names cover everything
        for block in getattr(theirs, "transformer_blocks", None) or theirs.control_blocks:
            for attention in (block.attn1, block.attn2):
                attention.norm_q.eps = attention.norm_k.eps = 1e-6  # 1e-5 there, 1e-6 in the official network
    return transformer, controlnet


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=str)
@pytest.mark.parametrize("weight", [1.0, 0.6])
def test_network_equals_diffusers(predict_inputs, request, dtype, tolerance, weight) -> None:
    """Output, and gradients of all weights, latent, control and text."""
    if dtype == torch.float64:
        request.getfixturevalue("exact")
    network = made(dtype=dtype)
    transformer, controlnet = twins(network)
    given = with_hint(predict_inputs(2, dtype))
    given["padding_mask"] = given["padding_mask"][:1].expand(2, -1, -1, -1)  # one for the batch there
    ours, theirs = ({k: given[k].clone().requires_grad_() for k in ("x", "hint", "text")} for _ in range(2))
    padding = F.interpolate(given["padding_mask"][:1], scale_factor=8, mode="nearest")  # of the video's size
    output = network(**given | ours, control_weight=weight)
    told = {
        "timestep": given["c_noise"][:, None, :, None, None], "encoder_hidden_states": theirs["text"],
        "condition_mask": given["condition_mask"], "return_dict": False,
    }  # fmt: skip
    (residuals,) = controlnet(
        controls_latents=theirs["hint"], latents=theirs["x"], conditioning_scale=weight,
        padding_mask=padding.expand(1, -1, -1, -1), **told,
    )  # fmt: skip
    assert len(residuals) == 3
    (other,) = transformer(
        hidden_states=theirs["x"], block_controlnet_hidden_states=residuals, padding_mask=padding, **told
    )
    assert error(output, other) < tolerance
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (output * probe.to(dtype)).sum().backward()
    (other * probe.to(dtype)).sum().backward()
    expected: dict[str, torch.Tensor] = {}
    modules = {"transformer": transformer, "controlnet": controlnet}
    for (component, name), mine in network.family.names.to_diffusers(network.state_dict()).items():  # type: ignore[union-attr]
        grad = modules[component].get_parameter(name).grad
        assert grad is not None
        expected[mine] = (
            expected[mine] + grad if mine in expected else grad
        )  # of copies of one weight the sum
    frozen = {name for name in expected if "text_projection" in name}
    trained = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
    assert trained.keys() == expected.keys() - frozen
    worst = max(
        *(error(grad, expected[name]) for name, grad in trained.items()),  # type: ignore[arg-type]
        *(error(ours[k].grad, theirs[k].grad) for k in ours),  # type: ignore[arg-type]
    )
    print(f"\n{dtype}: output {error(output, other):.2e}, gradients {worst:.2e}")
    assert worst < tolerance


def test_a_pipeline_folder_loads(tmp_path: Path) -> None:
    """Saved by diffusers itself, as a pipeline does."""
    network = made(dtype=torch.float32)
    names = network.family.names
    assert names is not None and names.files(tmp_path, "edge") is None
    for part, theirs in zip(("transformer", "controlnet"), twins(network), strict=True):
        theirs.save_pretrained(tmp_path / part)
    found = names.files(tmp_path, "edge")
    again = build(TINY, seed=None)
    assert found is not None and weights.load_into(again, found) == {}
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_a_controlnet_of_another_transformer_is_refused(tmp_path: Path) -> None:
    for part, seed in (("transformer", 1), ("controlnet", 2)):
        state = weights.to_pipeline(made(dtype=torch.float32, seed=seed).state_dict(), made().family)
        (tmp_path / part).mkdir()
        weights.write_safetensors(state[part], tmp_path / part / "model.safetensors", "diffusers")
    with pytest.raises(ValueError, match=r"differ in base.*they do not go together"):
        weights.load((tmp_path / "transformer", tmp_path / "controlnet"))
    with pytest.raises(ValueError, match=r"missing: base\."):
        weights.load_into(build(TINY, seed=None), tmp_path / "controlnet")


def test_diffusers_has_no_network_with_several_controls() -> None:
    network = made(SEVERAL)
    with pytest.raises(ValueError, match="knows networks with one control"):
        weights.to_pipeline(network.state_dict(), network.family)

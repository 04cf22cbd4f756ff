# ruff: noqa: E402  # what is asked for comes before what needs it
"""A network of diffusers computes the same with the fused operators in it as without."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import lanes

lanes.require("diffusers")

from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.transformers import transformer_cosmos

from cosmos_distill import ops
from cosmos_distill.ops.integrations.diffusers import Processor, do_without_torchvision, fuse, unfuse
from tests.ops.tolerance import DRAWS, assert_within_the_rule

SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_embed_dim": 20,
    "adaln_lora_dim": 12,
    "max_size": (8, 16, 16),
}
B, T, H, W, CHANNELS = 2, 3, 4, 6, 4
KINDS = ["transfer1", "predict2.5", "transfer2.5", "controlnet"]


def draw_fp64(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def network(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Small, with every weight drawn so that nothing is zero or one by default."""
    if kind == "controlnet":
        model: nn.Module = controlnet_cosmos.CosmosControlNetModel(
            **SMALL, n_controlnet_blocks=2, in_channels=10, latent_channels=CHANNELS + 2, model_channels=48
        )
    else:
        new = {} if kind == "transfer1" else {"extra_pos_embed_type": None, "use_crossattn_projection": True}
        if kind == "transfer2.5":
            new |= {"img_context_dim_in": 10, "img_context_dim_out": 48, "controlnet_block_every_n": 1}
        if "use_crossattn_projection" in new:
            new |= {"crossattn_proj_in_channels": 16, "encoder_hidden_states_channels": 20}
        model = transformer_cosmos.CosmosTransformer3DModel(
            **SMALL, **new, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=2
        )
    with torch.no_grad():
        for i, (name, weight) in enumerate(model.named_parameters()):
            scale = 0.3 if "norm_" in name or "_norm" in name else weight[0].numel() ** -0.5
            weight.copy_(draw_fp64(*weight.shape, seed=i) * scale + ("norm" in name and weight.dim() == 1))
    return model.to(dtype)


def arguments(
    kind: str, dtype: torch.dtype, seed: int = 0, rounded_to: torch.dtype | None = None
) -> tuple[dict[str, Any], list[Tensor]]:
    """What to call the network with, and the tensors in it that get a gradient."""

    def draw(*shape: int, more: int = 0) -> Tensor:
        return draw_fp64(*shape, seed=seed + more).to(rounded_to or dtype).to(dtype)

    x = draw(B, CHANNELS, T, H, W).requires_grad_()
    text = draw(B, 5, 20 if kind in ("transfer1", "controlnet") else 16).requires_grad_()
    level = draw(B) if kind == "transfer1" else draw(B, 1, T, 1, 1)
    given: dict[str, Any] = {"timestep": level, "encoder_hidden_states": text, "return_dict": False}
    given |= {"fps": 12, "padding_mask": torch.ones(1, 1, 8 * H, 8 * W, dtype=dtype)}
    if kind == "controlnet":
        hint = draw(B, CHANNELS, T, H, W, more=1).requires_grad_()
        given |= {"controls_latents": hint, "latents": x}
        given |= {"condition_mask": torch.zeros(B, 1, T, H, W, dtype=dtype), "conditioning_scale": 0.7}
        return given, [x, text, hint]
    given["hidden_states"] = x
    if kind == "transfer2.5":
        image = draw(B, 7, 10).requires_grad_()
        given["encoder_hidden_states"] = (text, image)
        residuals = [draw(B, T * H * W // 4, 48, more=i) for i in range(2)]
        given["block_controlnet_hidden_states"] = residuals
        return given, [x, text, image]
    return given, [x, text]


def results(
    model: nn.Module, kind: str, dtype: torch.dtype, seed: int = 0, rounded_to: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Outputs, and gradients of inputs and weights, by name."""
    given, leaves = arguments(kind, dtype, seed, rounded_to)
    (out,) = model(**given)
    outputs = out if isinstance(out, list) else [out]
    learned = dict(model.named_parameters())
    grads = torch.autograd.grad(
        outputs,
        [*leaves, *learned.values()],
        [draw_fp64(*o.shape, seed=seed).to(rounded_to or dtype).to(dtype) for o in outputs],
        allow_unused=True,  # the last block of a ControlNet hands on a stream that nobody reads
    )
    names = [*(f"input {i}" for i in range(len(leaves))), *learned]
    found = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    assert len(found) == len(names)
    return {f"output {i}": o.detach() for i, o in enumerate(outputs)} | found


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """NaN where there is one: Python's max() would pass over it."""
    assert a.keys() == b.keys()
    return float(torch.stack([(a[k] - b[k]).abs().max() / b[k].abs().max() for k in a]).max())


def test_a_nan_is_further_than_anything():
    ones, broken = torch.ones(2), torch.tensor([1.0, torch.nan])
    for got in ({"a": ones, "b": broken}, {"a": broken, "b": ones}):
        assert not furthest(got, {"a": ones, "b": ones}) < 1e9


@pytest.mark.parametrize("kind", KINDS)
def test_the_formulas_are_the_same(kind: str, exact: None):
    model = network(kind)
    want = results(model, kind, torch.float64)
    assert furthest(results(fuse(model), kind, torch.float64), want) < 1e-11


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_no_worse(kind: str, dtype: torch.dtype, request: pytest.FixtureRequest):
    """Of every output and gradient, the fused network is as good as the unfused one by the rule."""
    seeds = range(0, 100 * DRAWS, 100)
    plain, fused = network(kind, dtype), fuse(network(kind, dtype))
    theirs = [results(plain, kind, dtype, seed) for seed in seeds]
    ours = [results(fused, kind, dtype, seed) for seed in seeds]
    request.getfixturevalue("exact")
    wide = network(kind, dtype).double()  # the same rounded weights, and inputs
    right = [results(wide, kind, torch.float64, seed, rounded_to=dtype) for seed in seeds]
    assert_within_the_rule(zip(right, theirs, ours, strict=True))


def test_one_noise_level_may_serve_the_batch():
    model = network("transfer1", torch.float32)
    given, _ = arguments("transfer1", torch.float32)
    given["timestep"] = given["timestep"][:1]
    (want,) = model(**given)
    torch.testing.assert_close(fuse(model)(**given)[0], want, rtol=1e-4, atol=1e-5)


def test_modulation_is_made_once_a_frame(monkeypatch: pytest.MonkeyPatch):
    found = []

    def watched(x: Tensor, shift: Tensor, *args: Any, **options: Any) -> Any:
        found.append((tuple(x.shape), tuple(shift.shape)))
        return adaln_modulate(x, shift, *args, **options)

    adaln_modulate = ops.adaln_modulate
    monkeypatch.setattr(ops, "adaln_modulate", watched)
    model = fuse(network("predict2.5", torch.float32))
    given, _ = arguments("predict2.5", torch.float32)
    model(**given)
    assert found == 3 * [((B, T, H * W // 4, 48), (B, T, 48))]  # two blocks, and the last norm
    assert model.norm_out.frames is None  # nothing that a call of another length would find


def test_a_block_alone_takes_a_noise_level_for_every_token():
    block = network("predict2.5", torch.float32).transformer_blocks[0]
    shapes = ((B, 6, 48), (B, 5, 20), (B, 6, 48), (B, 6, 144), (6, 24))
    x, text, embedded, temb, angles = (draw_fp64(*shape).float() for shape in shapes)
    args = (x, text, embedded, temb, (angles.cos(), angles.sin()))
    want = block(*args)
    torch.testing.assert_close(fuse(block)(*args), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_unfusing_restores_the_network(kind: str):
    model = network(kind, torch.float32)
    want = results(model, kind, torch.float32)
    classes = [type(m) for m in model.modules()]
    processors = [m.processor for m in model.modules() if hasattr(m, "processor")]
    state = copy.deepcopy(model.state_dict())
    assert fuse(fuse(model)) is model  # twice does no harm
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert unfuse(model) is model
    assert [type(m) for m in model.modules()] == classes
    assert [m.processor for m in model.modules() if hasattr(m, "processor")] == processors
    got = results(model, kind, torch.float32)
    assert all(torch.equal(got[k], v) for k, v in want.items())


@pytest.mark.parametrize("kind", ["transfer1", "controlnet"])
def test_the_padding_mask_needs_no_torchvision(kind: str, monkeypatch: pytest.MonkeyPatch):
    """torchvision cannot be installed beside every build of torch, so it is taken away wherever it is."""
    monkeypatch.delattr(transformer_cosmos, "transforms", raising=False)
    monkeypatch.delattr(controlnet_cosmos, "transforms", raising=False)
    model = network(kind, torch.float32)
    given, _ = arguments(kind, torch.float32)
    # 40 x 30 to 4 x 6: every pixel is that of the pixel (10 i, 5 j) above and left of it.
    given["padding_mask"] = torch.zeros(1, 1, 40, 30)
    given["padding_mask"][..., 20:, 10] = 1
    with pytest.raises(NameError, match="transforms"):
        model(**given)
    do_without_torchvision()
    (want,) = model(**given)
    small = torch.zeros(1, 1, H, W)
    small[..., 2:, 2] = 1
    (same,) = model(**given | {"padding_mask": small})
    (fused,) = fuse(model)(**given)
    (other,) = model(**given | {"padding_mask": torch.zeros(1, 1, H, W)})
    first = (lambda x: x[0]) if isinstance(want, list) else (lambda x: x)
    torch.testing.assert_close(first(same), first(want), rtol=0, atol=0)
    torch.testing.assert_close(first(fused), first(want), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first(other), first(fused), atol=1e-3)


def test_torchvision_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch):
    theirs = object()
    monkeypatch.setattr(transformer_cosmos, "transforms", theirs, raising=False)
    do_without_torchvision()
    assert transformer_cosmos.transforms is theirs


def test_what_is_not_stock_is_left_alone():
    class Custom(transformer_cosmos.CosmosAttnProcessor2_0):
        pass

    model = network("transfer1", torch.float32)
    mine = Custom()
    model.transformer_blocks[0].attn1.set_processor(mine)
    given, _ = arguments("transfer1", torch.float32)
    (want,) = model(**given)
    torch.testing.assert_close(fuse(model)(**given)[0], want, rtol=1e-4, atol=1e-5)
    assert model.transformer_blocks[0].attn1.processor is mine
    assert isinstance(model.transformer_blocks[1].attn1.processor, Processor)
    with pytest.raises(ValueError, match="Linear holds no CosmosTransformerBlock"):
        fuse(nn.Linear(2, 2))
    for change in (fuse, unfuse):
        with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module.*, not NoneType"):
            change(None)


def test_masked_attention_is_left_to_diffusers():
    model = network("transfer1", torch.float32)
    given, _ = arguments("transfer1", torch.float32)
    given["attention_mask"] = torch.tensor([[True, True, False, False, False], [True] * 5])
    (want,) = model(**given)
    (got,) = fuse(model)(**given)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        del given["attention_mask"]
        torch.testing.assert_close(model(**given)[0], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [True, False])
def test_copies_pickles_autocast_and_checkpointing(attention: bool):
    kind = "predict2.5"
    model = fuse(network(kind, torch.float32), attention=attention)
    want = results(model, kind, torch.float32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert furthest(results(twin, kind, torch.float32), want) == 0
    model.enable_gradient_checkpointing()
    model.train()
    assert furthest(results(model, kind, torch.float32), want) == 0
    given, _ = arguments(kind, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = model(**given)
        (plain,) = unfuse(model)(**given)
    scale = want["output 0"].abs().max()
    assert (got - want["output 0"]).abs().max() <= 2 * (plain - want["output 0"]).abs().max() + 0.01 * scale


@pytest.fixture
def dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", ["transfer1", "predict2.5"])
def test_a_fused_network_compiles_without_a_break(kind: str, dynamo: None):
    model = fuse(network(kind, torch.float32))
    want = results(model, kind, torch.float32)
    block = model.transformer_blocks[0]
    model.transformer_blocks[0] = torch.compile(block, fullgraph=True, backend="aot_eager")
    got = results(model, kind, torch.float32)
    assert furthest({k.replace("_orig_mod.", ""): v for k, v in got.items()}, want) < 1e-4

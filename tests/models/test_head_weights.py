"""Discriminator heads against the published formulas, in fp64, on weights in the official layout."""

import math

import pytest
import torch
from torch.nn import functional as F

from cosmos_distill.models.common import head_weights
from cosmos_distill.models.common.heads import HEADS, Discriminator

D, WIDTH = 6, 16


def conv_shapes(at, channels, kernel, last):
    """Convolution, normalisation, convolution to a logit, as the official Sequential numbers them."""
    return {
        f"{at}.0.weight": (WIDTH, channels, *kernel), f"{at}.0.bias": (WIDTH,),
        f"{at}.1.weight": (WIDTH,), f"{at}.1.bias": (WIDTH,),
        f"{at}.3.weight": (1, WIDTH, *[1] * last), f"{at}.3.bias": (1,),
    }  # fmt: skip


def statistics(at):
    return {f"{at}.running_mean": (WIDTH,), f"{at}.running_var": (WIDTH,), f"{at}.num_batches_tracked": ()}


LAYOUTS = {
    "conv3d": conv_shapes("net", D, (2, 4, 4), 3),
    "conv2d": conv_shapes("net", D, (4, 4), 2),
    "spatial_temporal": {
        **conv_shapes("net_spatial", D, (4, 4), 2), **conv_shapes("net_temporal", D, (4,), 1),
    },
    "attention": {
        "input_proj.0.weight": (WIDTH, D, 1, 4, 4), "input_proj.0.bias": (WIDTH,),
        "input_proj.1.weight": (WIDTH,), "input_proj.1.bias": (WIDTH,), **statistics("input_proj.1"),
        "attention.in_proj_weight": (3 * WIDTH, WIDTH), "attention.in_proj_bias": (3 * WIDTH,),
        "attention.out_proj.weight": (WIDTH, WIDTH), "attention.out_proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        **conv_shapes("final", WIDTH, (2, 2, 2), 3), **statistics("final.1"),
    },
    "query_token": {
        "cross_attention.query_token": (1, 1, 1, D),
        **{f"cross_attention.to_{x}.weight": (D, D) for x in ("q", "k", "v", "out")},
        "cross_attention.to_out.bias": (D,),
        **{f"cross_attention.{x}.weight": (D,) for x in ("pre_norm_kv", "post_norm_q", "post_norm_k")},
        "mlp.norm.weight": (D,), "mlp.fc1.weight": (4 * D, D), "mlp.fc1.bias": (4 * D,),
        "mlp.fc2.weight": (D, 4 * D), "mlp.fc2.bias": (D,),
    },
}  # fmt: skip


def official(head, blocks=2, prefix="", dtype=torch.float64):
    """Random weights as the official code would save them."""
    of = "branches" if head == "query_token" else "cls_pred_heads"
    shapes = {f"{of}.{i}.{name}": shape for i in range(blocks) for name, shape in LAYOUTS[head].items()}
    if head == "query_token":
        shapes |= {
            "final_norm.weight": (blocks * D,), "final_norm.bias": (blocks * D,),
            "final_linear.weight": (1, blocks * D), "final_linear.bias": (1,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {
        prefix + name: torch.tensor(7)
        if name.endswith("tracked")
        else torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
        for name, shape in shapes.items()
    }


def judge(head, w, x):
    """One block's official head over x [1, D, T, H, W]: the mean logit, or the query's branch [1, D]."""

    def convolve(at, x, conv, stride, padding, norm):
        h = conv(x, w[f"{at}.0.weight"], w[f"{at}.0.bias"], stride, padding)
        h = F.leaky_relu(norm(h, w[f"{at}.1.weight"], w[f"{at}.1.bias"]), 0.01)
        return h if f"{at}.3.weight" not in w else conv(h, w[f"{at}.3.weight"], w[f"{at}.3.bias"])

    def group(h, weight, bias):
        return F.group_norm(h, 8, weight, bias)

    def batch(h, weight, bias):
        return F.batch_norm(h, None, None, weight, bias, training=True)

    frames = x[0].movedim(1, 0)
    if head == "conv3d":
        return convolve("net", x, F.conv3d, 2, (0, 1, 1), group).mean()
    if head == "conv2d":
        return convolve("net", frames, F.conv2d, 2, 1, group).mean()
    if head == "spatial_temporal":
        places = x[0].permute(2, 3, 0, 1).flatten(0, 1)
        space = convolve("net_spatial", frames, F.conv2d, 2, 1, group).mean((1, 2, 3))
        time = convolve("net_temporal", places, F.conv1d, 2, 1, group).mean((1, 2))
        return (0.5 * (space[:, None] + time)).mean()
    if head == "attention":
        h = convolve("input_proj", x, F.conv3d, (1, 2, 2), (0, 1, 1), batch)
        tokens = F.layer_norm(h[0].flatten(1).T, (WIDTH,), w["norm.weight"], w["norm.bias"])
        q, k, v = (
            y.unflatten(1, (4, -1)).transpose(0, 1)
            for y in (tokens @ w["attention.in_proj_weight"].T + w["attention.in_proj_bias"]).chunk(3, 1)
        )
        mixed = ((q @ k.mT / math.sqrt(WIDTH // 4)).softmax(-1) @ v).transpose(0, 1).flatten(1)
        mixed = mixed @ w["attention.out_proj.weight"].T + w["attention.out_proj.bias"]
        return convolve("final", mixed.T.reshape(h.shape), F.conv3d, 2, (1, 0, 0), batch).mean()

    def rms(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    c = {k.removeprefix("cross_attention."): v for k, v in w.items()}
    tokens, query = rms(x[0].flatten(1).T, c["pre_norm_kv.weight"]), c["query_token"][0, 0]
    q = rms(query @ c["to_q.weight"].T, c["post_norm_q.weight"])
    k = rms(tokens @ c["to_k.weight"].T, c["post_norm_k.weight"])
    h = (q @ k.T / math.sqrt(D)).softmax(-1) @ (tokens @ c["to_v.weight"].T)
    h = query + h @ c["to_out.weight"].T + c["to_out.bias"]
    hidden = F.gelu(rms(h, c["mlp.norm.weight"]) @ c["mlp.fc1.weight"].T + c["mlp.fc1.bias"])
    return h + hidden @ c["mlp.fc2.weight"].T + c["mlp.fc2.bias"]


def logits(head, state, features):
    """Of each sample by itself, as the official code has one per rank."""
    samples = []
    for sample in range(len(next(iter(features.values())))):
        found = []
        for i, block in enumerate(sorted(features)):
            at = f"{'branches' if head == 'query_token' else 'cls_pred_heads'}.{i}."
            weights = {k.removeprefix(at): v for k, v in state.items() if k.startswith(at)}
            found.append(judge(head, weights, features[block][sample : sample + 1].movedim(-1, 1)))
        if head == "query_token":
            joint = F.layer_norm(
                torch.cat(found, 1),
                (len(found) * D,),
                state["final_norm.weight"],
                state["final_norm.bias"],
                1e-6,
            )
            samples.append((joint @ state["final_linear.weight"].T + state["final_linear.bias"])[0])
        else:
            samples.append(torch.stack(found))
    return torch.stack(samples)


def make(head, **changes):
    return Discriminator((5, 2), D, **{"head": head, "width": WIDTH} | changes).double()


def features(grid):
    generator = torch.Generator().manual_seed(1)
    return {b: torch.randn(2, *grid, D, dtype=torch.float64, generator=generator) for b in (5, 2)}


@pytest.mark.parametrize("grid", [(3, 4, 4), (5, 9, 6), (4, 8, 5)])
@pytest.mark.parametrize("head", HEADS)
def test_official_weights_give_official_logits(head, grid):
    discriminator, state, taken = make(head), official(head), features(grid)
    head_weights.from_official(discriminator, state)
    torch.testing.assert_close(discriminator(taken), logits(head, state, taken), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_weights_are_written_under_their_official_names_and_read_again(head, tmp_path):
    first = make(head, seed=3)
    head_weights.save_official(first, tmp_path / "head.safetensors")
    written = head_weights.read(tmp_path / "head.safetensors")
    assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in official(head).items()}
    fresh = make(head, seed=4)
    head_weights.load_official(fresh, tmp_path / "head.safetensors")
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in first.state_dict().items())
    taken = features((3, 4, 4))
    torch.testing.assert_close(first(taken), logits(head, written, taken), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("head", HEADS)
def test_every_official_tensor_survives_a_round_trip(head):
    discriminator, state = make(head), official(head)
    head_weights.from_official(discriminator, state)
    back = head_weights.to_official(discriminator)
    assert back.keys() == state.keys()
    kept = [k for k in state if "running_" not in k and "num_batches" not in k]
    assert all(torch.equal(back[k], state[k]) for k in kept)


def test_running_statistics_are_written_as_at_the_start():
    back = head_weights.to_official(make("attention"))
    assert not back["cls_pred_heads.1.final.1.running_mean"].any()
    assert (back["cls_pred_heads.0.input_proj.1.running_var"] == 1).all()
    assert back["cls_pred_heads.0.final.1.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("prefix", ["net_discriminator_head.", "discriminator.", "model.discriminator."])
def test_a_file_of_several_networks_names_the_head_by_its_prefix(prefix, tmp_path):
    state = official("query_token", prefix=prefix) | {"net.blocks.0.mlp.layer1.weight": torch.ones(2)}
    torch.save({"model": state}, tmp_path / "model.pt")
    discriminator = make("query_token")
    head_weights.load_official(discriminator, tmp_path / "model.pt")
    assert torch.equal(
        discriminator.heads["2"].query, state[f"{prefix}branches.0.cross_attention.query_token"][0, 0]
    )


def test_what_does_not_fit_is_named_and_changes_nothing():
    discriminator = make("conv3d")
    before = {k: v.clone() for k, v in discriminator.state_dict().items()}

    def refuse(state, message):
        with pytest.raises(ValueError, match=message):
            head_weights.from_official(discriminator, state, "head.pt")
        assert all(torch.equal(v, before[k]) for k, v in discriminator.state_dict().items())

    state = official("conv3d")
    refuse(official("conv2d"), r"head.pt does not fit a 'conv3d' .*net.0.weight is \[16, 6, 4, 4\], not")
    refuse(official("conv3d", blocks=1), "cls_pred_heads.1.net.0.bias is missing")
    refuse(official("conv3d", blocks=3), "cls_pred_heads.2.net.0.bias is unexpected")
    refuse(official("query_token"), "cls_pred_heads.0.net.0.bias is missing")
    refuse(
        state | {"cls_pred_heads.0.net.1.bias": torch.full((WIDTH,), math.nan)}, "net.1.bias is not finite"
    )
    refuse({}, "is missing")


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_files_are_cast(head):
    discriminator = make(head)
    head_weights.from_official(discriminator, official(head, dtype=torch.bfloat16))
    assert {p.dtype for p in discriminator.parameters()} == {torch.float64}

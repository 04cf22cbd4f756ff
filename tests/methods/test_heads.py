"""Discriminator heads on features of a network's blocks."""

import math

import pytest
import torch
from torch.nn import functional as F

from cosmos_distill.models.common.heads import HEADS, Discriminator


def features(batch=2, grid=(3, 4, 4), channels=6, blocks=(1,)):
    generator = torch.Generator().manual_seed(0)
    return {b: torch.randn(batch, *grid, channels, generator=generator) for b in blocks}


@pytest.mark.parametrize("head", HEADS)
def test_one_logit_per_sample_and_block(head):
    discriminator = Discriminator((2, 0), 6, head=head, width=16)
    assert discriminator.blocks == (0, 2)
    taken = {block: value.requires_grad_() for block, value in features(blocks=(0, 2)).items()}
    logits = discriminator(taken)
    assert logits.shape == ((2, 1) if head == "query_token" else (2, 2))
    logits.sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters() if p.dim() > 1
    )
    assert all(bool((value.grad != 0).flatten(1).any(1).all()) for value in taken.values())


@pytest.mark.parametrize("head", HEADS)
def test_a_sample_is_judged_alone(head):
    discriminator = Discriminator((1,), 6, head=head, width=16)
    both = features()
    alone = {1: both[1][:1]}
    torch.testing.assert_close(discriminator(both)[:1], discriminator(alone))


def test_the_default_head_has_the_published_size():
    with torch.device("meta"):
        count = sum(p.numel() for p in Discriminator((14,), 4096).parameters())
    assert count == pytest.approx(41.9e6, rel=2e-3)


def test_the_query_token_head_by_hand():
    """Two blocks, written out from the weights: attention of one query, MLP, joint logit."""
    discriminator = Discriminator((0, 2), 6, head="query_token", seed=1).double()
    with torch.no_grad():
        for p in discriminator.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    taken = {block: value.double() for block, value in features(blocks=(0, 2)).items()}

    def rms(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    branches = []
    for block in (0, 2):
        w = {k.removeprefix(f"heads.{block}."): v for k, v in discriminator.state_dict().items()}
        tokens = rms(taken[block].flatten(1, 3), w["norm.weight"])
        q = rms(w["query"] @ w["q.weight"].T, w["q_norm.weight"])
        k = rms(tokens @ w["k.weight"].T, w["k_norm.weight"])
        attention = (k @ q[0] / math.sqrt(6)).softmax(-1)
        h = torch.einsum("bn,bnd->bd", attention, tokens @ w["v.weight"].T)
        h = w["query"] + h @ w["out.weight"].T + w["out.bias"]
        hidden = F.gelu(rms(h, w["mlp.0.weight"]) @ w["mlp.1.weight"].T + w["mlp.1.bias"])
        branches.append(h + hidden @ w["mlp.3.weight"].T + w["mlp.3.bias"])
    side_by_side = torch.cat(branches, 1)
    centred = side_by_side - side_by_side.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
    joint = discriminator.joint
    expected = (normed * joint[0].weight + joint[0].bias) @ joint[1].weight.T + joint[1].bias
    torch.testing.assert_close(discriminator(taken), expected, rtol=1e-12, atol=1e-12)


def test_the_query_token_head_starts_as_published():
    with torch.device("meta"):
        d = 2048
        branch = d + 4 * d * d + d + 3 * d + d + 8 * d * d + 5 * d
        count = sum(p.numel() for p in Discriminator((11, 19, 27), d, head="query_token").parameters())
    assert count == 3 * branch + 3 * 3 * d + 1
    head = Discriminator((0,), 256, head="query_token").requires_grad_(False).heads["0"]
    assert float(head.query.std()) == pytest.approx(0.02, rel=0.2)
    assert float(head.q.weight.abs().max()) == pytest.approx(math.sqrt(6 / 512), rel=0.01)
    assert not head.out.bias.any() and not head.mlp[1].bias.any()


def test_published_feature_grid():
    head = Discriminator((0,), 4, width=8).heads["0"]
    assert head[0](torch.zeros(1, 4, 16, 44, 80)).shape == (1, 8, 8, 22, 40)


@pytest.mark.parametrize("head", HEADS)
def test_leading_frames_can_be_left_out(head):
    discriminator = Discriminator((1,), 6, head=head, width=16, t_min=1)
    taken = features()
    before = discriminator(taken)
    taken[1][:, 0] += 5
    assert torch.equal(before, discriminator(taken))
    taken[1][:, 1] += 5
    assert not torch.equal(before, discriminator(taken))


def test_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    a = Discriminator((0,), 6, width=8, seed=3)
    state = torch.random.get_rng_state()
    b = Discriminator((0,), 6, width=8, seed=3)
    assert torch.equal(state, torch.random.get_rng_state()), "the global generator is left alone"
    c = Discriminator((0,), 6, width=8, seed=4)
    assert torch.equal(a.heads["0"][0].weight, b.heads["0"][0].weight)
    assert not torch.equal(a.heads["0"][0].weight, c.heads["0"][0].weight)


def test_bf16_heads_give_fp32_logits():
    assert Discriminator((1,), 6, width=16).bfloat16()(features()).dtype == torch.float32


@pytest.mark.parametrize(
    "head, grid",
    [
        ("conv3d", (1, 4, 4)),
        ("attention", (3, 3, 4)),
        ("attention", (1, 4, 4)),  # one position is left, of which normalisation leaves nothing
        ("conv2d", (3, 1, 4)),
        ("spatial_temporal", (1, 4, 4)),
    ],
)
def test_too_small_a_grid_is_refused(head, grid):
    with pytest.raises(ValueError, match="too small"):
        Discriminator((1,), 6, head=head, width=16)(features(grid=grid))


@pytest.mark.parametrize("head, grid", [("attention", (1, 4, 8)), ("spatial_temporal", (2, 2, 2))])
def test_the_smallest_grids_are_judged(head, grid):
    assert Discriminator((1,), 6, head=head, width=16)(features(grid=grid)).isfinite().all()


def test_groups_of_one_value_are_refused():
    """Normalised they would be zero, and the head deaf to its features."""
    with pytest.raises(
        ValueError, match=r"8 groups of its 8 channels have one value each.* fewer head_groups"
    ):
        Discriminator((1,), 6, head="conv2d", width=8)(features(grid=(3, 2, 2)))
    assert Discriminator((1,), 6, head="conv2d", width=8, groups=4)(features(grid=(3, 2, 2))).any()
    with pytest.raises(ValueError, match=r"the attention head has its own.* needs larger features"):
        Discriminator((1,), 6, head="attention", width=8)(features(grid=(1, 4, 4)))


def test_bad_heads_are_refused():
    with pytest.raises(ValueError, match="choose one of conv3d"):
        Discriminator((0,), 6, head="mlp")
    with pytest.raises(ValueError, match="head width 10 must be a multiple of 4, the heads of its attention"):
        Discriminator((0,), 6, head="attention", width=10)
    with pytest.raises(ValueError, match="multiple of 8"):
        Discriminator((0,), 6, width=20)

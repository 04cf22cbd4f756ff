"""Discriminator heads on teacher features."""

import pytest
import torch

from cosmos_distill.models.heads import HEADS, Discriminator


def features(batch=2, grid=(3, 4, 4), channels=6, blocks=(1,)):
    generator = torch.Generator().manual_seed(0)
    return {b: torch.randn(batch, *grid, channels, generator=generator) for b in blocks}


@pytest.mark.parametrize("head", HEADS)
def test_one_logit_per_sample_and_block(head):
    discriminator = Discriminator((2, 0), 6, head=head, width=16)
    assert discriminator.blocks == (0, 2)
    taken = {block: value.requires_grad_() for block, value in features(blocks=(0, 2)).items()}
    logits = discriminator(taken)
    assert logits.shape == (2, 2)
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
    "head, grid", [("conv3d", (1, 4, 4)), ("attention", (3, 3, 4)), ("conv2d", (3, 1, 4))]
)
def test_too_small_a_grid_is_refused(head, grid):
    with pytest.raises(ValueError, match="too small"):
        Discriminator((1,), 6, head=head, width=16)(features(grid=grid))


def test_bad_heads_are_refused():
    with pytest.raises(ValueError, match="choose one of conv3d"):
        Discriminator((0,), 6, head="mlp")
    with pytest.raises(ValueError, match="multiple of 8"):
        Discriminator((0,), 6, width=20)

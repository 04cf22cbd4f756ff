"""Autoencoding: what each term of the loss sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cosmos_distill import methods
from cosmos_distill.config import EDM, Optim
from cosmos_distill.data.batch import Batch
from cosmos_distill.diffusion import build_schedule
from cosmos_distill.methods import Noise
from cosmos_distill.methods.autoencoder import Autoencoding

OPTIM = Optim(lr=1e-3)


class Copy(nn.Module):
    """Codes a clip as it is, and adds ``change`` to what it decodes."""

    def __init__(self, change: torch.Tensor | float = 0.0) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.as_tensor(change))
        self.seen: list[torch.Tensor] = []

    def encode(self, x):
        self.seen.append(x)
        return x

    def decode(self, z):
        return z + self.change


def batch(count: int = 64) -> Batch:
    latents = torch.rand(count, 3, 5, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rest = torch.zeros(count, 4, 1)
    tensors = {"latents": latents, "hint": torch.full_like(latents, 5.0), "text": rest, "negative_text": rest}
    return Batch.of(0, tensors | {"fps": torch.ones(count), "padding_mask": torch.zeros(count, 1, 8, 12)})


def losses(network: nn.Module, config: Autoencoding, step: int = 0) -> dict[str, torch.Tensor]:
    method = methods.build(config, lambda role: network, build_schedule(EDM(sigma_data=1.0)))
    data = batch()
    return method.losses(data, step, Noise(0, step, 0, len(data)))


NAMES = ("loss/pixels", "loss/slopes", "loss/motion", "loss/strength")


def test_a_perfect_tokenizer_has_no_loss_but_its_size():
    found = losses(Copy(), Autoencoding(latent_noise=0.0, controls=0.0, student=OPTIM))
    for name in NAMES:
        assert found[name].shape == (64,) and found[name].abs().max() == 0
    torch.testing.assert_close(found["total"], 1e-4 * found["loss/size"])


@pytest.mark.parametrize(
    "change, seen",
    [
        (torch.full((1, 1, 1, 1, 1), 0.1), {"loss/pixels"}),
        (torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1), {"loss/pixels", "loss/motion"}),
        (torch.linspace(0, 1, 12).view(1, 1, 1, 1, 12), {"loss/pixels", "loss/slopes"}),
        (torch.linspace(0, 1, 8).view(1, 1, 1, 8, 1), {"loss/pixels", "loss/slopes"}),
    ],
)
def test_each_term_sees_its_own_errors(change, seen):
    found = losses(Copy(change), Autoencoding(latent_noise=0.0, controls=0.0, student=OPTIM))
    for name in NAMES[:3]:
        assert (found[name].min() > 1e-3) == (name in seen), name
    parts = sum(found[name] for name in NAMES)
    torch.testing.assert_close(found["total"], parts + 1e-4 * found["loss/size"])


class Faded(Copy):
    """Decodes at a share of the contrast."""

    def decode(self, z):
        return z * self.change


class Moved(Copy):
    """Decodes four pixels to the side: the right detail in the wrong place."""

    def decode(self, z):
        return z.roll(4, dims=-1) + self.change


def test_strength_sees_fading_and_not_where_detail_lies():
    config = Autoencoding(latent_noise=0.0, controls=0.0, student=OPTIM)
    faded, moved = losses(Faded(0.5), config), losses(Moved(), config)
    assert moved["loss/pixels"].min() > 2 * faded["loss/pixels"].max()
    assert faded["loss/strength"].min() > 5 * moved["loss/strength"].max()


def test_a_gradient_comes_through_what_does_not_move():
    network = Copy(0.0)
    method = methods.build(
        Autoencoding(latent_noise=0.0, controls=0.0, student=OPTIM),
        lambda role: network,
        build_schedule(EDM(sigma_data=1.0)),
    )
    data = batch(2)
    data.latents = torch.zeros_like(data.latents)
    method.losses(data, 0, Noise(0, 0, 0, 2))["total"].sum().backward()
    assert network.change.grad.isfinite()


def test_latents_are_decoded_with_noise():
    found = losses(Copy(), Autoencoding(latent_noise=0.3, controls=0.0, student=OPTIM))
    assert found["loss/pixels"].mean().item() == pytest.approx(0.09, rel=0.02)


def test_a_share_of_the_samples_is_the_control():
    network = Copy()
    losses(network, Autoencoding(controls=0.25, student=OPTIM))
    controls = (network.seen[0] == 5.0).flatten(1).all(1)
    assert 6 <= int(controls.sum()) <= 26
    found = losses(Copy(0.1), Autoencoding(controls=0.25, control_weight=0.0, student=OPTIM))
    assert torch.equal(found["total"] == 0, controls)
    again = Copy()
    losses(again, Autoencoding(controls=0.25, student=OPTIM))
    assert torch.equal(again.seen[0], network.seen[0])


@pytest.mark.parametrize(
    "wrong", [{"controls": 1.5}, {"controls": -0.1}, {"latent_noise": -1.0}, {"motion": -1.0}]
)
def test_senseless_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="must be a finite number from 0"):
        Autoencoding(student=OPTIM, **wrong)

"""The denoise seam: preconditioning, conditioning frames, dtypes."""

import numpy
import pytest
import torch

from cosmos_distill.config import Guidance
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.methods.denoiser import Denoiser, guided
from cosmos_distill.models.common.given import augment_noise
from tests.methods.fake_network import CHANNELS, FakeNetwork, make_batch

SIGMA = torch.tensor([0.7, 3.0])


def noisy(batch):
    return batch.latents + SIGMA[:, None, None, None, None] * batch.noise


def test_x0_is_the_preconditioned_output(schedule, batch):
    network = FakeNetwork()
    x0 = Denoiser(network, schedule)(noisy(batch), SIGMA, batch.conditioning)
    call = network.calls[0]
    torch.testing.assert_close(call.c_noise, SIGMA.log() / 4)
    torch.testing.assert_close(call.x, noisy(batch) / (SIGMA**2 + 0.25).sqrt()[:, None, None, None, None])
    told = {
        "hint": batch.conditioning.hint,
        "padding_mask": batch.conditioning.padding_mask,
        "fps": batch.conditioning.fps,
    }
    raw = network(call.x, call.c_noise, batch.conditioning.text, **told)
    total = (SIGMA**2 + 0.25)[:, None, None, None, None]
    expected = 0.25 / total * noisy(batch) + SIGMA[:, None, None, None, None] * 0.5 / total.sqrt() * raw
    torch.testing.assert_close(x0, expected)


def test_given_frames_enter_almost_clean_and_come_back_exact(schedule, batch):
    network = FakeNetwork()
    frames = torch.tensor([2, 1])
    x_t = noisy(batch)
    x0 = Denoiser(network, schedule)(x_t, SIGMA, batch.given(frames))
    c_in = (0.001**2 + 0.25) ** -0.5
    scaled = x_t / (SIGMA**2 + 0.25).sqrt()[:, None, None, None, None]
    official = torch.from_numpy(numpy.random.RandomState(1).standard_normal((1, *batch.latents.shape[1:])))
    augmented = (batch.latents + 0.001 * official.float()) * c_in
    call = network.calls[0]
    for sample, count in enumerate(frames.tolist()):
        torch.testing.assert_close(call.x[sample, :, :count], augmented[sample, :, :count])
        torch.testing.assert_close(call.x[sample, :, count:], scaled[sample, :, count:])
        assert torch.equal(x0[sample, :, :count], batch.latents[sample, :, :count])
        assert not torch.isclose(x0[sample, :, count:], batch.latents[sample, :, count:]).any()
        marked = call.condition_mask[sample, 0].flatten(1)
        assert marked[:count].eq(1).all() and marked[count:].eq(0).all()
    assert call.condition_mask.shape == (2, 1, *x_t.shape[2:])


def test_no_given_frame_costs_nothing_and_changes_nothing(schedule, batch):
    network = FakeNetwork()
    denoiser = Denoiser(network, schedule)
    none = batch.given(torch.zeros(2, dtype=torch.int64))
    assert none.given_frames is None and none.clean is None
    x0 = denoiser(noisy(batch), SIGMA, none)
    assert network.calls[0].condition_mask is None
    mixed = batch.given(torch.tensor([0, 1]))
    assert torch.equal(x0[0], denoiser(noisy(batch), SIGMA, mixed)[0]), "a neighbour's frames change nothing"


def test_frames_are_off_at_and_below_the_augment_sigma(schedule, batch):
    network = FakeNetwork()
    condition = batch.given(torch.tensor([1, 1]))
    Denoiser(network, schedule)(noisy(batch), torch.tensor([0.001, 0.01]), condition)
    assert network.calls[0].condition_mask.flatten(1).sum(1).tolist() == [0, 16]


def test_frames_need_their_latent(batch):
    with pytest.raises(ValueError, match="clean latent"):
        Conditioning(text=batch.conditioning.text, given_frames=torch.tensor([1, 1]))


def test_bf16_networks_leave_everything_else_in_fp32(schedule, batch):
    network = FakeNetwork().bfloat16()
    x0, features = Denoiser(network, schedule).with_features(
        noisy(batch), SIGMA, batch.given(torch.tensor([1, 0])), (1,)
    )
    call = network.calls[0]
    narrow = (call.x, call.text, call.hint, call.condition_mask, call.padding_mask)
    assert {t.dtype for t in narrow} == {torch.bfloat16}
    assert x0.dtype == call.c_noise.dtype == call.fps.dtype == torch.float32
    assert features[1].dtype == torch.bfloat16
    assert torch.equal(x0[0, :, 0], batch.latents[0, :, 0]), "given frames never pass through bf16"


def test_fp64_stays_fp64(schedule):
    batch = make_batch(dtype=torch.float64)
    x0 = Denoiser(FakeNetwork().double(), schedule)(
        batch.noise, SIGMA.double(), batch.given(torch.tensor([1, 1]))
    )
    assert x0.dtype == torch.float64


def test_features_alone_stop_early(schedule, batch):
    network = FakeNetwork()
    denoiser, condition = Denoiser(network, schedule), batch.conditioning
    features = denoiser.features(noisy(batch), SIGMA, condition, (0,))
    assert list(features) == [0] and features[0].shape == (2, 3, 4, 4, 16)
    assert network.calls[0].features_only
    x0, same = denoiser.with_features(noisy(batch), SIGMA, condition, (0,))
    assert torch.equal(features[0], same[0])
    assert torch.equal(x0, denoiser(noisy(batch), SIGMA, condition))


def test_a_network_may_say_in_which_type_it_takes_its_inputs(schedule, batch):
    """Its first parameter may be one that is kept in another, as in diffusers' Wan."""
    network = FakeNetwork().bfloat16()
    network.enter.float()
    network.dtype = torch.bfloat16
    with pytest.raises(RuntimeError):
        Denoiser(network, schedule)(noisy(batch), SIGMA, batch.conditioning)
    assert network.calls[0].text.dtype == torch.bfloat16


def test_guided_keeps_frames_and_control_in_both_branches(schedule, batch):
    network = FakeNetwork()
    denoiser = Denoiser(network, schedule)
    condition = batch.given(torch.tensor([1, 2]))
    x0 = guided(denoiser, condition, Guidance(2, "standard"))(noisy(batch), SIGMA)
    conditional, unconditional = network.calls
    assert torch.equal(conditional.text, batch.conditioning.text) and torch.equal(
        unconditional.text, batch.conditioning.negative_text
    )
    assert torch.equal(conditional.condition_mask, unconditional.condition_mask)
    assert torch.equal(conditional.hint, unconditional.hint)
    cond = denoiser(noisy(batch), SIGMA, condition)
    uncond = denoiser(noisy(batch), SIGMA, condition.unconditional("kept"))
    torch.testing.assert_close(x0, 2 * cond - uncond)
    network.calls.clear()
    guided(denoiser, condition, Guidance(1, "standard"))(noisy(batch), SIGMA)
    assert len(network.calls) == 1, "guidance that is off is not evaluated"


def test_augment_noise_is_fixed_whatever_the_global_state():
    torch.manual_seed(3)
    numpy.random.seed(3)
    shape = (CHANNELS, 3, 4, 4)
    first = augment_noise(shape, "cpu").clone()
    augment_noise.cache_clear()
    torch.manual_seed(4)
    numpy.random.seed(4)
    assert torch.equal(first, augment_noise(shape, "cpu"))

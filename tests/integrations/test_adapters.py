"""diffusers' networks behind the seam: Cosmos against our own network, Wan as one that is nothing like it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import lanes

lanes.require("diffusers")

from diffusers import WanTransformer3DModel  # noqa: E402

from cosmos_distill import (  # noqa: E402
    DMD2,
    EDM,
    Denoising,
    FewStep,
    Grid,
    Guidance,
    LogNormal,
    Optim,
    Refusal,
    ShiftedTime,
    Trainer,
    TrigFlow,
    distill,
    sample,
)  # fmt: skip
from cosmos_distill.data import given  # noqa: E402
from cosmos_distill.diffusion import build_schedule  # noqa: E402
from cosmos_distill.integrations.diffusers import WanAdapter, adapt  # noqa: E402
from cosmos_distill.methods.denoiser import Denoiser  # noqa: E402
from cosmos_distill.models.common import weights  # noqa: E402
from cosmos_distill.train.log import read  # noqa: E402
from tests.integrations.twins import PREDICT, SHAPE, TRANSFER, ours, samples, theirs, wan  # noqa: E402

LR = 1e-3
OPTIM = Optim(lr=LR, eps=1e-4)  # of Adam's steps, those of gradients that are rounding alone stay small
TRAINER = Trainer(max_steps=3, global_batch=4, micro_batch=2, log_every=1)
FORMS = {
    "EDM": (TRANSFER, EDM(), LogNormal(), Grid()),
    "rectified flow": (PREDICT, TrigFlow(), ShiftedTime(), ShiftedTime()),
}
METHODS = ("denoising", "dmd2")


def assert_near(one: torch.Tensor, other: torch.Tensor, name: str, most: float) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=most, msg=lambda text: f"{name}: {text}")


def method(name: str, form: str) -> Any:
    _, _, teacher_levels, levels = FORMS[form]
    if name == "denoising":
        return Denoising(levels=teacher_levels, condition_frames=(0.5, 0.5), student=OPTIM)
    assert not isinstance(levels, LogNormal)
    return DMD2(
        sampler=FewStep(1 if form == "EDM" else 2), levels=levels, guidance=Guidance(2.0), gan_weight=0.1,
        gan_features="teacher" if form == "EDM" else "fake_score", feature_blocks=(0, 1), head="conv2d",
        head_width=16, student_update_freq=2, student=OPTIM, fake_score=OPTIM, discriminator=OPTIM,
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", METHODS)
def test_three_optimiser_steps_are_those_of_our_network(name: str, form: str, tmp_path: Path) -> None:
    config, schedule, *_ = FORMS[form]
    data = samples(config.text_channels)
    found, logs = {}, {}
    start = ours(config, 1).state_dict()
    for kind in ("ours", "theirs"):
        student, teacher = ours(config, 1), ours(config, 2)
        pair: tuple[Any, Any] = (student, teacher) if kind == "ours" else (theirs(student), theirs(teacher))
        result = distill(
            pair[0], None if name == "denoising" else pair[1], method(name, form), data, tmp_path / kind,
            trainer=TRAINER, schedule=schedule,
        )  # fmt: skip
        assert result.training is not None
        found[kind], logs[kind] = load_file(result.training.student), read(tmp_path / kind / "log.jsonl")
    stripped = {key.removeprefix("network."): value for key, value in found["theirs"].items()}
    as_ours = weights.from_diffusers(stripped)
    assert as_ours.keys() == found["ours"].keys()
    for key, value in found["ours"].items():
        moved = float((value - start[key]).abs().max())
        assert_near(as_ours[key], value, key, 1e-5)
        assert moved > LR / 2 or "text_projection" in key, f"{key} has hardly moved: nothing was compared"
    for one, other in zip(logs["ours"], logs["theirs"], strict=True):
        for term in [key for key in one if key.startswith("loss/")]:
            assert other[term] == pytest.approx(one[term], rel=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_features_by_hooks_are_our_blocks(form: str) -> None:
    config, schedule, *_ = FORMS[form]
    network = ours(config)
    batch = given.source_of(samples(config.text_channels), 0).batch(0, 3)
    conditioning = batch.given(torch.tensor([0, 1, 2]))
    levels = build_schedule(schedule)
    t = torch.tensor([0.3, 0.9, 1.4])
    both = [Denoiser(n, levels) for n in (network, theirs(network))]
    x0, expected = both[0].with_features(batch.latents, t, conditioning, (0, 1))
    twin, features = both[1].with_features(batch.latents, t, conditioning, (0, 1))
    torch.testing.assert_close(twin, x0, rtol=1e-4, atol=1e-5)
    early = both[1].features(batch.latents, t, conditioning, (0,))
    assert list(early) == [0] and torch.equal(early[0], features[0])
    for block in (0, 1):
        assert features[block].shape == (3, 3, 4, 4, config.width)
        torch.testing.assert_close(features[block], expected[block], rtol=1e-4, atol=1e-4)


def test_features_stop_the_network_and_take_its_hooks_off_again() -> None:
    adapter, x = wan(), torch.randn(2, *SHAPE)
    called: list[int] = []
    for number, block in enumerate(adapter.network.blocks):
        block.register_forward_hook(lambda *_, number=number: called.append(number))
    told = {"c_noise": torch.tensor([0.2, 0.7]), "text": torch.randn(2, 5, 24)}
    out, found = adapter(x, **told, features=(0,), features_only=True)
    assert out is None and list(found) == [0] and called == [0]
    out, found = adapter(x, **told, features=(1, 0))
    assert out.shape == x.shape and sorted(found) == [0, 1]
    assert all(len(block._forward_hooks) == 1 for block in adapter.network.blocks)
    found[1].sum().backward()
    assert adapter.network.blocks[0].attn1.to_q.weight.grad is not None


# Wan

WAN = DMD2(
    sampler=FewStep(4), levels=ShiftedTime(), guidance=Guidance(2.0), condition_frames=(1.0,), gan_weight=0.1,
    head_width=16, student_update_freq=2, student=OPTIM, fake_score=OPTIM, discriminator=OPTIM,
)  # fmt: skip


def test_wan_is_told_its_own_times_and_predicts_a_velocity() -> None:
    """Against the definition of rectified flow, of which the adapter knows nothing."""
    adapter = wan()
    batch = given.source_of(samples(24), 0).batch(0, 2)
    levels = build_schedule(adapter.schedule)
    tau = torch.tensor([0.25, 0.8], dtype=torch.float64)
    t, wide = levels.from_tau(tau), tau.float()[:, None, None, None, None]
    eps = torch.randn_like(batch.latents)
    flow = (1 - wide) * batch.latents + wide * eps
    alpha, sigma = (f.float()[:, None, None, None, None] for f in levels.noising(t))
    x0 = Denoiser(adapter, levels)(alpha * batch.latents + sigma * eps, t, batch.conditioning)
    with torch.no_grad():
        velocity = adapter.network(flow, 1000 * tau.float(), batch.conditioning.text, return_dict=False)[0]
    torch.testing.assert_close(x0, flow - wide * velocity, rtol=1e-4, atol=1e-4)


def test_given_frames_of_wan_have_a_time_of_their_own() -> None:
    adapter = wan(given_frames=True)
    batch = given.source_of(samples(24), 0).batch(0, 2)
    seen: list[Any] = []
    adapter.network.register_forward_pre_hook(lambda _, args: seen.append(args))
    levels = build_schedule(adapter.schedule)
    t = levels.from_tau(torch.tensor([0.5, 0.75], dtype=torch.float64))
    x0 = Denoiser(adapter, levels)(torch.randn_like(batch.latents), t, batch.given(torch.tensor([1, 0])))
    latent, times = seen[0][:2]
    assert times.shape == (2, 3 * 4 * 4), "one for every token"
    torch.testing.assert_close(times[0, :16], torch.full((16,), 0.1), rtol=1e-3, atol=0)
    torch.testing.assert_close(times[0, 16:], torch.full((32,), 500.0))
    torch.testing.assert_close(times[1], torch.full((48,), 750.0))
    assert torch.equal(latent[0, :, 0], batch.latents[0, :, 0]) and torch.equal(x0[0, :, 0], latent[0, :, 0])


def test_wan_learns_is_saved_by_itself_and_samples_the_same(tmp_path: Path) -> None:
    student = wan(1)
    result = distill(student, wan(2), WAN, samples(24), tmp_path / "run", trainer=TRAINER)
    student.save_pretrained(tmp_path / "saved")
    again = WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(tmp_path / "saved"))
    again.load_state_dict(load_file(tmp_path / "saved" / "diffusion_pytorch_model.safetensors"))
    prompt = {"text": samples(24)[0]["text"][None]}
    drawn = sample(result, prompt, SHAPE, seed=2)
    assert torch.equal(drawn, sample(adapt(again), prompt, SHAPE, sampler=FewStep(4), seed=2))
    assert not torch.allclose(drawn, sample(wan(1), prompt, SHAPE, sampler=FewStep(4), seed=2))


def test_denoising_teaches_wan(tmp_path: Path) -> None:
    """It is trained, and not only moved: the loss on four clips falls."""
    learn = Denoising(levels=ShiftedTime(), condition_frames=(1.0,), student=Optim(lr=3e-3))
    trainer = Trainer(max_steps=40, global_batch=8, micro_batch=8, log_every=1)
    distill(wan(), None, learn, samples(24, 4), tmp_path, trainer=trainer)
    losses = [line["loss/denoising"] for line in read(tmp_path / "log.jsonl")]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize("made", [wan, lambda: theirs(ours(TRANSFER))])
def test_gradient_checkpointing_changes_no_bit_and_reaches_every_role(made: Any, tmp_path: Path) -> None:
    levels = ShiftedTime() if made is wan else Grid()
    some = replace(WAN, levels=levels)
    plain, checkpointed = made(), made()
    data = samples(24)
    distill(plain, made(), some, data, tmp_path / "plain", trainer=TRAINER)
    distill(checkpointed, made(), some, data, tmp_path / "full",
            trainer=replace(TRAINER, activation_checkpointing="full"))  # fmt: skip
    assert checkpointed.network.is_gradient_checkpointing and not plain.network.is_gradient_checkpointing
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert_near(one, other, name, 1e-6)
    with pytest.raises(Refusal, match="'none' or 'full'"):
        distill(made(), made(), some, data, tmp_path / "selective",
                trainer=replace(TRAINER, activation_checkpointing="selective"))  # fmt: skip


def test_what_a_network_cannot_read_is_refused() -> None:
    network = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=36, out_channels=16, text_dim=24,
        freq_dim=32, ffn_dim=64, num_layers=1, rope_max_seq_len=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"36 channels for a latent of 16.*Adapter of your own"):
        WanAdapter(network)
    with pytest.raises(TypeError, match="Linear has no adapter here"):
        adapt(torch.nn.Linear(2, 2))
    x = torch.randn(1, *SHAPE)
    with pytest.raises(ValueError, match="takes no control"):
        wan()(x, torch.ones(1), torch.randn(1, 5, 24), hint=x)
    batch = given.source_of(samples(24), 0).batch(0, 1)
    with pytest.raises(ValueError, match="cannot be given frames"):
        Denoiser(wan(), build_schedule(TrigFlow()))(x, torch.ones(1), batch.given(torch.tensor([1])))
    half = wan()
    half.network.to(torch.bfloat16)
    half.network.scale_shift_table.data = half.network.scale_shift_table.data.float()
    assert half.dtype == torch.bfloat16


# Several ranks


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Students of one rank, and of two that share by data."""
    from tests.integrations import ranks_worker

    folder = tmp_path_factory.mktemp("adapters")
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, ranks_worker.__file__, str(folder)],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("network", ["wan", "cosmos"])
@pytest.mark.parametrize("data", ["replicated", "sharded_optimizer", "fsdp"])
def test_two_ranks_give_the_student_of_one(
    network: str, data: str, worlds: dict[str, dict[str, Any]]
) -> None:
    alone, both = worlds[f"{network}-alone"], worlds[f"{network}-{data}"]
    assert alone.keys() == both.keys()
    for name, value in alone.items():
        assert_near(both[name], value, name, 1e-6)
    saved = worlds[f"{network}-{data}-saved"]
    assert all(torch.equal(saved[name.removeprefix("network.")], value) for name, value in both.items())


def test_ranks_start_from_the_weights_of_the_first(worlds: dict[str, dict[str, Any]]) -> None:
    """Those of the other rank were made with another seed."""
    assert json.loads(bytes(worlds["said"]["text"].tolist()))["differed"]

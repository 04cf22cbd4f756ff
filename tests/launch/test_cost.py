"""Counted work: as many calls of each network as the methods make, as many operations as torch counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cost as pages
from cosmos_distill import diffusion, models
from cosmos_distill.config import ONE_STEP, FewStep
from cosmos_distill.launch.cost import FixedSteps, count_step
from cosmos_distill.launch.devices import GPUS
from cosmos_distill.launch.updates import clip, update
from cosmos_distill.methods import base

LATENT = (16, 3, 8, 8)


def smoke(name):
    """Configuration of the network, schedule and DMD2 of a recipe at its smallest scale."""
    recipe = pages.load(name).recipe(scale="smoke")
    return recipe.network, recipe.schedule, recipe.stages["dmd2"].method


TRANSFER1, PREDICT25 = "transfer1_kd_dmd2", "predict25_dmd2_4step"


@pytest.mark.parametrize(
    ("name", "changes", "student", "critic"),
    [
        # (role, with a graph): calls; the specification's passes of both recipes
        (
            TRANSFER1,
            {},
            {("student", True): 1, ("teacher", True): 1, ("teacher", False): 1, ("fake_score", False): 1},
            {("student", False): 1, ("fake_score", True): 1, ("teacher", False): 2},
        ),
        (
            TRANSFER1,
            {"gan_weight": 0.0},
            {("student", True): 1, ("teacher", False): 2, ("fake_score", False): 1},
            {("student", False): 1, ("fake_score", True): 1},
        ),
        (
            TRANSFER1,
            {"gan_features": "fake_score"},
            {("student", True): 1, ("teacher", False): 2, ("fake_score", True): 1},
            {("student", False): 1, ("fake_score", True): 2},
        ),
        (
            PREDICT25,
            {},
            {("student", True): 1, ("student", False): 1.5, ("teacher", False): 2, ("fake_score", False): 1},
            {("student", False): 2.5, ("fake_score", True): 1},
        ),
        (
            PREDICT25,
            {"sampler": ONE_STEP},
            {("student", True): 1, ("teacher", False): 2, ("fake_score", False): 1},
            {("student", False): 1, ("fake_score", True): 1},
        ),
    ],
)
def test_calls_of_each_network(name, changes, student, critic):
    network, schedule, method = smoke(name)
    method = replace(method, **changes)
    found = update(network, schedule, method, LATENT, checkpointing="none", global_batch=8)
    for count, wanted in ((found.student, student), (found.critic, critic)):
        calls = {key: value for key, value in count.passes.items() if key[0] != "discriminator" and value}
        assert calls == wanted
    assert found.critic_steps == method.student_update_freq - 1


def real_batch(network):
    return clip(network, LATENT).map(lambda value: torch.zeros(value.shape).normal_())


@pytest.mark.parametrize("name", [TRANSFER1, PREDICT25])
@pytest.mark.parametrize("step", [5, 6])  # the student's and the critics'
def test_operations_are_those_that_torch_counts_where_they_are_done(name, step):
    network, schedule, method = smoke(name)

    def made(device):
        def networks(role):
            return models.build(network, device=device, seed=None if device == "meta" else 0)

        return base.build(method, networks, diffusion.build_schedule(schedule))

    counted = count_step(made("meta"), clip(network, LATENT), step, 1)
    torch.manual_seed(0)
    with FlopCounterMode(display=False) as torchs:
        real = made("cpu")
        real.losses(real_batch(network), step, FixedSteps(1))["total"].sum().backward()
    theirs = sum(v for op, v in torchs.get_flop_counts()["Global"].items() if "attention" not in str(op))
    assert counted.total("product").flops == theirs > 0


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_recomputation_is_what_checkpointing_asks_for(checkpointing):
    network, schedule, method = smoke(PREDICT25)
    found = update(network, schedule, method, LATENT, checkpointing=checkpointing, global_batch=8)
    once = update(network, schedule, method, LATENT, checkpointing="none", global_batch=8)
    for count, plain in ((found.student, once.student), (found.critic, once.critic)):
        again = {kind: count.total(kind, "recompute").flops for kind in ("product", "attention")}
        assert (again["product"] > 0) == (checkpointing != "none")
        assert (again["attention"] > 0) == (checkpointing == "full")
        for phase in ("forward", "backward"):
            for kind in ("product", "attention"):
                assert count.total(kind, phase).flops == plain.total(kind, phase).flops
        trained = "student" if count is found.student else "fake_score"
        graph = sum(
            a.flops for k, a in count.work.items() if k.graph and k[:3] == (trained, "forward", "attention")
        )
        assert again["attention"] == (graph if checkpointing == "full" else 0)


def test_attention_costs_two_products_forward_and_five_backward():
    network, schedule, method = smoke(PREDICT25)
    found = update(network, schedule, method, LATENT, checkpointing="none", global_batch=8).critic
    tokens, words = 3 * 4 * 4, network.text_tokens
    forward = 2 * 2 * tokens * (tokens + words) * network.width * network.blocks
    passes = sum(found.passes[role, graph] for role in ("student", "fake_score") for graph in (True, False))
    assert found.total("attention", "forward").flops == passes * forward
    assert found.total("attention", "backward").flops == 2.5 * forward


def test_more_steps_cost_more_and_a_faster_gpu_less():
    network, schedule, method = smoke(PREDICT25)
    one, four = (
        update(network, schedule, replace(method, sampler=s), LATENT, checkpointing="none", global_batch=8)
        for s in (ONE_STEP, FewStep(steps=4))
    )
    gpu = GPUS["h100"]
    assert 0 < one.seconds(gpu) < four.seconds(gpu)
    assert four.seconds(GPUS["b200"]) < four.seconds(GPUS["h200"]) < four.seconds(gpu)
    averaged = update(network, schedule, method, LATENT, checkpointing="none", global_batch=8, ema=True)
    plain = update(network, schedule, method, LATENT, checkpointing="none", global_batch=8)
    parameters = sum(p.numel() for p in models.build(network, device="meta", seed=None).parameters())
    assert averaged.optimizer_bytes - plain.optimizer_bytes == 12 * parameters / 8


@pytest.mark.parametrize("place", ["missing/ratios.json", "", "file/ratios.json"])
def test_where_the_ratios_go_is_looked_at_before_the_work(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pages, "tables", lambda gpu: pytest.fail("the work was begun"))
    monkeypatch.setattr("sys.argv", ["cost", "--json", str(tmp_path / place)])
    with pytest.raises(SystemExit) as ended:
        pages.main()
    assert ended.value.code == 2 and "--json" in capsys.readouterr().err


def test_the_page_shows_what_is_counted():
    """Of one of its models: all would take a while."""
    gpu, name = GPUS["h100"], "transfer1-7b"
    found = pages.updates(pages.MODELS[name], ("official", "default", "SGMD"))
    page = pages.PAGE.read_text(encoding="utf-8")
    for setting, one in found.items():
        student, critic = gpu.seconds(one.student), gpu.seconds(one.critic)
        share = one.seconds(gpu) / found["official"].seconds(gpu)
        row = f"| {student:.1f} | {critic:.1f} x {one.critic_steps} | {one.seconds(gpu):.1f} | {share:.2f} |"
        assert f"| {name}, {setting} {row}" in page, "run python -m benchmarks.cost --write"

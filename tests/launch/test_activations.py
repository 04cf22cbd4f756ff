"""Counted activations are those that a step holds which computes: alone, and as a rank of a layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import cost as pages
from cosmos_distill import diffusion, models
from cosmos_distill.config import Parallel
from cosmos_distill.launch.cost import count_step
from cosmos_distill.launch.updates import clip
from cosmos_distill.methods import base
from cosmos_distill.parallel import groups
from tests.launch.measuring import held
from tests.parallel.layout_run import counted
from tests.parallel.layout_table import Worker
from tests.parallel.layouts import LAYOUTS

KEPT, PEAK = 0.05, 0.10
"""Largest relative difference."""
META = torch.device("meta")


@pytest.mark.parametrize(
    ("name", "scale", "checkpointing"),
    [
        ("transfer1_kd_dmd2", "smoke", "none"),
        ("transfer1_kd_dmd2", "smoke", "full"),
        ("transfer1_kd_dmd2", "smoke", "selective"),
        ("transfer1_kd_dmd2", "mini", "none"),
        ("predict25_dmd2_4step", "mini", "selective"),
    ],
)
def test_one_rank(name, scale, checkpointing):
    recipe = pages.load(name).recipe(scale=scale)
    method = recipe.stages["dmd2"].method

    def made(device):
        def networks(role):
            network = models.build(recipe.network, device=device, seed=None if device == "meta" else 0)
            network.activation_checkpointing = checkpointing
            return network

        return base.build(method, networks, diffusion.build_schedule(recipe.schedule))

    batch = clip(recipe.network, (16, 3, 8, 8))
    on_meta, real = made("meta"), made("cpu")
    for step in (20, 21):  # the student's and the critics'
        found = count_step(on_meta, batch, step).activations
        truth = held(real, batch.map(lambda value: torch.randn(value.shape)), step)
        assert found.kept == pytest.approx(truth.kept, rel=KEPT)
        assert found.peak == pytest.approx(truth.peak, rel=PEAK)
        if checkpointing == "none":  # autograd's word does not reach into what checkpointing keeps
            assert found.kept == pytest.approx(truth.saved, rel=KEPT)


@pytest.mark.parametrize(
    ("parallel", "checkpointing"),
    [
        (Parallel(), "full"),
        (Parallel(tensor=2, sequence=True), "selective"),
        (Parallel(pipeline=2), "none"),
    ],
)
def test_one_block_of_each_kind_stands_for_all(parallel, checkpointing):
    recipe = pages.load("predict25_dmd2_4step").recipe(scale="mini")
    method = replace(recipe.stages["dmd2"].method, gan_weight=0.1, feature_blocks=(1,))

    def networks(role):
        network = models.build(recipe.network, device=META, seed=None)
        network.activation_checkpointing = checkpointing
        return network

    with groups.imagined(parallel, device=META):
        made = base.build(method, networks, diffusion.build_schedule(recipe.schedule))
        batch = clip(recipe.network, (16, 3, 8, 8), samples=2)
        for step in (20, 21):
            every, one = (count_step(made, batch, step, every_block=each) for each in (True, False))
            assert one.activations.kept == pytest.approx(every.activations.kept, rel=0.01)
            assert one.activations.peak == pytest.approx(every.activations.peak, rel=0.01)
            assert one.activations.peak_with_gradients == pytest.approx(
                every.activations.peak_with_gradients, rel=0.03
            )
            assert (one.passes, one.blocks, one.sent) == (every.passes, every.blocks, every.sent)
            assert {key: amount.flops for key, amount in one.work.items()} == {
                key: amount.flops for key, amount in every.work.items()
            }
            assert one.total("memory").bytes == pytest.approx(every.total("memory").bytes, rel=0.02)


@pytest.fixture(scope="module")
def worker():
    with Worker() as process:
        yield process


@pytest.mark.parametrize(
    "layout",
    ["TP2", "TP2 + SP", "CP2 Ulysses", "CP2 ring, recompute selective", "PP2", "PP2 interleaved", "DP2"],
)
def test_a_rank_of_several(worker, layout):
    """Rank 0 of processes that compute, against an imagined one: each kind of parallelism, and by them their
    products."""
    case = "Predict2.5" if "PP2" in layout else "DMD2"
    (truth, *_) = worker.ask(layout, [case], memory=True)[case]["held"]
    found = counted(LAYOUTS[layout], case)
    for phase, (kept, peak) in truth.items():
        assert found[phase].peak == pytest.approx(peak, rel=PEAK)
        assert found[phase].kept == pytest.approx(kept, rel=KEPT)


def test_an_imagined_rank_is_left_again():
    """What a world of one had goes on working, and a failure leaves nothing."""
    network = models.build(pages.load("transfer1_kd_dmd2").recipe(scale="smoke").network, seed=0)
    batch = clip(network.config, (16, 3, 8, 8)).map(lambda value: torch.zeros(value.shape))

    def out():
        with torch.no_grad():
            return network(batch.latents, torch.zeros(1), batch.conditioning.text)

    before = out()
    with (
        pytest.raises(ZeroDivisionError),
        groups.imagined(Parallel(tensor=2, context=2), data=3, device=META),
    ):
        assert (groups.model_group().size(), groups.data_size(), groups.world_group().size()) == (4, 3, 12)
        raise ZeroDivisionError
    assert groups.world_group().size() == 1 and groups.layout() == Parallel()
    torch.testing.assert_close(out(), before, rtol=0, atol=0)

"""On a machine with several accelerators everything of rank n is on its own: nothing is placed on number 0,
as by a thread for a device without an index. And a step waits for nothing but its scalars."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cosmos_distill import cli, diffusion, models, text, tokenizers
from cosmos_distill.config import Data
from cosmos_distill.eval.measure import load, read
from cosmos_distill.eval.views import View
from cosmos_distill.families import preset
from cosmos_distill.launch.updates import clip
from cosmos_distill.methods import base
from cosmos_distill.randomness import Noise
from cosmos_distill.run import networks
from tests.accelerators import Placements, Pretended
from tests.real_formats import text_encoders

RANK = 3
ROOT = Path(__file__).parents[2]
LATENT = (16, 3, 8, 8)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()
    for name in Pretended.NAMES:
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    found.set_device(RANK)
    return found


def vae(device: torch.device) -> None:
    data = Data(tokenizer="mini-cv4x4x4", frames=9, height=16, width=16, source="film")
    kind = tokenizers.find(data.tokenizer)
    tokenizer = kind.build(kind.shipped, device)
    tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 9, 16, 16, dtype=torch.uint8)))


def batch(device: torch.device) -> None:
    one = clip(preset("transfer1-smoke"), LATENT).map(lambda v: torch.zeros(v.shape))  # type: ignore[arg-type]
    one.to(device).given(torch.ones(1, dtype=torch.int64))


def metrics(device: torch.device) -> None:
    video = torch.randint(0, 256, (1, 3, 3, 32, 32), generator=torch.manual_seed(0)).byte()
    names = ["random_frechet", "motion", "motion_correlation", "gradient_energy", "blur_ssim", "motion_steps"]
    found = read(load(names), View(video, View(video), device=device))
    assert all(isinstance(value, torch.Tensor) for value in found.values())


PARTS: dict[str, Callable[[torch.device], None]] = {"VAE": vae, "batch": batch, "metrics": metrics}


@pytest.mark.parametrize("part", PARTS)
def test_what_a_rank_places_is_on_its_own_accelerator(part: str, cuda: Pretended) -> None:
    with Placements() as seen:
        PARTS[part](networks.device())
    assert set(seen.indices) == {RANK}


@pytest.mark.parametrize("part", PARTS)
def test_a_device_without_an_index_is_noticed(part: str, cuda: Pretended) -> None:
    with Placements() as seen:
        PARTS[part](torch.device("cuda"))
    assert None in seen.indices


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A folder of a text encoder; transformers has been imported, which looks at torch.cuda."""
    text_encoders.t5(tmp_path)
    text.build(tmp_path, tokens=8)(["rain"])
    return tmp_path


@pytest.mark.needs("transformers")
def test_the_text_encoder_is_on_its_ranks_accelerator(encoder: Path, cuda: Pretended) -> None:
    for device, wanted in ((networks.device(), {RANK}), (torch.device("cuda"), {None})):
        with Placements() as seen:
            text.build(encoder, device, tokens=8)(["rain"])
        assert set(seen.indices) == wanted


def test_threads_have_the_accelerator_of_the_one_that_started_them(cuda: Pretended) -> None:
    adopt = networks.in_threads()
    cuda.set_device(0)  # as a new thread has it
    with ThreadPoolExecutor(1, initializer=adopt) as pool:
        assert pool.submit(networks.device).result() == torch.device("cuda", RANK)


def test_batches_and_noise_are_sent_without_waiting(cuda: Pretended) -> None:
    with Placements() as seen:
        batch(networks.device())
        Noise(0, 0, 0, 2).normal("x", (2, 2), networks.device())
    assert seen.indices and not seen.waited
    with Placements() as seen:
        torch.zeros(1).to(networks.device())
    assert seen.waited


STEPS = [
    (recipe, step)
    for recipe in ("transfer1_kd_dmd2", "predict25_dmd2_4step", "transfer25_dmd2_4step")
    for step in (5, 6)  # the student's and the critics'
]


def losses(recipe: str, step: int, plant: Callable[[torch.Tensor], Any] = lambda total: None) -> None:
    """Those of a step and their gradients, of tensors without values: whatever reads one fails."""
    made = cli.load(ROOT / "recipes" / f"{recipe}.py").recipe(scale="smoke")
    stage: Any = made.stages["dmd2"]
    config: Any = made.network
    method = base.build(
        stage.method,
        lambda role: models.build(config, device="meta", seed=None),
        diffusion.build_schedule(made.schedule),
    )
    given = replace(clip(config, LATENT), first=step)
    total = method.losses(given, step, Noise(0, step, 0, 1))["total"].sum()
    total.backward()
    plant(total)


@pytest.mark.parametrize(("recipe", "step"), STEPS)
def test_losses_and_gradients_read_nothing_of_the_device(recipe: str, step: int) -> None:
    losses(recipe, step)


@pytest.mark.parametrize("read", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu, bool, float])
def test_reading_a_loss_is_noticed(read: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        losses(*STEPS[0], plant=read)

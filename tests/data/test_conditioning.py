"""One record from the source to the network: a tensor that a family adds is named where it is made and where
it is read, and nowhere between."""

from __future__ import annotations

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cosmos_distill.config import EDM, Data, Guidance
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.data.pairs import PairSource, PairWriter
from cosmos_distill.diffusion import Given, build_schedule
from cosmos_distill.methods import Noise, build
from cosmos_distill.methods.denoiser import Denoiser, guided
from cosmos_distill.methods.kd import KD
from cosmos_distill.tokenizers import build as build_tokenizer

GOLDEN = "ebf6e6de4e99c66e722e19179edaa5cc35872a9b0f7942901458f9ba3439fe94"


class CameraSource(ClipSource):
    """Clips with a camera's pose, which no network of this package knows."""

    def __init__(self, data: Data) -> None:
        self._tokenizer, self._sigma_data = build_tokenizer(data, "cpu"), 0.5
        self.latent_shape = self._tokenizer.latent_shape(data.frames, data.height, data.width)
        self.text_shape = (2, 3)
        self._negative = np.zeros(self.text_shape, np.float32)
        self._size = data.frames, data.height, data.width, 3

    def decoded(self, index: int) -> Decoded:
        random = np.random.default_rng(index)
        return Decoded(
            name=f"clip {index}",
            video=random.integers(0, 256, self._size, np.uint8),
            controls=(),
            text=random.standard_normal(self.text_shape, np.float32),
            fps=24.0,
            extra={
                "camera": random.standard_normal(4, np.float32),
                "negative_camera": np.zeros(4, np.float32),
                "lens": np.array([index]),
            },
        )

    def description(self):
        return {}


class CameraNetwork(nn.Module):
    """A pointwise network that reads the pose."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(4, 1)
        self.seen: list[dict[str, torch.Tensor]] = []

    def give_frames(self, schedule, mask, clean, times):
        return Given(mask, clean / schedule.config.sigma_data, times)

    def forward(self, x, c_noise, text, *, camera, lens, features=(), features_only=False, **others):
        self.seen.append({"text": text, "camera": camera, "lens": lens, **others})
        return x * self.scale(camera)[..., None, None, None]


@pytest.fixture
def batch(mini: Data) -> Batch:
    return CameraSource(mini).batch(3, 4)


def test_a_familys_tensor_goes_from_its_source_through_pairs_to_the_network(tmp_path, mini, batch):
    writer = PairWriter(tmp_path)
    writer.write(replace(batch, first=0, noise=torch.randn_like(batch.latents)))
    source = PairSource(tmp_path, mini, seed=0)
    read = source.batch(0, 4)
    rows = [source.pair(i) for i in range(4)]
    for name, value in batch.conditioning.tensors().items():
        assert torch.equal(read.conditioning.tensors()[name], value[rows]), name
    assert read.conditioning.extra["lens"].dtype == torch.int64
    network = CameraNetwork()
    method = build(KD(condition_frames=(0.5, 0.5)), lambda role: network, build_schedule(EDM()))
    method.losses(read, 0, Noise(0, 0, 0, 4))["total"].sum().backward()
    assert torch.equal(network.seen[0]["camera"], batch.conditioning.extra["camera"][rows])
    assert network.scale.weight.grad is not None and "negative_camera" not in network.seen[0]


def test_its_negative_stands_in_for_it_in_the_unconditional_branch(batch):
    network = CameraNetwork().bfloat16()
    denoiser = Denoiser(network, build_schedule(EDM()))
    guided(denoiser, batch.conditioning, Guidance(2.0))(batch.latents, torch.ones(4))
    conditional, unconditional = network.seen
    assert conditional["camera"].any() and not unconditional["camera"].any()
    assert not unconditional["text"].any() and torch.equal(conditional["lens"], unconditional["lens"])
    assert conditional["camera"].dtype == torch.bfloat16 and conditional["lens"].dtype == torch.int64


def test_text_dropout_drops_whole_samples(batch):
    mixed = batch.conditioning.dropped(torch.tensor([True, False, False, True]))
    for value, own in ((mixed.text, batch.conditioning.text), (mixed.extra["camera"],
                       batch.conditioning.extra["camera"])):  # fmt: skip
        assert not value[[0, 3]].any() and torch.equal(value[[1, 2]], own[[1, 2]])
    assert torch.equal(mixed.extra["lens"], batch.conditioning.extra["lens"])


def test_what_is_stored_and_sent_is_all_there_is(batch):
    noisy = replace(batch, noise=torch.randn_like(batch.latents))
    given = replace(noisy, conditioning=noisy.given(torch.tensor([0, 1, 2, 0])))
    again = Batch.of(given.first, given.tensors(), given.names)
    assert again.tensors().keys() == given.tensors().keys() >= {"noise", "lens", "clean", "given_frames"}
    assert all(torch.equal(again.tensors()[name], value) for name, value in given.tensors().items())
    halves = given.map(lambda value: value[:2])
    assert len(halves) == 2 and halves.conditioning.given_frames.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["latents", "noise"])
def test_further_conditioning_takes_no_name_of_the_batchs_own(name, batch):
    """It would have been stored and sent in the place of that tensor."""
    told = replace(batch.conditioning, extra={name: torch.zeros(len(batch), 1)})
    with pytest.raises(ValueError, match=f"extra: {name} are of the batch itself"):
        replace(batch, conditioning=told)


def test_mistakes_are_named(batch):
    with pytest.raises(ValueError, match="needs negative_text"):
        Conditioning(text=batch.conditioning.text).unconditional("kept")
    with pytest.raises(ValueError, match="extra: fps"):
        Conditioning(text=batch.conditioning.text, extra={"fps": torch.ones(4)})
    camera = torch.ones(4, 2)
    Conditioning(text=batch.conditioning.text, extra={"negative_camera": camera, "camera": camera})
    for name in ("camera", "hint"):
        with pytest.raises(ValueError, match=f"negative_{name} replaces '{name}', which is not there"):
            Conditioning(text=batch.conditioning.text, extra={f"negative_{name}": camera})


def test_a_network_that_does_not_read_a_tensor_says_so(batch):
    class Blind(CameraNetwork):
        def forward(
            self,
            x,
            c_noise,
            text,
            *,
            hint,
            condition_mask,
            padding_mask,
            fps,
            features=(),
            features_only=False,
        ):
            return x

    assert "camera" not in inspect.signature(Blind.forward).parameters
    with pytest.raises(TypeError, match="camera"):
        Denoiser(Blind(), build_schedule(EDM()))(batch.latents, torch.ones(4), batch.conditioning)


def test_pairs_of_earlier_versions_are_written_and_read_as_they_were(tmp_path, mini):
    """The checksum is what the version before this record wrote for the same numbers."""
    ramp = torch.arange(2 * 16 * 3 * 8 * 8).reshape(2, 16, 3, 8, 8) / 7
    text = torch.arange(2 * 8 * 6).reshape(2, 8, 6) / 3
    tensors = {
        "latents": ramp, "hint": -ramp, "text": text, "negative_text": torch.zeros(2, 8, 6),
        "fps": torch.tensor([12.5, 24.0]), "padding_mask": torch.zeros(2, 1, 8, 8), "noise": ramp / 2,
    }  # fmt: skip
    path = PairWriter(tmp_path).write(Batch.of(0, tensors, ("a", "b")))
    assert set(load_file(path)) == set(tensors)
    assert PairSource(tmp_path, mini, seed=0).description()["shards"][path.name] == GOLDEN

"""A network small enough for exact comparisons, with every weight random (also those that start at zero)."""

from functools import partial

import pytest
import torch

from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.common.config import DiTConfig
from cosmos_distill.models.common.network import ControlledDiT
from cosmos_distill.models.predict25.config import Predict25Config
from cosmos_distill.models.transfer1.config import Transfer1Config
from tests.real_formats.networks import randomize

TINY = Transfer1Config(
    width=40, blocks=3, control_blocks=2, heads=2, head_dim=20, adaln_rank=6, text_dim=24, text_tokens=5,
    max_frames=4, max_height=12, max_width=16, hint_widths=(8, 12, 16),
)  # fmt: skip

TINY_PREDICT = Predict25Config(
    width=40, blocks=3, heads=2, head_dim=20, adaln_rank=6, text_dim=24, text_tokens=5,
    text_projection=28, max_frames=4, max_height=12, max_width=16, clean_condition_times=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_network():
    def make(dtype: torch.dtype = torch.float32, seed: int = 1, config: DiTConfig = TINY) -> ControlledDiT:
        network = build(config, dtype=dtype, seed=None)
        randomize(network, seed)
        return network

    return make


@pytest.fixture
def make_predict(make_network):
    """The same of Predict2.5: no control branch, a text projection, other positions."""
    return partial(make_network, config=TINY_PREDICT)


@pytest.fixture
def make_inputs():
    """Keyword arguments of a forward pass; every sample has its own noise level, text, masks and fps."""

    def make(batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        g = torch.Generator().manual_seed(7)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

        t, h, w = 3, 6, 8
        condition = torch.zeros(batch, 1, t, h, w, dtype=dtype)
        padding = torch.zeros(batch, 1, h, w, dtype=dtype)
        for i in range(batch):
            condition[i, :, : 1 + i % 2] = 1
            padding[i, :, h - 1 - i :] = 1
        return {
            "x": randn(batch, 16, t, h, w),
            "c_noise": torch.linspace(-1.2, 1.0955, batch).to(dtype),
            "text": randn(batch, 5, 24),
            "hint": randn(batch, 16, t, h, w),
            "condition_mask": condition,
            "padding_mask": padding,
            "fps": torch.linspace(30, 12, batch),
        }

    return make


@pytest.fixture
def predict_inputs(make_inputs):
    """The same for Predict2.5: a time for every frame, near 0 where the frame is given; no hint."""

    def make(batch: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        inputs = make_inputs(batch, dtype)
        del inputs["hint"], inputs["fps"]
        g = torch.Generator().manual_seed(8)
        given = inputs["condition_mask"][:, 0, :, 0, 0].bool()
        tau = torch.linspace(1, 0.3, batch, dtype=torch.float64)[:, None].where(~given, 1e-4)
        text = torch.randn((batch, 5, 28), generator=g, dtype=torch.float64)
        return inputs | {"c_noise": tau.to(dtype), "text": text.to(dtype)}

    return make


UNUSED = {
    "base_model.net.pos_embedder.seq": torch.arange(8, dtype=torch.float32),
    "base_model.net.accum_video_sample_counter": torch.tensor(12.0),
    "base_model.net.blocks.block0.blocks.0.block.attn.attn_op._extra_state": torch.zeros(
        0, dtype=torch.uint8
    ),
    "base_model.logvar.0.freqs": torch.randn(4, generator=torch.Generator().manual_seed(0)),
    "logvar.1.weight": torch.randn(1, 4, generator=torch.Generator().manual_seed(1)),
    "net.pos_embedder.seq": torch.arange(8, dtype=torch.float32),
    "net.final_layer.linear.weight": torch.randn(64, 40, generator=torch.Generator().manual_seed(2)),
    "net.final_layer.adaLN_modulation.1.weight": torch.full((6, 40), float("nan")),  # nobody reads it
}


@pytest.fixture
def unused():
    return dict(UNUSED)


@pytest.fixture
def merged(make_network):
    """Tensors of a merged teacher file, in its names, with all that official files carry."""
    network = make_network(torch.bfloat16)
    return weights.to_official(network.state_dict(), network.family) | UNUSED

"""Tensor parallelism over two ranks gives what one rank gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.transfer1.config import PRESETS
from tests.parallel import tensor_worker


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Folder the workers wrote to, and the inputs they had."""
    folder = tmp_path_factory.mktemp("tensor")
    network = build(PRESETS["transfer1-smoke"], seed=1)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g))
    extra = {"net.pos_embedder.seq": torch.arange(3.0)}
    weights.save_official(network, folder / "in.safetensors", extra)
    inputs = {
        "x": torch.randn(2, 16, 2, 4, 6, generator=g),
        "c_noise": torch.tensor([0.3, -0.7]),
        "text": torch.randn(2, 8, 64, generator=g),
        "hint": torch.randn(2, 16, 2, 4, 6, generator=g),
        "fps": torch.tensor([24.0, 12.0]),
    }
    save_file(inputs, folder / "inputs")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, tensor_worker.__file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, inputs


def ranks(folder: Path, part: str) -> list[dict[str, torch.Tensor]]:
    return [
        {
            k.removeprefix(part): v
            for k, v in load_file(folder / f"rank{r}.safetensors").items()
            if k.startswith(part)
        }
        for r in range(2)
    ]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()) + 1e-9)


def test_column_and_row_linear(two_ranks):
    one, two = ranks(two_ranks[0], "linear/")
    expected = tensor_worker.run_linears()
    assert one["hidden"].shape == (5, 4)
    for whole in ("out", "grad_x"):
        close(one[whole], expected[whole])
        assert torch.equal(one[whole], two[whole])
    for cut, dim in (("hidden", 1), ("grad_a", 0), ("grad_b", 1)):
        close(torch.cat([one[cut], two[cut]], dim), expected[cut])


def test_network_with_heads_split_over_two_ranks(two_ranks):
    folder, inputs = two_ranks
    one, two = ranks(folder, "network/")
    expected = tensor_worker.run_network(folder / "in.safetensors", inputs)
    split = tensor_worker.split_dims(build(PRESETS["transfer1-smoke"], seed=None))
    assert len(split) == 3 * 10  # q, k, v, out twice; up, down: in two base blocks and a control block
    assert one.keys() == expected.keys() == {"out", "grad_x", *split}
    for whole in ("out", "grad_x"):
        close(one[whole], expected[whole])
        close(two[whole], expected[whole])
    for name, dim in split.items():
        assert one[name].shape[dim] * 2 == expected[name].shape[dim]
        close(torch.cat([one[name], two[name]], dim), expected[name])


def test_initial_weights_do_not_depend_on_the_layout(two_ranks):
    whole = build(PRESETS["transfer1-smoke"], seed=5).state_dict()
    gathered = load_file(two_ranks[0] / "initial.safetensors")
    assert gathered.keys() == whole.keys()
    assert all(torch.equal(gathered[k], whole[k]) for k in whole)


def test_official_round_trip_through_two_ranks(two_ranks):
    before, after = (load_file(two_ranks[0] / f"{name}.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)

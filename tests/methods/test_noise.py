"""Randomness that depends on (seed, step, sample, name) and on nothing else."""

import torch

from cosmos_distill.methods.base import Noise


def draws(noise):
    return {
        "normal": noise.normal("a", (3, 2)),
        "scalar": noise.normal("a", ()),
        "uniform": noise.uniform("a"),
        "integers": noise.integers("a", 0, 1000),
    }


def test_micro_batches_and_ranks_see_the_same_values():
    whole = draws(Noise(seed=7, step=3, first=10, count=6))
    parts = [
        draws(Noise(seed=7, step=3, first=first, count=count)) for first, count in ((10, 1), (11, 3), (14, 2))
    ]
    for name, values in whole.items():
        assert torch.equal(values, torch.cat([part[name] for part in parts]))


def test_order_and_global_state_do_not_matter():
    noise = Noise(seed=0, step=0, first=0, count=2)
    torch.manual_seed(1)
    first = noise.normal("a", (4,))
    noise.normal("b", (4,))
    torch.manual_seed(2)
    assert torch.equal(first, noise.normal("a", (4,)))


def test_every_coordinate_makes_a_stream_of_its_own():
    base = Noise(seed=1, step=2, first=3, count=1).normal("a", (8,))
    others = [
        Noise(seed=2, step=2, first=3, count=1).normal("a", (8,)),
        Noise(seed=1, step=3, first=3, count=1).normal("a", (8,)),
        Noise(seed=1, step=2, first=4, count=1).normal("a", (8,)),
        Noise(seed=1, step=2, first=3, count=1).normal("b", (8,)),
        Noise(seed=1 + 2**32, step=2, first=3, count=1).normal("a", (8,)),
    ]
    assert all(not torch.isclose(base, other).any() for other in others)


def test_distributions():
    noise = Noise(seed=0, step=0, first=0, count=2000)
    normal = noise.normal("n", (8,))
    assert normal.shape == (2000, 8) and normal.dtype == torch.float32
    assert abs(float(normal.mean())) < 0.03 and abs(float(normal.std()) - 1) < 0.03
    uniform = noise.uniform("u")
    assert uniform.shape == (2000,) and float(uniform.min()) >= 0 and float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.03
    counts = noise.integers("i", 0, 3).bincount()
    assert counts.shape == (3,) and int(counts.min()) > 550

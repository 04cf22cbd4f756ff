"""Keyed randomness, the one way: a number depends on a name and a counter, never on what was drawn before.

Every stream is a Philox generator of its own (Salmon et al., SC 2011, "Parallel random numbers: as easy as
1, 2, 3") with a key made of what it belongs to, so that neither the micro-batch, nor the rank, nor a restart
can change a value. Importing this imports neither numpy nor torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cosmos_distill.to_device import sent

if TYPE_CHECKING:
    import numpy
    import torch
    from torch import Tensor

    Device = torch.device | str


def generator(seed: int, stream: str, index: int) -> numpy.random.Generator:
    """Randomness of sample ``index`` of the stream of data called ``stream``, a name of any length."""
    import numpy

    name = stream.encode()
    # Names of up to 8 bytes are the key themselves, as those of the first versions, whose samples must stay.
    word = name.ljust(8, b"\0") if len(name) <= 8 else hashlib.blake2b(name, digest_size=8).digest()
    # Numpy would make a list in which one number is above 2**63 one of floats, which are rounded.
    key = numpy.array([seed & (2**64 - 1), int.from_bytes(word, "little")], numpy.uint64)
    return numpy.random.Generator(numpy.random.Philox(key=key, counter=[0, 0, 0, index]))


def constant(name: str) -> numpy.random.Generator:
    """Randomness that belongs to a name alone, the same in every run: fixed features, embeddings of words."""
    import numpy

    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    return numpy.random.Generator(numpy.random.Philox(key=key))


@dataclass(frozen=True)
class Noise:
    """Randomness of samples first .. first+count-1 in one optimiser step.

    The value of a sample depends on (seed, step, its global index, name) only: not on the micro-batch,
    the rank or what was drawn before. Every draw has a generator of its own, Philox keyed with a hash
    of those four (torch's CPU generator keeps 32 bits of its seed, too few for as many streams).
    """

    seed: int
    step: int
    first: int
    """Global index of the first sample."""
    count: int

    def normal(self, name: str, shape: Sequence[int], device: Device = "cpu") -> Tensor:
        """Unit Gaussian, fp32 [count, *shape]."""
        size = tuple(shape)
        return self._draw(name, lambda stream: stream.standard_normal(size, dtype="float32"), device)

    def uniform(self, name: str, device: Device = "cpu") -> Tensor:
        """Uniform in [0, 1), fp32 [count]."""
        return self._draw(name, lambda stream: stream.random(dtype="float32"), device)

    def integers(self, name: str, low: int, high: int, device: Device = "cpu") -> Tensor:
        """Uniform in low .. high-1 (``high`` excluded, as in torch.randint), int64 [count]."""
        return self._draw(name, lambda stream: stream.integers(low, high), device)

    def integer_of_step(self, name: str, low: int, high: int) -> int:
        """Uniform in low .. high-1, one for the whole optimiser step: the same in every micro-batch and on
        every rank."""
        return int(self._stream("step", name).integers(low, high))

    def _draw(self, name: str, draw: Callable[[numpy.random.Generator], Any], device: Device) -> Tensor:
        import numpy
        import torch

        values = [draw(self._stream(index, name)) for index in range(self.first, self.first + self.count)]
        return sent(torch.from_numpy(numpy.stack(values)), device)

    def _stream(self, index: int | str, name: str) -> numpy.random.Generator:
        from numpy.random import Generator, Philox

        text = f"{self.seed}/{self.step}/{index}/{name}"
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        return Generator(Philox(key=int.from_bytes(key, "little")))

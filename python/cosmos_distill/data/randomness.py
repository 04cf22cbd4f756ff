"""Randomness of samples that depends on the seed and their number only."""

from __future__ import annotations

import numpy as np


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Counter-based randomness of sample ``index`` of a named stream (Philox: no state to carry along)."""
    key = [seed & (2**64 - 1), int.from_bytes(stream.encode()[:8].ljust(8, b"\0"), "little")]
    # Numpy would make a list in which one number is above 2**63 one of floats, which are rounded.
    exact = np.array(key, np.uint64)
    return np.random.Generator(np.random.Philox(key=exact, counter=[0, 0, 0, index]))

"""Which clip a sample is: the order in which clips come, drawn from the seed and the sample's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cosmos_distill.randomness import generator

if TYPE_CHECKING:
    import numpy as np


def order(
    seed: int, split: str, index: int, usable: Sequence[bool], *, epochs: bool
) -> tuple[list[int], np.random.Generator]:
    """Places of the clips that can be used, the one that sample ``index`` is first and those that stand in
    for it behind; and what else of the sample is drawn with.

    Args:
        usable: Whether each place has a clip that can be used.
        epochs: Every clip comes once before one comes again; else each sample is drawn by itself, and a place
            that comes to be usable changes only the samples in whose order it comes first.
    """
    import numpy as np

    random = generator(seed, split, index)
    found = random.permutation(len(usable)).tolist()
    if epochs:
        epoch, position = divmod(index, sum(usable))
        mixed = generator(seed, "epoch", epoch).permutation(len(usable))
        found = np.roll([i for i in mixed.tolist() if usable[i]], -position).tolist()
    return [i for i in found if usable[i]], random

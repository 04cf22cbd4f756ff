"""Clips that look alike: near-duplicates by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIKE = 0.1
"""Share of differing bits up to which two clips count as one: re-encoded, resized, lighter or darker copies
differ in a few of a hundred, other clips in forty or more."""
_BLOCK = 1024


def groups(hashes: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers of the clips that are alike, two or more together, in order; clips that are alike to one that
    is alike to a third are one group.

    Args:
        hashes: of each clip, in hexadecimal digits
            (:attr:`cosmos_distill.data.clip_stats.ClipStats.hashes`). Only clips with the same number of them
            are compared: short ones have fewer.
    """
    lengths = sorted({len(found) for found in hashes} - {0})
    return sorted(
        group
        for length in lengths
        for group in _groups(hashes, [n for n, found in enumerate(hashes) if len(found) == length])
    )


def _groups(hashes: Sequence[Sequence[str]], usable: list[int]) -> list[list[int]]:
    """The same of clips that have as many hashes each."""
    if len(usable) < 2:
        return []
    packed = np.array([list(bytes.fromhex("".join(hashes[number]))) for number in usable], np.uint8)
    signs = np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1  # [clips, bits]
    bits = signs.shape[1]
    label = np.arange(len(usable))
    # Bits that differ are what a product of signs lacks: a matrix product compares all with all.
    for begin in range(0, len(usable), _BLOCK):
        block = signs[begin : begin + _BLOCK]
        differing = (bits - block @ signs[: begin + len(block)].T) / 2
        close = differing <= ALIKE * bits
        for i in np.flatnonzero(close.sum(1) > 1):  # alike to more than itself
            before = close[i, : begin + i]
            if before.any():
                found = np.unique(label[: begin + i][before])
                label[np.isin(label, found)] = found[0]
                label[begin + i] = found[0]
    together: dict[int, list[int]] = {}
    for number, group in enumerate(label):
        together.setdefault(int(group), []).append(usable[number])
    return [group for group in together.values() if len(group) > 1]

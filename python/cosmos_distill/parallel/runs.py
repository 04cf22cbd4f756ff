"""How the blocks of a network are cut for a pipeline. Torch-free: asked before anything starts."""

from __future__ import annotations


def split_blocks(blocks: int, leading_blocks: int, runs: int) -> list[range]:
    """Cut blocks 0..blocks-1 into ``runs`` consecutive runs of about equal work.

    A control branch of ``leading_blocks`` blocks that steers as many at the beginning is part of the first
    run, which therefore has these blocks, and less of the others.

    Raises:
        ValueError: there are too few blocks.
    """
    if runs == 1:
        return [range(blocks)]
    least = max(1, leading_blocks)
    if blocks < least + runs - 1:
        raise ValueError(
            f"{blocks} blocks cannot be cut into {runs} runs of which the first has the {least} that the "
            f"control branch steers: choose pipeline x virtual_pipeline at most {blocks - least + 1}"
        )
    first = min(
        range(least, blocks - runs + 2),
        key=lambda n: (max(n + leading_blocks, -(-(blocks - n) // (runs - 1))), -n),
    )
    each, more = divmod(blocks - first, runs - 1)
    sizes = [first] + [each + (i < more) for i in range(runs - 1)]
    ends = [sum(sizes[: i + 1]) for i in range(runs)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]

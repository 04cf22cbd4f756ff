"""How blocks are cut into runs."""

import pytest

from cosmos_distill.parallel.runs import split_blocks


@pytest.mark.parametrize(
    ("blocks", "control", "runs", "sizes"),
    [
        (28, 3, 1, [28]),
        (28, 0, 4, [7, 7, 7, 7]),
        (28, 3, 4, [5, 8, 8, 7]),  # 5 + 3 of the branch
        (28, 3, 8, [3, 4, 4, 4, 4, 3, 3, 3]),
        (36, 0, 8, [5, 5, 5, 5, 4, 4, 4, 4]),
        (4, 1, 4, [1, 1, 1, 1]),
        (2, 1, 2, [1, 1]),
    ],
)
def test_runs_are_balanced_and_the_first_has_what_the_control_steers(blocks, control, runs, sizes):
    found = split_blocks(blocks, control, runs)
    assert [len(run) for run in found] == sizes
    assert [i for run in found for i in run] == list(range(blocks))
    assert control <= len(found[0])


def test_too_few_blocks_are_refused_with_what_to_choose():
    with pytest.raises(ValueError, match="choose pipeline x virtual_pipeline at most 2"):
        split_blocks(4, 3, 3)

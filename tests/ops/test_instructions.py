"""CPU kernels take no more instructions than recorded: a regression gate that a busy machine cannot upset."""

from __future__ import annotations

import platform

import pytest

from benchmarks import instructions
from tests import lanes


@pytest.mark.skipif(platform.machine() != "x86_64", reason="counts are recorded for x86-64")
def test_no_kernel_takes_more_instructions_than_recorded():
    try:
        worse = instructions.regressions()
    except instructions.Incomparable as reason:
        pytest.skip(str(reason))
    except instructions.Unavailable as reason:
        lanes.missing(str(reason))
    assert not worse, (
        "\n".join(worse) + "\nIf that is meant, record anew: python -m benchmarks.instructions --record"
    )

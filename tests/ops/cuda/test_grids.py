"""No launch has more blocks than CUDA takes: 2^31 - 1 along the first axis, 65,535 along the others.

Launches are written down instead of made, and what CUDA would refuse the emulator does, too. Addresses are
made up: nothing looks behind them.
"""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks.gpu import emulated

BF16, AT, NO_STREAM = 1, 1 << 20, 0
WIDTH, LENGTH, KEYS, HEADS = 64, 200, 5, 3


@pytest.fixture(scope="module")
def functions() -> ModuleType:
    return emulated.module()


@pytest.fixture(params=[1 << 16, 1 << 20])
def samples(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


def test_adaln(functions: ModuleType, samples: int):
    shape, row = (BF16 * (1 + 4 + 16), samples, 1, WIDTH), (AT, WIDTH)

    def call() -> None:
        functions.adaln_forward(*shape, AT, AT, *row, *row, *row, 1e-6, AT, AT, AT, False, NO_STREAM)
        functions.adaln_backward(*shape, AT, AT, AT, AT, AT, *row, *row, *6 * [AT], False, NO_STREAM)

    assert len(functions.record(call)) == 1 + 2


def test_qk_norm_rope(functions: ModuleType, samples: int):
    tokens, tables = (samples * LENGTH, HEADS, HEADS * WIDTH), (BF16, LENGTH, WIDTH, AT, AT, False, [])

    def call() -> None:
        functions.norm_rope_forward(*tables, 1e-6, *2 * [[*tokens, *4 * [AT]]], NO_STREAM)
        functions.norm_rope_backward(*tables, *2 * [[*tokens, *7 * [AT]]], NO_STREAM)

    assert len(functions.record(call)) == 1 + 3


def test_attention(functions: ModuleType, samples: int):
    sizes, matrix = [samples, HEADS, LENGTH, KEYS, WIDTH], [AT, LENGTH * HEADS * WIDTH, HEADS * WIDTH, WIDTH]

    def call() -> None:
        functions.attention_forward(BF16, sizes, 1.0, *4 * [matrix], AT, NO_STREAM)
        given = (matrix, AT, *4 * [matrix], AT, *3 * [matrix], AT)
        functions.attention_backward(BF16, sizes, 1.0, *given, NO_STREAM)

    assert len(functions.record(call)) == 1 + 2


def test_dm_loss(functions: ModuleType, samples: int):
    shape = (BF16, samples, 20_000)

    def call() -> None:
        functions.renoise(*shape, *5 * [AT], NO_STREAM)
        functions.vsd(*shape, *5 * [AT], 5.0, AT, 0, 0, 0, AT, AT, AT, NO_STREAM)
        functions.vsd_gradient(*shape, AT, AT, AT, NO_STREAM)
        for grad in (0, AT):
            functions.squared_error(*shape, *4 * [AT], 0, 0, 0, grad, AT, AT, AT, NO_STREAM)

    assert len(functions.record(call)) == 1 + 2 + 1 + 2 + 1

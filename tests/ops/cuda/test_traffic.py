"""What the static table says that CUDA kernels move is what they do move, counted in the emulator."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import ModuleType

import pytest

from benchmarks.gpu import emulated
from benchmarks.gpu.calls import calls
from benchmarks.gpu.cuda_traffic import RESULT, SCRATCH, Use, uses
from benchmarks.gpu.work import Shape
from tests.ops.cuda.counted import Accesses, accesses, counted_module

# Five blocks of queries, which end where a tile does; several chunks of rows; two blocks of latents.
SMALL = Shape("small", frames=2, height=4, width=39, heads=2, frame_modulation=True, head_dim=128)

Counted = list[tuple[Use, Accesses]]


@pytest.fixture(scope="module")
def counting() -> Iterator[tuple[ModuleType, ctypes.CDLL]]:
    functions, library = counted_module()
    with emulated.installed(functions):
        yield functions, library


def run(key: tuple[str, str], counting: tuple[ModuleType, ctypes.CDLL]) -> Counted:
    """Every tensor of every launch: what is claimed of it, and what the launch does."""
    functions, library = counting
    found = uses(calls(SMALL, "cpu")[key], functions)
    counted: Counted = []
    for launch in dict.fromkeys(use.launch for use in found):  # in order: what one writes, the next reads
        given = [use for use in found if use.launch is launch]
        counts = accesses(launch, [use.tensor for use in given], library)
        counted += zip(given, counts, strict=True)
    return counted


@pytest.mark.parametrize("key", calls(SMALL), ids=" ".join)
def test_claims_are_what_kernels_do(key: tuple[str, str], counting: tuple[ModuleType, ctypes.CDLL]) -> None:
    counted = run(key, counting)
    largest = max(use.tensor.numel() for use, _ in counted)
    results: dict[int, int] = {}
    for use, did in counted:
        size = use.tensor.nbytes
        if use.name == RESULT:
            results[id(use.tensor)] = results.get(id(use.tensor), 0) + did.asked
            assert did.asked == did.touched, (use, did)
            continue
        assert did.touched == (size if use.passes else 0), (use, did)
        # What is smaller, many threads read.
        if use.tensor.numel() == largest or use.name == SCRATCH:
            assert did.asked == use.passes * size, (use, did)
    written = {id(use.tensor): use.tensor.nbytes for use, _ in counted if use.name == RESULT}
    assert results == written

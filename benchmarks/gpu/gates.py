"""What a compiled kernel must not do: the rules behind the tests and the notes under the static table."""

from __future__ import annotations

from benchmarks.gpu.devices import DEVICES, KIB
from benchmarks.gpu.occupancy import occupancy
from benchmarks.gpu.resources import Resources

STACK_ALLOWED = 16
"""Bytes per thread: a few registers around a loop; more is a kernel that does not fit its registers."""
KNOWN_STACK = {
    ("Triton 3.6", "attention_dkdv", 90): 80,
    ("Triton 3.9", "attention_dkdv", 90): 48,
}
"""(compiler, kernel, architecture) -> bytes of stack where a release does worse than the one the project is
developed with, whose kernel is within the limit."""


def complaints(kernel: Resources) -> list[str]:
    """What is wrong with a kernel, one sentence each; empty when it may be launched."""
    device = DEVICES[kernel.arch]
    found = []
    allowed = KNOWN_STACK.get((kernel.compiler, kernel.kernel, kernel.arch), STACK_ALLOWED)
    if kernel.stack > allowed:
        found.append(
            f"spills: {kernel.stack} bytes of stack (at most {allowed}), {kernel.spill_loads} loads "
            f"and {kernel.spill_stores} stores: use smaller blocks or more warps"
        )
    if kernel.shared > device.shared_per_block:
        found.append(
            f"needs {kernel.shared / KIB:.1f} KiB of shared memory, a block has "
            f"{device.shared_per_block // KIB}: use smaller blocks or fewer stages"
        )
    elif not _resident(kernel):
        found.append(
            f"cannot be launched: {kernel.threads} threads of {kernel.registers} registers are more than a "
            "multiprocessor has"
        )
    if kernel.fp64:
        found.append(f"has {kernel.fp64} instructions on 64-bit floats: a Python or double constant got in")
    if kernel.missing:
        found.append(f"lacks the instructions it was written for: {', '.join(kernel.missing)}")
    if kernel.operator.startswith("attention") and kernel.arch == 90 and "HMMA" in kernel.matrix:
        found.append(f"runs Ampere's matrix instructions on Hopper: {kernel.matrix}, not wgmma alone")
    return found


def _resident(kernel: Resources) -> int:
    return occupancy(
        DEVICES[kernel.arch],
        threads=kernel.threads,
        registers=kernel.registers,
        shared=kernel.shared,
        tensor_columns=kernel.tensor_columns,
    ).blocks

"""What a compiled kernel must not do: the rules behind the tests and the notes under the static table."""

from __future__ import annotations

from benchmarks.gpu.devices import DEVICES, KIB
from benchmarks.gpu.occupancy import occupancy
from benchmarks.gpu.resources import Resources

STACK_ALLOWED = 16
"""Bytes per thread. Compilers differ by a few spilled registers on one kernel (Triton 3.6 to 3.9: 0, 8 and
16 bytes); more is a kernel that does not fit its registers."""


def complaints(kernel: Resources) -> list[str]:
    """What is wrong with a kernel, one sentence each; empty when it may be launched."""
    device = DEVICES[kernel.arch]
    found = []
    if kernel.stack > STACK_ALLOWED:
        found.append(
            f"spills: {kernel.stack} bytes of stack (at most {STACK_ALLOWED}), {kernel.spill_loads} loads "
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

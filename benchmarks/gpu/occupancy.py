"""How many blocks of a kernel a multiprocessor holds at once: exact, from what the compiler reports.

The rules are those of ``cuda_occupancy.h`` with all of the unified memory given to shared memory, which is
what a kernel that asks for it gets; tensor memory, which that header does not know, is counted beside them.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.gpu.devices import (
    BLOCKS_PER_SM,
    REGISTER_UNIT,
    REGISTERS_PER_SM,
    REGISTERS_PER_THREAD,
    SHARED_RESERVED,
    SHARED_UNIT,
    SUB_PARTITIONS,
    TENSOR_MEMORY_COLUMNS,
    THREADS_PER_BLOCK,
    THREADS_PER_SM,
    WARP,
    Device,
)


@dataclass(frozen=True)
class Occupancy:
    """Blocks that fit; 0 when a single one cannot be launched."""

    blocks: int
    limited_by: tuple[str, ...]
    """What runs out first: any of "threads", "registers", "shared memory", "blocks", "tensor memory"."""
    share: float
    """Of the multiprocessor's thread slots, 0..1."""


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(
    device: Device, *, threads: int, registers: int, shared: int, tensor_columns: int = 0
) -> Occupancy:
    """How many blocks one multiprocessor of ``device`` holds.

    Args:
        device: whose limits apply.
        threads: per block.
        registers: per thread.
        shared: bytes per block, static and dynamic together, without the system's reserve.
        tensor_columns: of tensor memory, per block.

    Raises:
        ValueError: a block without threads.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    limits = {
        "blocks": BLOCKS_PER_SM,
        "threads": _blocks_by_threads(threads),
        "registers": _blocks_by_registers(threads, registers),
        "shared memory": _blocks_by_shared(device, shared),
    }
    if tensor_columns:
        limits["tensor memory"] = TENSOR_MEMORY_COLUMNS // tensor_columns
    blocks = min(limits.values())
    return Occupancy(
        blocks=blocks,
        limited_by=tuple(name for name, limit in limits.items() if limit == blocks),
        share=blocks * _round_up(threads, WARP) / THREADS_PER_SM,
    )


def _blocks_by_threads(threads: int) -> int:
    if threads > THREADS_PER_BLOCK:
        return 0
    return THREADS_PER_SM // WARP // (_round_up(threads, WARP) // WARP)


def _blocks_by_registers(threads: int, registers: int) -> int:
    if registers > REGISTERS_PER_THREAD:
        return 0
    if registers == 0:
        return BLOCKS_PER_SM
    warps = _round_up(threads, WARP) // WARP
    per_warp = _round_up(registers * WARP, REGISTER_UNIT)
    # A warp's registers come from one sub-partition.
    warps_per_partition = REGISTERS_PER_SM // SUB_PARTITIONS // per_warp
    return warps_per_partition * SUB_PARTITIONS // warps


def _blocks_by_shared(device: Device, shared: int) -> int:
    return device.shared_per_sm // _round_up(shared + SHARED_RESERVED, SHARED_UNIT)

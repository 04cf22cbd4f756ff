"""The GPUs the static table is about: what a kernel may use of them, and the roofs it runs under.

Limits of the multiprocessors: CUDA C++ Programming Guide, "Compute Capabilities", table "Technical
Specifications per Compute Capability" (8.0, 9.0, 10.0): 64 Ki registers per multiprocessor and per block,
255 per thread, 2048 threads, 32 blocks, 164/228/228 KiB of shared memory of which a block can use all but the
1 KiB that the system reserves for it (163/227/227 KiB). Granularities (registers by 256 per warp, over four
sub-partitions; shared memory by 128 bytes): ``cuda_occupancy.h`` of the CUDA toolkit. Tensor memory: PTX ISA,
"tcgen05.alloc": 512 columns per multiprocessor.

Roofs, dense (without the doubling of structured sparsity) and at the boost clock, as their maker states them:

- A100 SXM 80 GB: NVIDIA A100 Tensor Core GPU data sheet: 312 TFLOP/s bf16, 2,039 GB/s HBM2e, 108
  multiprocessors.
- H100 SXM: NVIDIA H100 Tensor Core GPU data sheet: 1,979 TFLOP/s bf16 with sparsity, so 989 dense, 3.35 TB/s
  HBM3, 132 multiprocessors.
- B200: NVIDIA DGX B200 data sheet and Blackwell architecture brief: 2.25 PFLOP/s dense bf16 and 8 TB/s HBM3e
  per GPU; 148 multiprocessors.

The fp32 rates (outside the tensor cores) are those of the same sheets: 19.5, 67 and 75 TFLOP/s.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
REGISTERS_PER_SM = 65_536
REGISTERS_PER_THREAD = 255
THREADS_PER_SM = 2048
THREADS_PER_BLOCK = 1024
BLOCKS_PER_SM = 32
WARP = 32
SUB_PARTITIONS = 4
REGISTER_UNIT = 256
"""Registers are handed to a warp in multiples of this."""
SHARED_UNIT = 128
"""Bytes; shared memory is handed to a block in multiples of this."""
SHARED_RESERVED = 1 * KIB
"""Bytes of every block's shared memory that belong to the system."""
TENSOR_MEMORY_COLUMNS = 512


@dataclass(frozen=True)
class Device:
    """One GPU; bandwidth in bytes, rates in floating-point operations, per second."""

    name: str
    arch: int
    """Compute capability times ten, as compilers count: 90 is sm_90."""
    multiprocessors: int
    shared_per_sm: int
    """Bytes."""
    bandwidth: float
    bf16_rate: float
    fp32_rate: float

    @property
    def shared_per_block(self) -> int:
        """Bytes a block can use, after the system's share."""
        return self.shared_per_sm - SHARED_RESERVED


A100 = Device("A100 SXM 80 GB", 80, 108, 164 * KIB, 2.039e12, 312e12, 19.5e12)
H100 = Device("H100 SXM", 90, 132, 228 * KIB, 3.35e12, 989e12, 67e12)
B200 = Device("B200", 100, 148, 228 * KIB, 8e12, 2250e12, 75e12)
DEVICES = {device.arch: device for device in (A100, H100, B200)}

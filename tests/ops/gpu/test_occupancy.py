"""Occupancy against published values and against NVIDIA's own header."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu.devices import A100, B200, DEVICES, H100, SHARED_RESERVED, Device
from benchmarks.gpu.occupancy import occupancy
from tests import lanes

KIB = 1024


@pytest.mark.parametrize(
    ("device", "threads", "registers", "shared", "blocks", "limits"),
    [
        # FlashAttention-2 forward, head size 128: registers would allow two, and so does shared memory.
        (H100, 128, 172, 80 * KIB, 2, {"registers", "shared memory"}),
        (A100, 128, 172, 80 * KIB, 2, {"registers", "shared memory"}),
        (H100, 1024, 32, 0, 2, {"threads"}),
        (H100, 32, 16, 0, 32, {"blocks"}),
        # A whole multiprocessor's registers: 255 round up to 256, times 256 threads.
        (B200, 256, 255, 0, 1, {"registers"}),
        (B200, 257, 255, 0, 0, {"registers"}),
        (A100, 128, 32, 163 * KIB, 1, {"shared memory"}),
        (A100, 128, 32, 163 * KIB + 1, 0, {"shared memory"}),
        (H100, 128, 32, 227 * KIB, 1, {"shared memory"}),
        (H100, 1056, 16, 0, 0, {"threads"}),
    ],
)
def test_known_values(
    device: Device, threads: int, registers: int, shared: int, blocks: int, limits: set[str]
) -> None:
    found = occupancy(device, threads=threads, registers=registers, shared=shared)
    assert found.blocks == blocks
    assert limits <= set(found.limited_by), found


def test_share_counts_whole_warps() -> None:
    assert occupancy(H100, threads=256, registers=128, shared=0).share == 512 / 2048
    assert occupancy(H100, threads=48, registers=16, shared=0).share == 32 * 64 / 2048


def test_tensor_memory_limits_blocks() -> None:
    plain = occupancy(B200, threads=128, registers=64, shared=0)
    held = occupancy(B200, threads=128, registers=64, shared=0, tensor_columns=256)
    assert plain.blocks == 8
    assert held.blocks == 2 and held.limited_by == ("tensor memory",)


def test_block_without_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="threads"):
        occupancy(H100, threads=0, registers=32, shared=0)


ORACLE = """
#include <cstddef>
#include <cstdio>
#include <cstring>
#include "cuda_occupancy.h"
int main() {
    int major, threads, regs; unsigned long sm, reserved, shared;
    while (std::scanf("%d %lu %lu %d %d %lu", &major, &sm, &reserved, &threads, &regs, &shared) == 6) {
        cudaOccDeviceProp p{};
        p.computeMajor = major; p.maxThreadsPerBlock = 1024; p.maxThreadsPerMultiprocessor = 2048;
        p.regsPerBlock = p.regsPerMultiprocessor = 65536; p.warpSize = 32; p.sharedMemPerBlock = 48 * 1024;
        p.sharedMemPerMultiprocessor = sm; p.sharedMemPerBlockOptin = sm - reserved;
        p.reservedSharedMemPerBlock = reserved; p.numSms = 100;
        cudaOccFuncAttributes a{};
        a.maxThreadsPerBlock = 1024; a.numRegs = regs; a.maxDynamicSharedSizeBytes = sm - reserved;
        a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN; a.partitionedGCConfig = PARTITIONED_GC_OFF;
        cudaOccDeviceState s{}; s.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult r{};
        auto status = cudaOccMaxActiveBlocksPerMultiprocessor(&r, &p, &a, &s, threads, shared);
        std::printf("%d\\n", status == CUDA_OCC_SUCCESS ? r.activeBlocksPerMultiprocessor : -1);
    }
}
"""


def header_folders() -> list[Path]:
    """Where a cuda_occupancy.h lies: a toolkit beside its compiler, or the copy that comes with triton."""
    folders = []
    if compiler := shutil.which("nvcc"):
        folders.append(Path(compiler).resolve().parents[1] / "include")
    folders.append(Path("/usr/local/cuda/include"))
    if spec := importlib.util.find_spec("triton"):
        folders.append(Path(str(spec.origin)).parent / "backends/nvidia/include")
    return [folder for folder in folders if (folder / "cuda_occupancy.h").is_file()]


@pytest.mark.needs("g++")
def test_equals_nvidias_formula(tmp_path: Path) -> None:
    folders = header_folders()
    if not folders:
        lanes.missing("no cuda_occupancy.h: install a CUDA toolkit, or the triton package")
    (tmp_path / "oracle.cpp").write_text(ORACLE)
    program = tmp_path / "oracle"
    subprocess.run(["g++", "-I", folders[0], tmp_path / "oracle.cpp", "-o", program], check=True)

    rng = random.Random(0)
    launches = [
        (
            rng.choice(list(DEVICES.values())),
            rng.choice([32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 1024]),
            rng.randint(16, 255),
            rng.choice([0, rng.randrange(8 * KIB), rng.randrange(64 * KIB), rng.randrange(226 * KIB)]),
        )
        for _ in range(3000)
    ]
    lines = "".join(
        f"{d.arch // 10} {d.shared_per_sm} {SHARED_RESERVED} {threads} {registers} {shared}\n"
        for d, threads, registers, shared in launches
    )
    answer = subprocess.run([program], input=lines, capture_output=True, text=True, check=True).stdout
    theirs = [int(word) for word in answer.split()]
    ours = [occupancy(d, threads=t, registers=r, shared=s).blocks for d, t, r, s in launches]
    differing = [
        (d.name, t, r, s, a, b) for (d, t, r, s), a, b in zip(launches, ours, theirs, strict=True) if a != b
    ]
    assert not differing, differing[:5]
    assert len(set(theirs)) > 8, "the launches drawn are too much alike to tell anything"

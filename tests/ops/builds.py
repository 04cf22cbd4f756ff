"""The builds of the compiled module that there are on this machine."""

from __future__ import annotations

import torch

from cosmos_distill import _C

# By torch's names of instruction sets, the narrowest first; of one set, the build that is taken comes last.
BUILDS = {"DEFAULT": ["_C"], "AVX2": ["_C_avx2"], "AVX512": ["_C_avx512"]}
if _C.has_avx512_bf16():
    BUILDS["AVX512"].append("_C_avx512_bf16")


def runnable() -> list[str]:
    """Instruction sets that it has."""
    here = torch.backends.cpu.get_cpu_capability()
    known = list(BUILDS)
    return known[: known.index(here) + 1] if here in known else known[:1]

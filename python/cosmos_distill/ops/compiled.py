"""The compiled CPU operators, in the build for the widest instruction set of this machine.

torch decides which that is, for its own operators as for these: ``ATEN_CPU_CAPABILITY=avx2`` (or ``default``)
narrows both. ``cosmos_distill._C`` runs everywhere; the other builds exist on x86-64 only.

Raises:
    ImportError: nothing was compiled.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch  # before the compiled module, which then shares torch's OpenMP runtime and thread count

from .. import _C

if TYPE_CHECKING:
    kernels = _C
else:
    BUILDS = {
        "AVX512": "_C_avx512_bf16" if _C.has_avx512_bf16() else "_C_avx512",
        "AVX2": "_C_avx2",
    }
    try:
        build = BUILDS.get(torch.backends.cpu.get_cpu_capability(), "_C")
        kernels = importlib.import_module(f"cosmos_distill.{build}")
    except ImportError:
        kernels = _C

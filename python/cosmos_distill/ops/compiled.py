"""The compiled CPU operators, in the build for the widest instruction set of this machine.

torch decides which that is, for its own operators as for these: ``ATEN_CPU_CAPABILITY=avx2`` (or ``default``)
narrows both. ``cosmos_distill._C`` runs everywhere; the other builds exist on x86-64 only, and where one of
them cannot be imported that is said.

Raises:
    ImportError: nothing was compiled, or another version of the package was.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING

import torch  # before the compiled module, which then shares torch's OpenMP runtime and thread count

from .. import _C
from .registry import BackendFallback

INTERFACE = 2
"""Of what the functions take; the same number stands in csrc/common/operator.h."""

if TYPE_CHECKING:
    kernels = _C
else:
    if getattr(_C, "interface", None) != INTERFACE:
        raise ImportError(
            f"{_C.__file__} was built from another version of the sources: build it again with make setup "
            "or pip install -e ."
        )
    BUILDS = {
        "AVX512": "_C_avx512_bf16" if _C.has_avx512_bf16() else "_C_avx512",
        "AVX2": "_C_avx2",
    }
    build = BUILDS.get(torch.backends.cpu.get_cpu_capability(), "_C")
    try:
        kernels = importlib.import_module(f"cosmos_distill.{build}")
        if getattr(kernels, "interface", None) != INTERFACE:
            raise ImportError("it was built from another version of the sources")
    except ImportError as error:
        kernels = _C
        warnings.warn(
            f"cosmos_distill.{build}, the CPU operators for this machine's instructions, cannot be imported "
            f"({error}): the slower ones for every machine serve. To have it, reinstall the package with GCC "
            "or Clang",
            BackendFallback,
            stacklevel=2,
        )


def interface(operator: str, number: int) -> None:
    """Raises ImportError unless this operator's functions take what they do since they were given that number
    (CD_INTERFACE in csrc/common/operator.h)."""
    if getattr(kernels, f"{operator}_interface", lambda: 1)() != number:
        raise ImportError(
            f"{kernels.__file__} was built from another version of the sources: build it again with make "
            "setup or pip install -e ."
        )

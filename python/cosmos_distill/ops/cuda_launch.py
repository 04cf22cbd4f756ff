"""Calling the compiled CUDA operators (csrc/*.cu).

Raises:
    ImportError: on import, where the package was compiled without them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch  # before _C: the compiled module then shares torch's OpenMP runtime
from torch import Tensor

from .. import _C
from .elements import ELEMENTS

if not hasattr(_C, "cuda"):
    raise ImportError("cosmos_distill._C was compiled without CUDA operators; put nvcc on PATH and reinstall")

functions = _C.cuda


def dtype_of(x: Tensor) -> int:
    """How the compiled functions number dtypes."""
    return ELEMENTS[x.dtype]


def launch(function: Callable[..., None], on: Tensor, *arguments: object) -> None:
    """Queue work on the current stream of the device that ``on`` is on.

    Raises:
        RuntimeError: a kernel could not be launched; the message names it.
        ValueError: it does not serve this dtype or these sizes.
    """
    if not on.is_cuda:  # without a device there is no stream
        function(*arguments, 0)
        return
    with torch.cuda.device(on.device):
        function(*arguments, torch.cuda.current_stream().cuda_stream)

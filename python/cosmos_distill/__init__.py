"""cosmos-distill: few-step students of video diffusion transformers.

The library is here: :func:`distill`, :func:`sample` and their pieces (see :mod:`cosmos_distill.api`).

Importing the package imports no torch, so that the command line answers at once; a name below is loaded from
its module when first used, and so are the parts that compute (:mod:`~cosmos_distill.ops`,
:mod:`~cosmos_distill.models`, ...).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosmos_distill.adapters import Adapter
    from cosmos_distill.api import Distilled, distill, pairs, sample
    from cosmos_distill.config import EDM, FewStep, Guidance, Optim, Parallel, Trainer, TrigFlow
    from cosmos_distill.errors import Refusal
    from cosmos_distill.methods.denoising import Denoising
    from cosmos_distill.methods.dmd2 import DMD2
    from cosmos_distill.methods.kd import KD
    from cosmos_distill.methods.levels import Grid, LogNormal, ShiftedTime
    from cosmos_distill.methods.sgmd import SGMD
    from cosmos_distill.train.guard import Interrupted
    from cosmos_distill.train.loop import FitResult, fit

__version__ = "0.2.0"

__all__ = [
    "DMD2",
    "EDM",
    "KD",
    "SGMD",
    "Adapter",
    "Denoising",
    "Distilled",
    "FewStep",
    "FitResult",
    "Grid",
    "Guidance",
    "Interrupted",
    "LogNormal",
    "Optim",
    "Parallel",
    "Refusal",
    "ShiftedTime",
    "Trainer",
    "TrigFlow",
    "distill",
    "fit",
    "pairs",
    "sample",
]

_HOME = {
    "adapters": ("Adapter",),
    "api": ("Distilled", "distill", "pairs", "sample"),
    "config": ("EDM", "FewStep", "Guidance", "Optim", "Parallel", "Trainer", "TrigFlow"),
    "errors": ("Refusal",),
    "methods.denoising": ("Denoising",),
    "methods.dmd2": ("DMD2",),
    "methods.kd": ("KD",),
    "methods.sgmd": ("SGMD",),
    "methods.levels": ("Grid", "LogNormal", "ShiftedTime"),
    "train.guard": ("Interrupted",),
    "train.loop": ("FitResult", "fit"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)

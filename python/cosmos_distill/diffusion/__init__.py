"""The mathematics of diffusion: noise levels, guidance, samplers. Nothing here knows a network.

Importing the package imports no torch; a name is loaded from its module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosmos_distill.diffusion.guidance import combine
    from cosmos_distill.diffusion.samplers import Denoise, one_step, res_2ab
    from cosmos_distill.diffusion.schedules import EDMSchedule, Preconditioning, per_sample

__all__ = ["Denoise", "EDMSchedule", "Preconditioning", "combine", "one_step", "per_sample", "res_2ab"]

_HOME = {
    "Denoise": "samplers",
    "EDMSchedule": "schedules",
    "Preconditioning": "schedules",
    "combine": "guidance",
    "one_step": "samplers",
    "per_sample": "schedules",
    "res_2ab": "samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

"""The mathematics of diffusion: noise levels, guidance, samplers. Nothing here knows a network.

Importing the package imports no torch; a name is loaded from its module when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cosmos_distill.diffusion.edm import EDMSchedule
    from cosmos_distill.diffusion.guidance import combine
    from cosmos_distill.diffusion.precondition import Given, Preconditioning, over_latent, per_sample
    from cosmos_distill.diffusion.samplers import (
        Denoise,
        Noising,
        euler_rf,
        few_step,
        res_2ab,
    )
    from cosmos_distill.diffusion.schedules import Schedule, build_schedule, schedule_from_dict
    from cosmos_distill.diffusion.teacher import EULER_RF, RES_2AB, TeacherSampler
    from cosmos_distill.diffusion.trigflow import TrigFlowSchedule

__all__ = [
    "EULER_RF",
    "RES_2AB",
    "Denoise",
    "EDMSchedule",
    "Given",
    "Noising",
    "Preconditioning",
    "Schedule",
    "TeacherSampler",
    "TrigFlowSchedule",
    "build_schedule",
    "combine",
    "euler_rf",
    "few_step",
    "over_latent",
    "per_sample",
    "res_2ab",
    "schedule_from_dict",
]

_HOME = {
    "Denoise": "samplers",
    "EDMSchedule": "edm",
    "EULER_RF": "teacher",
    "Given": "precondition",
    "Noising": "samplers",
    "Preconditioning": "precondition",
    "RES_2AB": "teacher",
    "Schedule": "schedules",
    "TeacherSampler": "teacher",
    "TrigFlowSchedule": "trigflow",
    "build_schedule": "schedules",
    "combine": "guidance",
    "euler_rf": "samplers",
    "few_step": "samplers",
    "over_latent": "precondition",
    "per_sample": "precondition",
    "res_2ab": "samplers",
    "schedule_from_dict": "schedules",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

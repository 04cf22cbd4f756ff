"""The noise schedules there are, from a recipe or from a file.

A schedule's noise coordinate t is what ``denoise(x_t, t)`` takes: the noise level sigma of EDM, the angle of
TrigFlow. One t for every sample, [B], or one for every latent frame, [B, T].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cosmos_distill.config import EDM, TrigFlow
from cosmos_distill.diffusion.edm import EDMSchedule
from cosmos_distill.diffusion.trigflow import TrigFlowSchedule

Schedule = EDMSchedule | TrigFlowSchedule


def build_schedule(config: EDM | TrigFlow) -> Schedule:
    """The schedule that ``config`` describes."""
    return TrigFlowSchedule(config) if isinstance(config, TrigFlow) else EDMSchedule(config)


def schedule_from_dict(values: Mapping[str, Any]) -> Schedule:
    """The schedule that an export stored with ``to_dict``.

    Raises:
        ValueError: a kind that this version does not know.
    """
    kind = values.get("kind")
    if kind == "edm":
        return EDMSchedule.from_dict(values)
    if kind == "trigflow":
        return TrigFlowSchedule.from_dict(values)
    raise ValueError(
        f"schedule kind {kind!r} is neither 'edm' nor 'trigflow': the file was written by another version"
    )

"""Noise coordinates, guidance and the sampler of a student."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cosmos_distill.config.numbers import Evaluations, SigmaData, UnconditionalFrames
from cosmos_distill.ranges import Checked, Problem, Range

GUIDANCE = 1000
"""Strongest guidance, ``added``."""


@dataclass(frozen=True)
class Guidance(Checked):
    """Classifier-free guidance with its convention named.

    ``added``: cond + scale * (cond - uncond), the form of the Cosmos code (0 switches guidance off).
    ``standard``: uncond + scale * (cond - uncond), the form of most papers (1 switches it off).
    """

    scale: float
    convention: Literal["added", "standard"] = "added"
    unconditional_frames: UnconditionalFrames = "kept"
    """Given frames in the input of the unconditional branch: as in the conditional one, or zeros in
    their place (their mask and their times stay). The newest Predict2.5 code zeroes them; the teachers were
    trained with them kept."""

    def rules(self) -> Iterator[Problem]:
        """The same strengths in both conventions."""
        off = 0 if self.convention == "added" else 1
        if not -GUIDANCE <= self.scale - off <= GUIDANCE:
            text = (
                f"must be from {off - GUIDANCE} to {off + GUIDANCE} in the {self.convention!r} convention, "
                f"not {self.scale!r}"
            )
            yield "scale", text

    def as_added(self) -> Guidance:
        """The same guidance in the ``added`` convention."""
        if self.convention == "added":
            return self
        return replace(self, scale=self.scale - 1.0, convention="added")

    def as_standard(self) -> Guidance:
        """The same guidance in the ``standard`` convention."""
        if self.convention == "standard":
            return self
        return replace(self, scale=self.scale + 1.0, convention="standard")


@dataclass(frozen=True)
class EDM(Checked):
    """Noise coordinate of Transfer1: x_t = x_0 + sigma * eps (Karras et al. 2022, arXiv 2206.00364)."""

    sigma_data: SigmaData = 0.5
    sigma_min: Annotated[float, Range(1e-5, 1e3)] = 0.002
    """Lowest level of the sampling grid."""
    sigma_max: Annotated[float, Range(1e-2, 1e5)] = 80.0
    rho: Annotated[float, Range(1, 100)] = 7.0
    """How much denser the grid is at its lower end; 1: it is uniform."""

    def rules(self) -> Iterator[Problem]:
        """A grid of a thousand levels has to have room."""
        if 2 * self.sigma_min > self.sigma_max:
            yield "sigma_min", f"must be at most half of sigma_max {self.sigma_max}, not {self.sigma_min}"


@dataclass(frozen=True)
class TrigFlow(Checked):
    """Noise coordinate of Predict2.5: x_t = cos(t) * x_0 / sigma_data + sin(t) * eps with an angle t in
    [0, pi/2] (Lu and Song 2024, arXiv 2410.11081)."""

    form: Literal["rectified_flow", "edm"] = "rectified_flow"
    """What the network was trained to predict, hence how t is turned into its input and output scales."""
    sigma_data: SigmaData = 1.0
    shift: Annotated[float, Range(1e-2, 1e3)] = 5.0
    """Uniform u in [0, 1] becomes the rectified-flow time shift * u / (1 + (shift - 1) * u): above 1,
    grids and training draws lean towards noise."""


@dataclass(frozen=True)
class FewStep(Checked):
    """A student's sampler: few evaluations, without guidance."""

    steps: Evaluations = 1
    fresh_noise: bool = False
    """Add fresh noise between steps, as the first DMD2 did, instead of the noise that the clip began with."""


ONE_STEP = FewStep()

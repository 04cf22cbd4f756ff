"""A recipe: everything that determines a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cosmos_distill.config.controls import spelled, weights_of
from cosmos_distill.config.data import Data
from cosmos_distill.config.diffusion import EDM, TrigFlow
from cosmos_distill.config.numbers import Control, Seed
from cosmos_distill.config.parallel import Parallel
from cosmos_distill.config.stages import KINDS, Evaluate, Stage
from cosmos_distill.families import NetworkConfig, preset
from cosmos_distill.ranges import Checked, Problem, effect, file_names


@dataclass(frozen=True, kw_only=True)
class Recipe(Checked):
    """Everything that determines a run."""

    network: NetworkConfig
    """Sizes of the network, and with them its family. The name of a preset may be given in their place."""
    teacher: Path | None = field(default=None, metadata=effect("place"))
    """Checkpoint of the teacher. None takes the one shipped with the package for a preset."""
    teacher_lora: Path | None = field(default=None, metadata=effect("place"))
    """A low-rank adapter in peft's or diffusers' files, merged into the teacher."""
    control: Control | None = "edge"
    """What clips are generated from beside text and given frames; None: nothing. Of several, as
    ``edge:0.5,vis:0.5``, a network with one control branch is trained with one in each sample, drawn by these
    shares; one with several branches has all at once, each multiplied by its weight."""
    schedule: EDM | TrigFlow = field(default_factory=EDM)
    data: Data
    stages: Mapping[str, Stage]
    """Run in this order. A name is that of the stage's folder and part of its options."""
    parallel: Parallel = field(default_factory=Parallel, metadata=effect("none"))
    seed: Seed = 0

    def __post_init__(self) -> None:
        """Look a preset up, and check everything. Raises ValueError, naming the first field that is wrong."""
        if isinstance(self.network, str):
            try:
                object.__setattr__(self, "network", preset(self.network))
            except ValueError as error:
                raise ValueError(f"network {error}") from None
        if isinstance(self.data, Data) and self.data.negative_prompt is None:
            object.__setattr__(self, "data", replace(self.data, negative_prompt=self._published_negative()))
        if isinstance(self.control, str):
            with suppress(ValueError):  # which rules() says
                object.__setattr__(self, "control", spelled(weights_of(self.control)))
        super().__post_init__()

    def _published_negative(self) -> str:
        """The text that the family's own pipeline guides away from, where there is what encodes it."""
        text = self.network.family.text if isinstance(self.network, NetworkConfig) else None
        encodes = self.data.own and self.data.text_encoder is not None
        return text.negative_prompt if text is not None and encodes else ""

    def rules(self) -> Iterator[Problem]:
        """A run does something, and its stages' folders neither leave the run folder nor meet in it."""
        try:
            weights_of(self.control)
        except ValueError as error:
            yield "control", str(error)
        if not self.stages:
            yield "stages", "must hold at least one stage: Encode, Generate, Train, Evaluate or Export"
        yield from file_names("stages", "stage", self.stages)
        for name, stage in self.stages.items():
            if type(stage) not in KINDS:
                kinds = ", ".join(kind.__name__ for kind in KINDS)
                yield (
                    f"stages.{name}",
                    f"is a {type(stage).__name__}, which nothing runs: take one of {kinds}",
                )
            if isinstance(stage, Evaluate):
                yield from file_names(f"stages.{name}.students", "column of the report", stage.students)

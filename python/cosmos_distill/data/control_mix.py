"""Which controls the samples of a stream have, and the videos of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_distill import controls
from cosmos_distill.config.controls import weights_of
from cosmos_distill.data.errors import DataError
from cosmos_distill.randomness import generator

if TYPE_CHECKING:
    import numpy as np
    import torch

    from cosmos_distill.config import Data
    from cosmos_distill.controls import Settings, Uniform


@dataclass(frozen=True)
class ControlVideo:
    """A control of one sample."""

    name: str
    frames: np.ndarray | None = None
    """RGB uint8 [F, H, W, 3]; None: it is computed of the clip where samples are encoded, by a network."""
    settings: Settings = None
    """What it is computed with; None: the medium preset."""

    def of(self, clip: np.ndarray, models: Mapping[str, Path] | None) -> np.ndarray:
        """Its frames, which a network of ``models`` makes of those of the clip if there are none yet."""
        if self.frames is not None:
            return self.frames
        return controls.compute(self.name, clip, self.settings, models)


@dataclass(frozen=True)
class ControlMix:
    """The controls of a stream with their numbers.

    A network with one control branch gets one of them with each sample, drawn by these shares; one with
    several branches gets all at once, and multiplies what each adds by its weight.
    """

    weights: Mapping[str, float]
    """Shares, or weights of the branches."""
    branches: int = 1
    """Of the network."""

    @classmethod
    def read(cls, control: str | None, branches: int = 1) -> ControlMix:
        """What a recipe's ``control`` says; see :func:`cosmos_distill.config.controls.weights_of`."""
        return cls(weights_of(control), branches)

    @property
    def used(self) -> tuple[str, ...]:
        """Names of the controls that some sample has."""
        return tuple(name for name, weight in self.weights.items() if weight)

    @property
    def slots(self) -> tuple[str, ...]:
        """Of a network with several branches the control of each."""
        return tuple(self.weights) if self.branches > 1 else ()

    @property
    def branch_weights(self) -> tuple[float, ...]:
        """Of the :attr:`slots`, as the published sampler takes them: divided by their sum where that
        is above 1."""
        total = max(1.0, sum(self.weights.values()))
        return tuple(weight / total for weight in self.weights.values())

    def from_files(self, data: Data, paired: bool = False) -> tuple[str, ...]:
        """Names of the controls that are read from videos beside the clips. Where there are any they go
        before a network; and a teacher's clips (``paired``) have all their controls from there.
        """
        return tuple(name for name in self.used if paired or _has_no_other_way(name, data))

    def refuse_drawn_pairs(self, data: Data) -> None:
        """Raises DataError for clips of a teacher's, each drawn with one control, of which another would be
        drawn here."""
        if data.saved_noise and not self.slots and len(self.used) > 1:
            raise DataError(
                f"{data.root} has saved noise, and its clips were drawn with one control each: choose "
                f"{' or '.join(self.used)}"
            )

    def refuse_files(self, data: Data) -> None:
        """Raises DataError if a control would be read from files, for clips that have none beside them."""
        for name in self.from_files(data):
            raise DataError(controls.missing(name))

    def told(self, controls: Sequence[ControlVideo]) -> str:
        """What is added to the name of a sample with these controls: which was drawn of several."""
        return f" ({controls[0].name})" if controls and not self.slots and len(self.used) > 1 else ""

    def of_sample(self, seed: int, split: str, index: int) -> Sequence[str]:
        """Names of the controls of sample ``index``. Those of clips that are held out are the same for every
        seed, so that runs are compared on the same."""
        if self.branches > 1 or len(self.used) < 2:
            return self.used
        key = seed if split == "train" else 0
        drawn = generator(key, f"control of {split}", index).random() * sum(self.weights.values())
        for name in self.used:
            drawn -= self.weights[name]
            if drawn < 0:
                return (name,)
        return self.used[-1:]


def uniform_of(number: int, name: str, uniform: Uniform, seed: int, index: int) -> Uniform:
    """Numbers in [0, 1) that the settings of a sample's control are drawn from: of the first one those of the
    sample, of the others numbers of their own."""
    return uniform if number == 0 else generator(seed, f"settings of {name}", index).random(controls.DRAWS)


def _has_no_other_way(name: str, data: Data) -> bool:
    if controls.is_computed(name):
        return False
    beside = data.source == "folder" and data.root is not None and (data.root / name).is_dir()
    return beside or name not in (data.control_models or {})


def control_rows(control: str | None, pixels: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Controls as rows of a picture, by label.

    Args:
        control: As the recipe writes it.
        pixels: uint8 [B, 3K, F, H, W] of K controls at once; None: there are none.
    """
    if pixels is None:
        return {}
    parts = pixels.split(3, dim=1)
    return dict(zip(weights_of(control), parts, strict=True)) if len(parts) > 1 else {"control": parts[0]}

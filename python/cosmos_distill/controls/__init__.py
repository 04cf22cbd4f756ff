"""Controls, one per file, found by the file's name: each file has a ``CONTROL``.

To add one, add a file: nothing else lists them, ``--control`` takes its name, and a folder of that name
beside the clips holds its videos. Maps are computed with the numbers of Cosmos-Transfer1's own augmentors.
Training draws the settings of each clip anew; sampling and evaluation use a preset. Torch-free until one is
found.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union, get_args

from cosmos_distill import config
from cosmos_distill.config import Strength
from cosmos_distill.data.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Uniform = Union[Sequence[float], "np.ndarray"]
"""Numbers in [0, 1)."""
Settings = Any
"""What a control's map is computed with: a type of its own, opaque to everything else."""
DRAWS = 9
"""Numbers in [0, 1) that the settings of one clip are drawn from."""


@dataclass(frozen=True, kw_only=True)
class Computed:
    """How a control is computed from pixels. Frames and maps are RGB uint8 [F, H, W, 3]."""

    map: Callable[[np.ndarray, Settings], np.ndarray]
    """The map of frames, with settings."""
    draw: Callable[[Uniform], Settings]
    """Training settings of one clip from :data:`DRAWS` numbers in [0, 1)."""
    preset: Callable[[Strength, float | None], Settings]
    """Settings at inference by strength; the number is ``Data.vis_thumbnail``, which vis alone reads."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """One kind of control."""

    computed: Computed | None = None
    """None: it needs a network of its own and comes from files."""
    nearest: bool = False
    """Its colours are labels, which have no meaningful average: videos are resized without mixing them."""


def names() -> tuple[str, ...]:
    """Of all controls, in alphabetical order."""
    return get_args(config.Control)


def find(name: str) -> Control:
    """The control of that name.

    Raises:
        DataError: there is none.
    """
    if name not in names():
        raise DataError(f"no control is called {name!r}: there are {', '.join(names())}")
    control: Control = importlib.import_module(f"{__name__}.{name}").CONTROL
    return control


def is_computed(name: str) -> bool:
    """Whether a control needs no file."""
    return find(name).computed is not None


def is_labels(name: str | None) -> bool:
    """Whether a control's colours must not be mixed when its pictures are resized; None is no control."""
    return name is not None and find(name).nearest


def computed() -> tuple[str, ...]:
    """Names of the controls that need no file."""
    return tuple(name for name in names() if is_computed(name))


def draw(control: str | None, uniform: Uniform) -> Settings | None:
    """Training settings of a control from :data:`~cosmos_distill.controls.DRAWS` numbers in [0, 1); None
    for one that has none."""
    how = None if control is None else find(control).computed
    return None if how is None else how.draw(uniform)


def preset(
    control: str | None, strength: Strength = "medium", factor: float | None = None
) -> Settings | None:
    """Settings of a control at inference; None for one that has none. Evaluation has the medium ones.

    With ``factor`` vis is a thumbnail, by that where it is medium and by a fixed share of it elsewhere.
    """
    how = None if control is None else find(control).computed
    return None if how is None else how.preset(strength, factor)


def compute(control: str, frames: np.ndarray, settings: Settings | None = None) -> np.ndarray:
    """The map of ``control`` with ``settings`` (None: the medium preset), RGB uint8 [F, H, W, 3] as the
    frames.

    Raises:
        DataError: a control that only files can give.
    """
    how = find(control).computed
    if how is None:
        raise DataError(
            f"the control {control!r} cannot be computed from pixels: give its videos in <root>/{control}/ "
            f"(data.source = folder), or choose --control {' or '.join(computed())}"
        )
    return how.map(frames, how.preset("medium", None) if settings is None else settings)


def check_frames(frames: np.ndarray) -> None:
    """Raises ValueError unless ``frames`` are RGB uint8 [F, H, W, 3]."""
    if str(frames.dtype) != "uint8" or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected RGB uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")


def integer(uniform: float, first: int, last: int) -> int:
    """The integer in first .. last, both included, that a number in [0, 1) stands for."""
    return first + int(uniform * (last - first + 1))

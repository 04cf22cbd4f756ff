"""Controls, one per file, found by the file's name: each file has a ``CONTROL``.

To add one, add a file: nothing else lists them, ``--control`` takes its name, and a folder of that name
beside the clips holds its videos. Maps are computed with the numbers of Cosmos-Transfer1's own augmentors,
from pixels alone or by a network that the user gives (:mod:`cosmos_distill.vision`). Training draws the
settings of each clip anew; sampling and evaluation use a preset. Torch-free until one is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from cosmos_distill.config import Strength, folders
from cosmos_distill.config.controls import CONTROLS
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


Map = Callable[["np.ndarray", Settings], "np.ndarray"]
"""The map of frames, both RGB uint8 [F, H, W, 3], with settings."""


def _no_settings(*given: Any) -> Settings:
    return ()


@dataclass(frozen=True, kw_only=True)
class Modelled:
    """How a control is computed by a network in a folder of the user's."""

    wants: str
    """The network, in words."""
    check: Callable[[Path], None]
    """Raises DataError for a folder that holds none; looks at small files only."""
    load: Callable[[Path], Map]
    """The map by the network in a folder."""
    draw: Callable[[Uniform], Settings] = _no_settings
    preset: Callable[[Strength, float | None], Settings] = _no_settings
    """Both as of :class:`Computed`."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """One kind of control."""

    computed: Computed | None = None
    """None: it cannot be computed from pixels alone."""
    modelled: Modelled | None = None
    """None: no network is known that computes it. Without both it comes from files."""
    nearest: bool = False
    """Its colours are labels, which have no meaningful average: videos are resized without mixing them."""


def names() -> tuple[str, ...]:
    """Of all controls, in alphabetical order."""
    return CONTROLS


def find(name: str) -> Control:
    """The control of that name.

    Raises:
        DataError: there is none.
    """
    try:
        control: Control = folders.find("control", name, names(), __name__).CONTROL
    except ValueError as error:
        raise DataError(str(error)) from error
    return control


def is_computed(name: str) -> bool:
    """Whether a control needs neither a file nor a network."""
    return find(name).computed is not None


def takes_model(name: str) -> bool:
    """Whether a network that the user gives computes a control."""
    return find(name).modelled is not None


def is_labels(name: str | None) -> bool:
    """Whether a control's colours must not be mixed when its pictures are resized; None is no control."""
    return name is not None and find(name).nearest


def computed() -> tuple[str, ...]:
    """Names of the controls that need no file."""
    return tuple(name for name in names() if is_computed(name))


def draw(control: str | None, uniform: Uniform) -> Settings | None:
    """Training settings of a control from :data:`~cosmos_distill.controls.DRAWS` numbers in [0, 1); None
    for one that has none."""
    how = None if control is None else _how(control)
    return None if how is None else how.draw(uniform)


def preset(
    control: str | None, strength: Strength = "medium", factor: float | None = None
) -> Settings | None:
    """Settings of a control at inference; None for one that has none. Evaluation has the medium ones.

    With ``factor`` vis is a thumbnail, by that where it is medium and by a fixed share of it elsewhere.
    """
    how = None if control is None else _how(control)
    return None if how is None else how.preset(strength, factor)


def _how(control: str) -> Computed | Modelled | None:
    found = find(control)
    return found.computed or found.modelled


def compute(
    control: str,
    frames: np.ndarray,
    settings: Settings | None = None,
    models: Mapping[str, Path] | None = None,
) -> np.ndarray:
    """The map of ``control`` with ``settings`` (None: the medium preset), RGB uint8 [F, H, W, 3] as the
    frames.

    Args:
        models: Folder of the network that computes a control, by the control's name.

    Raises:
        DataError: it is neither computed from pixels nor by a network that is given.
    """
    how = _how(control)
    if settings is None and how is not None:
        settings = how.preset("medium", None)
    if isinstance(how, Computed):
        return how.map(frames, settings)
    if (folder := (models or {}).get(control)) is None:
        raise DataError(missing(control))
    check_frames(frames)
    return _loaded(control, folder)(frames, settings)


@lru_cache(maxsize=8)
def _loaded(control: str, folder: Path) -> Map:
    how = find(control).modelled
    if how is None:
        raise DataError(f"{folder}: no network computes the control {control!r}: it comes from files")
    return how.load(folder)


def check_model(control: str, folder: Path) -> None:
    """Look whether the network in ``folder`` may compute a control, at its small files.

    Raises:
        DataError: it does not, or the control is of another kind.
    """
    found = find(control)
    if found.modelled is None:
        why = "is computed from pixels" if found.computed else "comes from files"
        raise DataError(f"the control {control!r} {why}, and no network computes it: leave {folder} out")
    found.modelled.check(folder)


def missing(control: str) -> str:
    """What to do about a control that is not computed from pixels, where neither its files nor a network are
    given."""
    how = find(control).modelled
    model = (
        f"or the folder of {how.wants}, which computes them, with --data.control-models {control} FOLDER; "
        if how is not None
        else ""
    )
    return (
        f"the control {control!r} cannot be computed from pixels alone: give its videos in <root>/{control}/ "
        f"(data.source = folder), {model}or choose --control {' or '.join(computed())}"
    )


def check_frames(frames: np.ndarray) -> None:
    """Raises ValueError unless ``frames`` are RGB uint8 [F, H, W, 3]."""
    if str(frames.dtype) != "uint8" or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"expected RGB uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")


def integer(uniform: float, first: int, last: int) -> int:
    """The integer in first .. last, both included, that a number in [0, 1) stands for."""
    return first + int(uniform * (last - first + 1))

"""Where in a clip its controls steer, and how much: maps of weights from files.

As in Cosmos-Transfer1's inference a map multiplies what a control adds, token by token; where the maps of
several add up to more than 1 they are divided by their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from cosmos_distill.arrays import companions, rebuild, torch_files
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.text import load_array
from cosmos_distill.errors import Refusal

if TYPE_CHECKING:
    from torch import Tensor

KEY = "control_weight"
"""Of the array in a file with several."""
Pictures = Callable[[str, Path], Sequence[np.ndarray]]
"""(option, file) -> its frames in the student's size, RGB uint8 [H, W, 3]; one of a still image."""


def refuse(maps: Mapping[str, Path], mix: ControlMix, own: bool) -> None:
    """Raises Refusal unless maps and controls go together.

    Args:
        own: Whether the clips' controls are files of the user's.
    """
    if not maps:
        return
    if others := [name for name in maps if name not in mix.used]:
        raise Refusal(
            f"--control-maps {others[0]}: the controls of these clips are {', '.join(mix.used) or 'none'}: "
            "leave it out"
        )
    if not own:
        raise Refusal(
            "--control-maps are of one clip: give its control beside them, with --control-video, --video or "
            "--control-videos"
        )


class Window(NamedTuple):
    """The part of a clip that a map is wanted of."""

    frames: int
    """Of the window."""
    first: int
    """Frames that its first latent frame stands for."""
    grid: tuple[int, int, int]
    """Its tokens, (T, H/p, W/p)."""
    offset: int
    """Number of its first frame."""
    total: int
    """Frames of the whole clip."""


def weights(maps: Mapping[str, Path], mix: ControlMix, pictures: Pictures, window: Window) -> Tensor:
    """What each control is multiplied by, for every token: fp32 [1, branches, T, H/p, W/p] of a network with
    several branches, else [1, T, H/p, W/p].

    Args:
        maps: Control -> its file; what has none has its weight everywhere.

    Raises:
        Refusal: a file cannot be used.
    """
    found = [
        weight * _tokens(f"--control-maps {name}", maps[name], pictures, window)
        if name in maps
        else torch.full(window.grid, weight)
        for name, weight in mix.weights.items()
        if mix.slots or weight
    ]
    together = torch.stack(found)
    together = together / together.sum(0).clamp_min(1)
    return together[None] if mix.slots else together


def _of_torch(path: Path) -> np.ndarray:
    """The one tensor of a file of torch's, of which nothing is executed. Raises ValueError: it is none."""
    found = rebuild.tensor(torch_files.read(path))
    if found is None:
        raise ValueError(f"{path} holds no tensor: save the map alone, as torch.save(map, file)")
    values: np.ndarray = found.float().numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds NaN or infinity: make the file again")
    return values


def _tokens(option: str, path: Path, pictures: Pictures, window: Window) -> Tensor:
    frames, first, (count, height, width), offset, total = window
    suffix = path.suffix.lower()
    if suffix in (*companions.SUFFIXES, ".pt"):
        try:
            values = _of_torch(path) if suffix == ".pt" else load_array(path, KEY)
        except (DataError, ValueError, OSError) as error:
            raise Refusal(f"{option}: {error}") from error
        if values.ndim == 2:
            values = values[None]
        if values.ndim != 3 or len(values) not in (1, total) or not values.size:
            raise Refusal(
                f"{option}: {path} is {list(values.shape)}, and a map is [H, W] or, of {total} frames, "
                f"[{total}, H, W]"
            )
        if values.min() < 0:
            raise Refusal(f"{option}: {path} has weights below 0: give some from 0 on")
        values = values if len(values) == 1 else values[offset : offset + frames]
    else:
        values = np.stack([frame.mean(2, dtype=np.float32) / 255 for frame in pictures(option, path)])
    shown = torch.from_numpy(np.ascontiguousarray(values, np.float32)).expand(frames, -1, -1)[None, None]
    parts = [F.adaptive_avg_pool3d(shown[:, :, :first], (1, height, width))]
    if count > 1:
        parts.append(F.adaptive_avg_pool3d(shown[:, :, first:], (count - 1, height, width)))
    return torch.cat(parts, dim=2)[0, 0]

"""Which controls ``cosmos-distill sample`` draws clips for, with what weights, and what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cosmos_distill import controls
from cosmos_distill.config.controls import weights_of
from cosmos_distill.data.control_mix import ControlMix
from cosmos_distill.data.errors import DataError
from cosmos_distill.errors import Refusal

if TYPE_CHECKING:
    from cosmos_distill.sampling.options import SampleOptions


class ControlFile(NamedTuple):
    """A file of the user's that a control is made of."""

    option: str
    path: Path
    computed: bool
    """It shows the clip, of which the control is computed."""


def chosen(options: SampleOptions, control: str | None, branches: int) -> ControlMix:
    """The student's controls with the weights that are asked for.

    Args:
        control: Of the student, as its recipe wrote it.
        branches: Control branches of its network.

    Raises:
        Refusal: it was not trained with one, or takes one at a time.
    """
    own = weights_of(control)
    if options.control is None:
        return ControlMix(own, branches)
    try:
        asked = weights_of(options.control)
    except ValueError as error:
        raise Refusal(f"--control {error}") from error
    if not own:
        raise Refusal("--control: this student takes no control: leave it out")
    if others := [name for name in asked if name not in own]:
        raise Refusal(
            f"--control {others[0]}: this student was trained with {', '.join(own)}: name one of these"
        )
    used = [name for name, weight in asked.items() if weight]
    if branches == 1 and len(used) > 1:
        raise Refusal(
            f"--control {options.control}: this student has one control branch, which takes one of "
            f"{', '.join(used)} at a time: name one"
        )
    return ControlMix({name: asked.get(name, 0.0) for name in own}, branches)


def files_of(options: SampleOptions, mix: ControlMix) -> dict[str, ControlFile]:
    """What each control that is used is made of, in their order; nothing where the user gives no file.

    Raises:
        Refusal: files and controls do not fit each other, or a control has no file.
    """
    _check_models(options.control_models or {})
    one, videos = options.control_video, options.control_videos or {}
    if one and options.video:
        raise Refusal("--control-video and --video exclude each other: give one")
    if one and videos:
        raise Refusal("--control-video and --control-videos exclude each other: give one")
    if options.video and mix.used and videos.keys() >= set(mix.used):
        raise Refusal("--video: --control-videos gives every control already: leave it out")
    given = [
        name
        for name, value in (
            ("--control-video", one), ("--video", options.video), ("--control-videos", videos)
        )
        if value
    ]  # fmt: skip
    if not given:
        return {}
    if not mix.weights:
        raise Refusal(f"{given[0]}: this student takes no control; --start gives its clips a beginning")
    if not mix.slots and len(mix.used) > 1:
        raise Refusal(
            f"{given[0]}: this student was trained with {', '.join(mix.used)}, one at a time: say which with "
            "--control"
        )
    if one and len(mix.used) > 1:
        raise Refusal(
            f"--control-video: this student takes {', '.join(mix.used)} at once: give each its video with "
            "--control-videos, or choose one with --control"
        )
    if others := [name for name in videos if name not in mix.used]:
        raise Refusal(
            f"--control-videos {others[0]}: the controls of these clips are {', '.join(mix.used)}: leave it "
            "out"
        )
    return {name: _file_of(name, options) for name in mix.used}


def _file_of(name: str, options: SampleOptions) -> ControlFile:
    if (path := (options.control_videos or {}).get(name)) is not None:
        return ControlFile(f"--control-videos {name}", path, False)
    if options.control_video is not None:
        return ControlFile("--control-video", options.control_video, False)
    if options.video is None:
        raise Refusal(
            f"{name} has no video: give it with --control-videos, or with --video a clip of which it is "
            "computed, or leave it out of --control"
        )
    if not controls.is_computed(name) and name not in (options.control_models or {}):
        raise Refusal(
            f"{name} cannot be computed from a video alone: give it with --control-video"
            + ", or the network that computes it with --control-models" * controls.takes_model(name)
        )
    return ControlFile("--video", options.video, True)


def _check_models(models: Mapping[str, Path]) -> None:
    for name, folder in models.items():
        try:
            controls.check_model(name, folder)
        except DataError as error:
            raise Refusal(f"--control-models {name}: {error}") from error

"""``cosmos-distill sample STUDENT.safetensors``: clips from an exported file and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cosmos_distill import models
from cosmos_distill.config import Control, Data, FewStep, Guidance
from cosmos_distill.data.frames import to_frames
from cosmos_distill.diffusion import Schedule, schedule_from_dict
from cosmos_distill.files import disk_errors
from cosmos_distill.models import weights
from cosmos_distill.models.presets import PRESETS, NetworkConfig
from cosmos_distill.stages.conditions import Conditions
from cosmos_distill.stages.export import FORMAT
from cosmos_distill.stages.folder import blocked
from cosmos_distill.stages.manifest import Refusal
from cosmos_distill.stages.networks import DTYPES, device
from cosmos_distill.stages.options import SampleOptions
from cosmos_distill.stages.sampling import few_steps, many_steps, noise_of
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.visuals import grid

if TYPE_CHECKING:
    from torch import Tensor

GRID_CLIPS = 4
GRID = "grid.png"
SMALLEST_SIDE = 256


@dataclass(frozen=True)
class ManySteps:
    """The sampler of a teacher."""

    steps: int
    guidance: Guidance


@dataclass(frozen=True)
class Exported:
    """What an exported file says of itself."""

    network: NetworkConfig
    control: Control | None
    data: Data
    schedule: Schedule
    sampler: FewStep | ManySteps
    precision: Any


def draw(student: Path, options: SampleOptions) -> list[Path]:
    """Write the clips as mp4 and a few of them as one PNG; returns the video files.

    Raises:
        Refusal: the file is no export, or what is asked for does not fit it.
    """
    _refuse_earlier(options)
    try:
        exported = read(student)
        precision = DTYPES[exported.precision]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(
            f"{student} says of itself what this version does not understand ({error}): export it again"
        ) from error
    network = models.build(exported.network, device=device(), dtype=precision, seed=None).eval()
    try:
        weights.load_into(network, student)
    except (ValueError, OSError) as error:
        raise Refusal(str(error)) from error
    clips = Conditions(options, exported.network, exported.control, exported.data, exported.schedule)
    with disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    pictures: dict[str, Tensor] = {}
    for first in range(0, options.clips, options.batch):
        batch, control = clips.batch(first, min(options.batch, options.clips - first))
        batch = batch.to(device())
        noise = noise_of(options.seed, "sample", batch)
        frames = torch.full((len(batch),), clips.frames)
        levels, sampler = exported.schedule, exported.sampler
        if isinstance(sampler, FewStep):
            latents = few_steps(network, levels, batch, noise, sampler, frames=frames, seed=options.seed)
        else:
            latents = many_steps(network, levels, batch, noise, sampler.guidance, sampler.steps, frames)
        videos = clips.decode(latents.cpu())
        if not pictures:
            pictures["sample"] = videos[:GRID_CLIPS]
            if control is not None:
                pictures["control"] = control[:GRID_CLIPS]
        for clip, fps in zip(videos, batch.fps.tolist(), strict=True):
            path = options.out / _name(len(written))
            with disk_errors(path):
                written.append(write_mp4(clip, path, fps))
    picture = grid(pictures, options.out / GRID)
    print(f"{len(written)} clips and {picture.name} in {options.out}")
    return written


def _name(index: int) -> str:
    return f"clip-{index:03d}.mp4"


def _refuse_earlier(options: SampleOptions) -> None:
    """Nobody's clips are replaced unasked.

    Raises:
        Refusal: the folder cannot be made, or holds files of these names.
    """
    if reason := blocked(options.out):
        raise Refusal(f"--out {options.out} {reason}: choose another folder with --out.")
    names = [_name(i) for i in range(options.clips)] + [GRID]
    there = [name for name in names if (options.out / name).exists()]
    if there and not options.overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise Refusal(
            f"{options.out} holds {there[0]}{more} already: choose another folder with --out, or replace "
            "them with --overwrite"
        )


def read(path: Path) -> Exported:
    """Understand an exported file.

    Raises:
        Refusal: it is missing, no export, or newer than this version.
    """
    if not path.is_file():
        raise Refusal(f"{path}: no such file; `cosmos-distill RECIPE.py` writes one in its export stage")
    try:
        said = read_metadata(path)
    except Exception as error:  # safetensors raises its own types, none of them worth a traceback
        raise Refusal(f"{path} is no safetensors file ({error})") from error
    if said.get("format") != FORMAT or said.get("network") not in PRESETS:
        raise Refusal(f"{path} was not written by an export stage of this version: export it again")
    data: dict[str, Any] = {
        k: Path(v) if k in ("root", "tokenizer_path") and v else v for k, v in said["data"].items()
    }
    return Exported(
        network=PRESETS[said["network"]],
        control=said["control"],
        data=Data(**data),
        schedule=schedule_from_dict(said["schedule"]),
        sampler=_sampler(said["sampler"]),
        precision=said["precision"],
    )


def _sampler(said: dict[str, Any]) -> FewStep | ManySteps:
    """``few_step`` or ``teacher``; the first exports said ``one_step`` and ``res_2ab`` for the same."""
    settings = {key: value for key, value in said.items() if key != "kind"}
    if said["kind"] in ("few_step", "one_step"):
        return FewStep(**settings)
    return ManySteps(settings["steps"], Guidance(**settings["guidance"]))


def write_mp4(clip: Tensor, path: Path, fps: float) -> Path:
    """Write one clip, uint8 [3, F, H, W], as H.264; small ones are enlarged by repeating pixels, so that a
    player shows them."""
    import av

    factor = -(-SMALLEST_SIDE // min(clip.shape[-2:])) if min(clip.shape[-2:]) < SMALLEST_SIDE else 1
    frames = to_frames(clip[None])[0].repeat(factor, axis=1).repeat(factor, axis=2)
    temporary = path.with_name(f".{path.name}.tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)
    return path

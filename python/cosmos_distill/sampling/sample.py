"""``cosmos-distill sample STUDENT.safetensors``: clips from an exported file and what the user names."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cosmos_distill.config import Data, FewStep
from cosmos_distill.data.control_mix import control_rows
from cosmos_distill.data.write_video import write_mp4
from cosmos_distill.errors import Refusal
from cosmos_distill.models.common.projection import TextProjection
from cosmos_distill.run.folder import blocked
from cosmos_distill.run.networks import DTYPES, device, load
from cosmos_distill.run.sizes import clip_bytes, too_large
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.exported import Exported, files, read, with_files
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.prompts import told
from cosmos_distill.sampling.samplers import few_steps, many_steps, noise_of
from cosmos_distill.storage import DiskError, disk_errors
from cosmos_distill.train.visuals import GRID_CLIPS, grid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cosmos_distill.data.batch import Batch

GRID = "grid.png"
_FILES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg", ".webp"}
"""Suffixes by which ``--out`` names a file."""


def draw(student: Path, options: SampleOptions) -> list[Path]:
    """Write the clips as mp4 and a few of them as one PNG, or one clip as the file that ``out`` names.

    Returns:
        The video files.

    Raises:
        Refusal: the file is no export, or what is asked for does not fit it.
    """
    options, names = _place(options)
    _refuse_earlier(options, names)
    exported = read(student)
    batch_size = min(options.batch, options.clips)
    each = clip_bytes(exported.data, exported.network.controls)
    each += 2 * (options.windows - 1) * clip_bytes(exported.data, 0)  # kept, and joined in the end
    if reason := too_large(batch_size, each):
        raise Refusal(f"--batch {batch_size}: {reason}")
    data = with_files(exported, options, student)
    own = files(student, exported)
    spoken = told(exported, options, student, own)
    data, projection = _captioned(exported, data, options, own)
    network = load(exported.network, own, DTYPES[exported.precision])
    clips = Conditions(
        options, exported.network, exported.control, data, exported.schedule, spoken.texts, projection
    )
    with disk_errors(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    pictures: dict[str, Tensor] = {}
    with _disk(options, written):
        for first in range(0, options.clips, options.batch):
            batch, control = clips.batch(first, min(options.batch, options.clips - first))
            if spoken.negative is not None:
                said, one = batch.conditioning, spoken.negative
                if projection is not None and one.shape[-1] != said.text.shape[-1]:
                    one = projection(one)
                said = dataclasses.replace(said, negative_text=one.expand_as(said.text))
                batch = dataclasses.replace(batch, conditioning=said)
            batch = batch.to(device())
            videos = _window(student, exported, network, clips, batch, options.seed)
            whole = [videos]
            for number in range(1, options.windows):
                batch = clips.following(batch, whole[-1], number)
                whole.append(_window(student, exported, network, clips, batch, options.seed, number))
            if len(whole) > 1:
                new = (one[:, :, clips.shown_again :] for one in whole[1:])
                videos = torch.cat([videos, *new], dim=2)
            if not pictures:
                pictures["sample"] = videos[:GRID_CLIPS]
                shown = None if control is None else control[:GRID_CLIPS]
                pictures.update(control_rows(exported.control, shown))
            assert batch.conditioning.fps is not None
            for clip, fps in zip(videos, batch.conditioning.fps.tolist(), strict=True):
                path = options.out / names[len(written)]
                with disk_errors(path):
                    written.append(write_mp4(clip, path, fps))
        if GRID in names:
            grid(pictures, options.out / GRID)
    also = f" and {GRID}" if GRID in names else f", {written[0].name},"
    print(f"{len(written)} {'clip' if len(written) == 1 else 'clips'}{also} in {options.out}")
    return written


def _window(
    student: Path,
    exported: Exported,
    network: nn.Module,
    clips: Conditions,
    batch: Batch,
    seed: int,
    number: int = 0,
) -> Tensor:
    """Window ``number`` of the clips of a batch, uint8 [B, 3, F, H, W].

    Raises:
        Refusal: it holds NaN or infinity.
    """
    of = f" of window {number}" if number else ""
    noise = noise_of(seed, f"sample{of}", batch)
    frames = torch.full((len(batch),), clips.overlap if number else clips.frames)
    levels, sampler = exported.schedule, exported.sampler
    if isinstance(sampler, FewStep):
        latents = few_steps(
            network, levels, batch, noise, sampler, frames=frames, seed=seed, stream=f"student{of}"
        )
    else:
        latents = many_steps(
            network, levels, batch, noise, sampler.guidance, exported.network.family.teacher, sampler.steps,
            frames,
        )  # fmt: skip
    if not latents.isfinite().all():
        raise Refusal(
            f"{student}: what it draws as clips {batch.first} to {batch.first + len(batch) - 1} holds NaN or "
            "infinity, which no picture shows: export it again in fp32, or take an earlier one"
        )
    return clips.decode(latents.cpu())


def _captioned(
    exported: Exported, data: Data, options: SampleOptions, own: tuple[Path, ...]
) -> tuple[Data, TextProjection | None]:
    """The data of a folder whose captions are encoded, and what of the student they are stored behind."""
    if options.text_encoder is None or options.data_root is None:
        return data, None
    sizes = exported.network
    wide = sizes.text_channels != sizes.text_dim
    return (
        dataclasses.replace(data, text_encoder=options.text_encoder),
        TextProjection(own) if wide else None,
    )


@contextmanager
def _disk(options: SampleOptions, written: list[Path]) -> Iterator[None]:
    """Say what is true of this command where a file cannot be written: clips that it finds stop it.

    Raises:
        DiskError: for any other.
    """
    try:
        yield
    except DiskError as error:
        if not written or options.overwrite:
            raise
        why = getattr(error.__cause__, "strerror", None) or error.__cause__ or error
        raise DiskError(
            f"cannot write into {options.out} ({why}): {len(written)} of {options.clips} clips are there; "
            "once this is mended, the same command with --overwrite draws all of them"
        ) from error


def _place(options: SampleOptions) -> tuple[SampleOptions, list[str]]:
    """The options with a folder, and the names of the files to write in it: where ``out`` names a video, of a
    single clip, that one.

    Raises:
        Refusal: it names a file of another kind, or a single one for several clips.
    """
    name, suffix = options.out.name, options.out.suffix.lower()
    if suffix not in _FILES or options.out.is_dir():
        return options, [f"clip-{i:03d}.mp4" for i in range(options.clips)] + [GRID]
    if suffix != ".mp4":
        raise Refusal(
            f"--out {options.out} names a {suffix} file, and clips are written as .mp4: name a folder or, "
            "with --clips 1, an .mp4 file"
        )
    if options.clips > 1:
        raise Refusal(
            f"--out {options.out} names one video for {options.clips} clips: name a folder, or add --clips 1"
        )
    return dataclasses.replace(options, out=options.out.parent), [name]


def _refuse_earlier(options: SampleOptions, names: list[str]) -> None:
    """Nobody's clips are replaced unasked.

    Raises:
        Refusal: the folder cannot be made, or holds files of these names.
    """
    if reason := blocked(options.out):
        raise Refusal(f"--out {options.out} {reason}: choose another folder with --out.")
    there = [name for name in names if os.path.lexists(options.out / name)]
    if folders := [name for name in there if (options.out / name).is_dir()]:
        raise Refusal(
            f"{options.out / folders[0]} is a folder, where a file is to be written: remove it, or choose "
            "another folder with --out"
        )
    if there and not options.overwrite:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise Refusal(
            f"{options.out} holds {there[0]}{more} already: choose another folder with --out, or replace "
            "them with --overwrite"
        )

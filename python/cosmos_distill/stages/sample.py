"""``cosmos-distill sample STUDENT.safetensors``: clips from an exported file and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cosmos_distill import models
from cosmos_distill.config import Control, Data, Guidance
from cosmos_distill.data import clips as files
from cosmos_distill.data import controls
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.fit import Fit
from cosmos_distill.data.sources import open_source, to_frames, to_video
from cosmos_distill.data.text import HashTextEncoder, load_embedding
from cosmos_distill.diffusion import Schedule, schedule_from_dict
from cosmos_distill.models import weights
from cosmos_distill.models.presets import PRESETS, NetworkConfig
from cosmos_distill.stages.export import FORMAT
from cosmos_distill.stages.manifest import Refusal
from cosmos_distill.stages.networks import DTYPES, device
from cosmos_distill.stages.options import SampleOptions
from cosmos_distill.stages.sampling import many_steps, noise_of, single_step
from cosmos_distill.tokenizers import build as build_tokenizer
from cosmos_distill.train.checkpoint import read_metadata
from cosmos_distill.train.visuals import grid

if TYPE_CHECKING:
    from torch import Tensor

GRID_CLIPS = 4
SMALLEST_SIDE = 256


@dataclass(frozen=True)
class Exported:
    """What an exported file says of itself."""

    network: NetworkConfig
    control: Control
    data: Data
    schedule: Schedule
    sampler: dict[str, Any]
    precision: Any


def draw(student: Path, options: SampleOptions) -> list[Path]:
    """Write the clips as mp4 and a few of them as one PNG; returns the video files.

    Raises:
        Refusal: the file is no export, or what is asked for does not fit it.
    """
    exported = read(student)
    network = models.build(
        exported.network, device=device(), dtype=DTYPES[exported.precision], seed=None
    ).eval()
    weights.load_into(network, student)
    clips = _Controls(options, exported)
    options.out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    pictures: dict[str, Tensor] = {}
    for first in range(0, options.clips, options.batch):
        batch, control = clips.batch(first, min(options.batch, options.clips - first))
        batch = batch.to(device())
        noise = noise_of(options.seed, "sample", batch)
        if exported.sampler["kind"] == "one_step":
            latents = single_step(network, exported.schedule, batch, noise)
        else:
            guidance = Guidance(**exported.sampler["guidance"])
            latents = many_steps(
                network, exported.schedule, batch, noise, guidance, exported.sampler["steps"]
            )
        videos = clips.decode(latents.cpu())
        if not pictures:
            pictures = {"sample": videos[:GRID_CLIPS], "control": control[:GRID_CLIPS]}
        for clip, fps in zip(videos, batch.fps.tolist(), strict=True):
            written.append(write_mp4(clip, options.out / f"clip-{len(written):03d}.mp4", fps))
    picture = grid(pictures, options.out / "grid.png")
    print(f"{len(written)} clips and {picture.name} in {options.out}")
    return written


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
        sampler=said["sampler"],
        precision=said["precision"],
    )


class _Controls:
    """Batches to draw clips for: of held-out clips, or of one control given by the user."""

    def __init__(self, options: SampleOptions, exported: Exported) -> None:
        data = dataclasses.replace(exported.data, root=options.data_root)
        self._exported, self._data, self._options = exported, data, options
        self._sigma_data = exported.schedule.config.sigma_data
        if options.control_video and options.video:
            raise Refusal("--control-video and --video exclude each other: give one")
        own = options.control_video or options.video
        if own is None:
            if data.source == "folder" and data.root is None:
                raise Refusal(
                    "give a control with --control-video or --video, or a folder of clips with --data-root"
                )
            self._source = open_source(
                data,
                exported.control,
                0,
                split="eval",
                text_channels=exported.network.text_channels,
                text_tokens=exported.network.text_tokens,
                schedule=exported.schedule.config,
                device=device(),
            )
            return
        self._tokenizer = build_tokenizer(data, device())
        frames, padding, fps = _window(own, data)
        if options.video:
            if exported.control not in controls.COMPUTED:
                raise Refusal(
                    f"{exported.control} cannot be computed from a video: give it with --control-video"
                )
            frames = controls.compute(exported.control, frames)
        self._control = to_video(frames[None])
        text = torch.from_numpy(self._text())[None]
        latents = self._tokenizer.encode(self._control).cpu() * self._sigma_data
        masks = _pooled(padding, latents)
        self._one = Batch(
            first=0,
            latents=torch.zeros_like(latents),
            hint=latents,
            text=text,
            negative_text=torch.zeros_like(text),
            fps=torch.tensor([fps]),
            padding_mask=(masks > 0.5).float(),
        )

    def batch(self, first: int, count: int) -> tuple[Batch, Tensor]:
        """The batch and its control as pixels, uint8 [B, 3, F, H, W]."""
        if hasattr(self, "_source"):
            return self._source.batch(first, count), self._source.pixels(first, count)[1]
        repeated: dict[str, Any] = {
            f.name: value.expand(count, *value.shape[1:])
            for f in dataclasses.fields(Batch)
            if isinstance(value := getattr(self._one, f.name), torch.Tensor)
        }
        return Batch(first=first, **repeated), self._control.expand(count, -1, -1, -1, -1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 [B, 3, F, H, W]."""
        if hasattr(self, "_source"):
            return self._source.decode(latents)
        return self._tokenizer.decode(latents / self._sigma_data).cpu()

    def _text(self) -> np.ndarray:
        tokens, channels = self._exported.network.text_tokens, self._exported.network.text_channels
        if self._options.prompt_embedding is not None:
            return load_embedding(self._options.prompt_embedding, tokens, channels)
        if self._data.source == "folder" and self._options.prompt:
            raise Refusal("T5 does not run here: give the prompt's embedding with --prompt-embedding")
        return HashTextEncoder(tokens, channels)(self._options.prompt or "")


def _pooled(padding: np.ndarray, latents: Tensor) -> Tensor:
    """Share of padding in each latent pixel, [1, 1, H, W]."""
    size = (latents.shape[-2], latents.shape[-1])
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(padding)[None, None], size)


def _window(path: Path, data: Data) -> tuple[np.ndarray, np.ndarray, float]:
    """The first window of a video in the student's size: RGB [F, H, W, 3], padding mask [H, W], fps."""
    fit: list[Fit] = []

    def place(image: np.ndarray) -> np.ndarray:
        if not fit:
            fit.append(Fit(image.shape[0], image.shape[1], data.height, data.width))
        return fit[0](image)

    wanted = range(0, (data.frames - 1) * data.stride + 1, data.stride)
    frames, fps = files.decode(path, place, wanted)
    return np.stack(frames), fit[0].padding, fps / data.stride


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

"""What ``cosmos-distill sample`` draws clips for: held-out clips, or files of the user's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cosmos_distill.config import Control, Data
from cosmos_distill.data import clips as files
from cosmos_distill.data import controls
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.fit import Fit
from cosmos_distill.data.frames import to_video
from cosmos_distill.data.sources import open_source
from cosmos_distill.data.text import HashTextEncoder, load_embedding
from cosmos_distill.stages.checks import STRIDES
from cosmos_distill.stages.manifest import Refusal
from cosmos_distill.stages.networks import device
from cosmos_distill.tokenizers import build as build_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.diffusion import Schedule
    from cosmos_distill.models.presets import NetworkConfig
    from cosmos_distill.stages.options import SampleOptions

IMAGES = (".png", ".jpg", ".jpeg")
FPS = 24.0
"""Of clips that begin with an image."""


class Conditions:
    """Batches to draw clips for.

    Attributes:
        frames: Leading latent frames given of every clip.

    Raises:
        Refusal: what is asked for does not fit the student, with the reason.
    """

    def __init__(
        self,
        options: SampleOptions,
        network: NetworkConfig,
        control: Control | None,
        data: Data,
        schedule: Schedule,
    ) -> None:
        self._options, self._network, self._control_name = options, network, control
        self._data = dataclasses.replace(data, root=options.data_root)
        self._sigma_data = schedule.config.sigma_data
        own = options.control_video or options.video
        if options.control_video and options.video:
            raise Refusal("--control-video and --video exclude each other: give one")
        if own and control is None:
            option = "--control-video" if options.control_video else "--video"
            raise Refusal(f"{option}: this student takes no control; --start gives its clips a beginning")
        if options.start and control is not None and own is None:
            raise Refusal("--start needs a control beside it: give one with --control-video or --video")
        self.frames = self._count_frames()
        if own is None and options.start is None:
            self._source = self._open(schedule)
            return
        self._tokenizer = build_tokenizer(self._data, device())
        shape = self._tokenizer.latent_shape(data.frames, data.height, data.width)
        latents = torch.zeros(1, *shape)
        hint: Tensor | None = None
        self._control: Tensor | None = None
        padding, fps = torch.zeros(1, 1, *shape[2:]), FPS
        if own is not None:
            hint, padding, fps = self._encode_control(own)
        if options.start is not None and self.frames:
            pixels, fps = self._beginning(options.start)
            latents[:, :, : self.frames] = self._encode(pixels)
        text = torch.from_numpy(self._text())[None]
        self._one = Batch(
            first=0, latents=latents, hint=hint, text=text, negative_text=torch.zeros_like(text),
            fps=torch.tensor([fps]), padding_mask=padding,
        )  # fmt: skip

    def batch(self, first: int, count: int) -> tuple[Batch, Tensor | None]:
        """The batch and its control as pixels, uint8 [B, 3, F, H, W], where there is one."""
        if hasattr(self, "_source"):
            return self._source.batch(first, count), self._source.pixels(first, count)[1]
        repeated: dict[str, Any] = {
            f.name: value.expand(count, *value.shape[1:])
            for f in dataclasses.fields(Batch)
            if isinstance(value := getattr(self._one, f.name), torch.Tensor)
        }
        control = None if self._control is None else self._control.expand(count, -1, -1, -1, -1)
        return Batch(first=first, **{"hint": None, **repeated}), control

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 [B, 3, F, H, W]."""
        if hasattr(self, "_source"):
            return self._source.decode(latents)
        return self._tokenizer.decode(latents / self._sigma_data).cpu()

    def _count_frames(self) -> int:
        options, most = self._options, self._data.max_condition_frames
        frames = options.condition_frames
        if frames is None:
            if options.start is None:
                return 0
            frames = 1 if options.start.suffix.lower() in IMAGES else most
        if not 0 <= frames <= most:
            raise Refusal(
                f"--condition-frames {frames}: this student was trained with 0 to {most} given latent frames"
            )
        if options.start is not None and frames == 0:
            raise Refusal(
                f"--start {options.start} gives frames, but this student was trained with none"
                if most == 0
                else f"--start {options.start} with --condition-frames 0: leave one of them out"
            )
        return frames

    def _open(self, schedule: Schedule) -> Any:
        if self._data.source == "folder" and self._data.root is None:
            wanted = (
                "a beginning with --start"
                if self._control_name is None
                else ("a control with --control-video or --video")
            )
            raise Refusal(f"give {wanted}, or a folder of clips with --data-root")
        return open_source(
            self._data, self._control_name, 0, split="eval", text_channels=self._network.text_channels,
            text_tokens=self._network.text_tokens, schedule=schedule.config, device=device(),
        )  # fmt: skip

    def _encode(self, video: Tensor) -> Tensor:
        return self._tokenizer.encode(video).cpu() * self._sigma_data

    def _encode_control(self, path: Path) -> tuple[Tensor, Tensor, float]:
        frames, padding, fps = _window(path, self._data)
        if self._options.video:
            assert self._control_name is not None
            if self._control_name not in controls.COMPUTED:
                raise Refusal(
                    f"{self._control_name} cannot be computed from a video: give it with --control-video"
                )
            frames = controls.compute(self._control_name, frames, factor=self._data.vis_thumbnail)
        self._control = to_video(frames[None])
        hint = self._encode(self._control)
        size = (hint.shape[-2], hint.shape[-1])
        share = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(padding)[None, None], size)
        return hint, (share > 0.5).float(), fps

    def _beginning(self, path: Path) -> tuple[Tensor, float]:
        """The pixel frames that ``frames`` latent frames stand for, uint8 [1, 3, F, H, W], and their fps."""
        data = self._data
        time = STRIDES[data.tokenizer][0]
        wanted = range(0, (self.frames - 1) * time * data.stride + 1, data.stride)
        if not path.is_file():
            raise Refusal(f"--start {path}: no such file")
        if path.suffix.lower() in IMAGES:
            if self.frames > 1:
                raise Refusal(
                    f"--start {path} is one image and gives 1 latent frame, not {self.frames}: give a video"
                )
            from PIL import Image, UnidentifiedImageError

            try:
                frames, fps = [np.asarray(Image.open(path).convert("RGB"))], FPS
            except UnidentifiedImageError as error:
                raise Refusal(f"--start {path} is no image ({error})") from error
        else:
            there = files.count_frames(path)
            if there <= wanted[-1]:
                raise Refusal(
                    f"--start {path} is too short: {self.frames} latent frames are {len(wanted)} frames at "
                    f"stride {data.stride}, hence {wanted[-1] + 1} frames of the video, and it has {there}"
                )
            frames, fps = files.decode(path, None, wanted)
            fps /= data.stride
        height, width = frames[0].shape[:2]
        times = height // data.height
        if (height, width) != (times * data.height, times * data.width) or not times:
            raise Refusal(
                f"--start {path} is {width} x {height} pixels, and this student's clips are {data.width} x "
                f"{data.height}: scale and crop it to that size, or to a multiple of it"
            )
        blocks = np.stack(frames).reshape(len(frames), data.height, times, data.width, times, 3)
        return to_video(blocks.mean((2, 4)).round().astype(np.uint8)[None]), fps

    def _text(self) -> np.ndarray:
        tokens, channels = self._network.text_tokens, self._network.text_channels
        if self._options.prompt_embedding is not None:
            return load_embedding(self._options.prompt_embedding, tokens, channels)
        if self._data.source == "folder" and self._options.prompt:
            raise Refusal(
                "the text encoder does not run here: give the prompt's embedding with --prompt-embedding"
            )
        return HashTextEncoder(tokens, channels)(self._options.prompt or "")


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

"""What ``cosmos-distill sample`` draws clips for: held-out clips, or files of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cosmos_distill import controls
from cosmos_distill.config import Control, Data
from cosmos_distill.data import video
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clip_source import padding_mask
from cosmos_distill.data.conditioning import Conditioning
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.fit import Fit
from cosmos_distill.data.frames import to_video
from cosmos_distill.data.images import is_image, read_image
from cosmos_distill.data.sources import open_source
from cosmos_distill.errors import Refusal
from cosmos_distill.run.networks import device
from cosmos_distill.run.sizes import tokenizer
from cosmos_distill.tokenizers import build as build_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.diffusion import Schedule
    from cosmos_distill.models.common.config import DiTConfig
    from cosmos_distill.models.common.projection import TextProjection
    from cosmos_distill.sampling.options import SampleOptions

FPS = 24.0
"""Of clips that are made from still images alone."""
Place = Callable[[tuple[int, int]], Callable[[np.ndarray], np.ndarray]]
"""(height, width) as shown -> how to bring such a picture to the student's size."""


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The frames of a user's file that one clip needs.

    Attributes:
        frames: RGB uint8 [H, W, 3] each, in the student's size; one where the file is a still image.
        size: (height, width) that a player shows them in.
        rate: frames per second of what the network sees; None for a still image.
    """

    frames: list[np.ndarray]
    size: tuple[int, int]
    rate: float | None


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
        network: DiTConfig,
        control: Control | None,
        data: Data,
        schedule: Schedule,
        texts: Tensor | None = None,
        projection: TextProjection | None = None,
    ) -> None:
        """See the class. ``texts`` are embeddings of the user's prompts, [P, tokens, channels]; captions of a
        folder become what is behind the ``projection``."""
        self._texts, self._projection = texts, projection
        self._options, self._network, self._control_name = options, network, control
        self._data = dataclasses.replace(data, root=options.data_root, control_models=options.control_models)
        self._sigma_data = schedule.config.sigma_data
        own = options.control_video or options.video
        if options.control_video and options.video:
            raise Refusal("--control-video and --video exclude each other: give one")
        by_pixels = control is None or controls.is_computed(control)
        if options.video and not by_pixels and control not in (options.control_models or {}):
            assert control is not None
            raise Refusal(
                f"{control} cannot be computed from a video alone: give it with --control-video"
                + ", or the network that computes it with --control-models" * controls.takes_model(control)
            )
        if own and control is None:
            option = "--control-video" if options.control_video else "--video"
            raise Refusal(f"{option}: this student takes no control; --start gives its clips a beginning")
        if options.control_strength != "medium" and not options.video:
            raise Refusal("--control-strength is that of the control of --video: give one, or leave it out")
        if options.start and control is not None and own is None:
            raise Refusal("--start needs a control beside it: give one with --control-video or --video")
        if options.data_root and data.source != "folder":
            raise Refusal(
                "--data-root: this student's clips come with a package, and no folder: leave it out"
            )
        for name, folder in (options.control_models or {}).items():
            try:
                controls.check_model(name, folder)
            except DataError as error:
                raise Refusal(f"--control-models {name}: {error}") from error
        for option, path in (("--control-video", options.control_video), ("--video", options.video)):
            if path is not None:
                _check(option, path)
        self.frames = self._count_frames()
        if own is None and options.start is None and not self._text_alone():
            self._source = self._open(schedule)
            return
        if options.data_root:
            raise Refusal("--data-root: clips are drawn from what the other options name: leave it out")
        self._tokenizer = build_tokenizer(self._data, device())
        shape = self._tokenizer.latent_shape(data.frames, data.height, data.width)
        latents = torch.zeros(1, *shape)
        hint: Tensor | None = None
        self._control: Tensor | None = None
        padding, fps = torch.zeros(1, 1, *shape[2:]), None
        beginning: Pictures | None = None
        if options.start is not None and self.frames:
            beginning = self._beginning(options.start)
            latents[:, :, : self.frames] = self._encode(to_video(np.stack(beginning.frames)[None]))
            fps = beginning.rate
        if own is not None:
            hint, padding, own_fps = self._encode_control(own, beginning)
            fps = fps or own_fps
        if texts is None:
            texts = torch.zeros(1, network.text_tokens, network.text_channels)
        self._texts, text = texts, texts[:1]
        conditioning = Conditioning(
            text=text,
            negative_text=torch.zeros_like(text),
            hint=hint,
            fps=torch.tensor([fps or FPS]),
            padding_mask=padding,
        )
        self._one = Batch(first=0, latents=latents, conditioning=conditioning)

    def batch(self, first: int, count: int) -> tuple[Batch, Tensor | None]:
        """The batch and its control as pixels, uint8 [B, 3, F, H, W], where there is one."""
        if hasattr(self, "_source"):
            return self._source.batch(first, count), self._source.pixels(first, count)[1]
        repeated = self._one.map(lambda value: value.expand(count, *value.shape[1:]))
        if self._texts is not None and len(self._texts) > 1:
            text = self._texts[torch.arange(first, first + count) % len(self._texts)]
            repeated = dataclasses.replace(
                repeated, conditioning=dataclasses.replace(repeated.conditioning, text=text)
            )
        control = None if self._control is None else self._control.expand(count, -1, -1, -1, -1)
        return dataclasses.replace(repeated, first=first), control

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to uint8 [B, 3, F, H, W]."""
        if hasattr(self, "_source"):
            return self._source.decode(latents)
        return self._tokenizer.decode(latents / self._sigma_data).cpu()

    def _text_alone(self) -> bool:
        """Whether clips are drawn for a prompt of the user's and nothing else."""
        options = self._options
        given = {
            "--prompt": options.prompt,
            "--prompts": options.prompts,
            "--prompt-embedding": options.prompt_embedding,
        }
        option = next((name for name, value in given.items() if value is not None), None)
        if option is None:
            return False
        if self._control_name is not None:
            raise Refusal(f"{option} needs a control beside it: give one with --control-video or --video")
        if self.frames:
            raise Refusal(
                f"--condition-frames {self.frames} are to be given beside {option}: say of what with --start"
            )
        return True

    def _count_frames(self) -> int:
        options, most = self._options, self._data.max_condition_frames
        frames = options.condition_frames
        if frames is None:
            if options.start is None:
                return 0
            _check("--start", options.start)
            frames = 1 if is_image(options.start) else most
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
            projection=self._projection,
        )  # fmt: skip

    def _encode(self, video: Tensor) -> Tensor:
        return self._tokenizer.encode(video).cpu() * self._sigma_data

    def _encode_control(self, path: Path, beginning: Pictures | None) -> tuple[Tensor, Tensor, float | None]:
        """The control's latents, the padding mask, and the control's rate, None for a still image."""
        data = self._data
        option = "--control-video" if self._options.control_video else "--video"

        labels = self._options.control_video is not None and controls.is_labels(self._control_name)

        def place(size: tuple[int, int]) -> Fit:
            return Fit(*size, data.height, data.width, nearest=labels)

        read = self._read(option, path, data.frames, place, beginning)
        frames = np.stack(read.frames)
        if len(frames) < data.frames:  # a still image
            frames = np.repeat(frames, data.frames, axis=0)
        if self._options.video:
            assert self._control_name is not None
            settings = controls.preset(
                self._control_name, self._options.control_strength, self._data.vis_thumbnail
            )
            frames = controls.compute(self._control_name, frames, settings, self._data.control_models)
        self._control = to_video(frames[None])
        hint = self._encode(self._control)
        return hint, padding_mask(place(read.size).padding, *hint.shape[-2:]), read.rate

    def _beginning(self, path: Path) -> Pictures:
        """What ``frames`` latent frames stand for."""
        wanted = tokenizer(self._data).frames(self.frames)
        read = self._read("--start", path, wanted, self._averaging)
        if len(read.frames) < wanted:
            raise Refusal(
                f"--start {path} is one image and gives 1 latent frame, not {self.frames}: give a video"
            )
        return read

    def _averaging(self, size: tuple[int, int]) -> Callable[[np.ndarray], np.ndarray]:
        """How pictures of this size become those of the student: each pixel is the mean of a block."""
        data, (height, width) = self._data, size
        times = height // data.height
        if size != (times * data.height, times * data.width) or not times:
            raise Refusal(
                f"--start {self._options.start} is {width} x {height} pixels, and this student's clips are "
                f"{data.width} x {data.height}: scale and crop it to that size, or to a multiple of it"
            )

        def average(image: np.ndarray) -> np.ndarray:
            blocks = image.reshape(data.height, times, data.width, times, 3)
            mean: np.ndarray = blocks.mean((1, 3)).round().astype(np.uint8)
            return mean

        return average

    def _read(
        self, option: str, path: Path, count: int, place: Place, beginning: Pictures | None = None
    ) -> Pictures:
        """The first ``count`` frames at the student's stride, or the one of a still image.

        With the beginning of a clip it is the clip's control: of the same aspect ratio, and from the times of
        the clip's frames. Raises Refusal, naming option, file and reason, when the file cannot be used.
        """
        try:
            if is_image(path):
                image = read_image(path)
                still, size = [image], (image.shape[0], image.shape[1])
            else:
                still, info = [], video.probe(path)
                size = (info.height, info.width)
            if beginning is not None:
                video.check_aspect(beginning.size, size, f"{option} {path}")
            transform = place(size)
            if still:
                return Pictures([transform(still[0])], size, None)
            if beginning is not None and beginning.rate is not None:
                times = [i / beginning.rate for i in range(count)]
                return Pictures(video.at_times(path, times, transform), size, beginning.rate)
            if self._data.fps is not None:
                frames, rate, _ = video.resampled(path, 0.0, count, self._data.fps, transform)
                return Pictures(frames, size, rate)
            stride = self._data.stride
            needed = (count - 1) * stride + 1
            if info.frames < needed:
                what = f"{self.frames} latent frames are" if option == "--start" else "a clip is"
                raise Refusal(
                    f"{option} {path} is too short: {what} {count} frames at stride {stride}, hence {needed} "
                    f"frames of the video, and it has {info.frames}"
                )
            frames, rate, _ = video.window(path, range(0, needed, stride), transform)
            return Pictures(frames, size, rate / stride)
        except DataError as error:
            raise Refusal(f"{option}: {error}") from error


def _check(option: str, path: Path) -> None:
    """Raises Refusal unless there is a file that is an image or a video."""
    try:
        if not is_image(path):
            video.probe(path)
    except DataError as error:
        raise Refusal(f"{option}: {error}") from error

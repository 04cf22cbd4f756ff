"""What ``cosmos-distill sample`` draws clips for: held-out clips, or files of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from cosmos_distill import controls
from cosmos_distill.config import Control, Data
from cosmos_distill.config.controls import spelled
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
from cosmos_distill.sampling import maps
from cosmos_distill.sampling.steering import chosen, files_of
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


class Steered(NamedTuple):
    """The controls of one window."""

    hint: Tensor
    """Their latents, [1, branches * C, T, h, w]."""
    weights: Tensor | None
    """By place, where a map says so; see :func:`cosmos_distill.sampling.maps.weights`."""
    padding: Tensor
    """Mask [1, 1, h, w]."""
    rate: float | None
    """Frames per second; None for still images."""
    pixels: Tensor
    """uint8 [1, 3 * branches, F, H, W] of the first one, and nothing of the others."""


class Conditions:
    """Batches to draw clips for.

    Attributes:
        frames: Leading latent frames given of every clip.
        overlap: Latent frames that every window after the first goes on from.

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
        self._mix = chosen(options, control, network.controls)
        self._files = files_of(options, self._mix)
        own = bool(self._files)
        self._windows: list[Steered] = []
        maps.refuse(options.control_maps or {}, self._mix, own)
        if options.control_strength != "medium" and not options.video:
            raise Refusal("--control-strength is that of the control of --video: give one, or leave it out")
        if options.start and control is not None and not own:
            raise Refusal("--start needs a control beside it: give one with --control-video or --video")
        if options.data_root and not data.own:
            raise Refusal(
                "--data-root: this student's clips come with a package, and no folder: leave it out"
            )
        for file in self._files.values():
            _check(file.option, file.path)
        self.frames, self.overlap = self._count_frames(), self._count_overlap(own)
        if not own and options.start is None and not self._text_alone():
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
        if own:
            step = data.frames - self.shown_again
            # All of them, before anything is drawn.
            self._windows = [self._encode_controls(beginning, n * step) for n in range(options.windows)]
            hint, _, padding, rate, self._control = self._windows[0]
            fps = fps or rate
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
            batch, control = self._source.batch(first, count), self._source.pixels(first, count)[1]
        else:
            repeated = self._one.map(lambda value: value.expand(count, *value.shape[1:]))
            if self._texts is not None and len(self._texts) > 1:
                text = self._texts[torch.arange(first, first + count) % len(self._texts)]
                repeated = dataclasses.replace(
                    repeated, conditioning=dataclasses.replace(repeated.conditioning, text=text)
                )
            batch = dataclasses.replace(repeated, first=first)
            control = None if self._control is None else self._control.expand(count, -1, -1, -1, -1)
        return self._weighed(batch, self._windows[0].weights if self._windows else None), control

    def following(self, batch: Batch, shown: Tensor, number: int) -> Batch:
        """What to draw window ``number`` of each clip for.

        Args:
            batch: Of the window before.
            shown: The clips of that window, uint8 [B, 3, F, H, W].
            number: From 1 on.
        """
        latents = torch.zeros_like(batch.latents)
        latents[:, :, : self.overlap] = self._encode(shown[:, :, -self.shown_again :]).to(latents)
        told = batch.conditioning
        if self._windows:
            hint, weights, *_ = self._windows[number]
            told = dataclasses.replace(told, hint=hint.expand(len(batch), *hint.shape[1:]).to(latents))
            batch = self._weighed(dataclasses.replace(batch, conditioning=told), weights)
            told = batch.conditioning
        return dataclasses.replace(batch, latents=latents, conditioning=told)

    @property
    def shown_again(self) -> int:
        """Frames that a window shows of the one before."""
        return tokenizer(self._data).frames(self.overlap)

    def _weighed(self, batch: Batch, by_place: Tensor | None = None) -> Batch:
        """The batch with the weights of its controls: those of all branches, or of one branch that which is
        asked for; those of its training said how often each control was drawn. Where they differ by place
        they are given."""
        asked = self._mix.slots or self._options.control is not None or by_place is not None
        if batch.conditioning.hint is None or not asked:
            return batch
        numbers = self._mix.branch_weights
        numbers = numbers if self._mix.slots else (max(numbers),)
        weights = torch.tensor([numbers]) if by_place is None else by_place
        weights = weights.to(batch.latents.device).expand(len(batch), *weights.shape[1:]).contiguous()
        told = batch.conditioning
        told = dataclasses.replace(told, extra={**told.extra, "control_weight": weights})
        return dataclasses.replace(batch, conditioning=told)

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

    def _count_overlap(self, own: bool) -> int:
        options, most = self._options, self._data.max_condition_frames
        if options.windows == 1:
            if options.overlap is not None:
                raise Refusal("--overlap is between the windows of a longer clip: give --windows, too")
            return 0
        found = most if options.overlap is None else options.overlap
        if most == 0:
            raise Refusal(
                f"--windows {options.windows}: this student was trained with no given frames, and cannot go "
                "on from those of a window before"
            )
        if not 1 <= found <= most:
            raise Refusal(f"--overlap {found}: this student was trained with 1 to {most} given latent frames")
        if tokenizer(self._data).frames(found) >= self._data.frames:
            raise Refusal(f"--overlap {found} is a whole clip of this student: give fewer")
        if self._control_name is not None and not own:
            raise Refusal(
                "--windows: held-out clips have controls of one window: give a longer one with --video, "
                "--control-video or --control-videos"
            )
        return found

    @property
    def total(self) -> int:
        """Frames of a whole clip."""
        more = self._options.windows - 1
        return self._data.frames + more * (self._data.frames - self.shown_again)

    def _open(self, schedule: Schedule) -> Any:
        if self._data.own and self._data.root is None:
            wanted = (
                "a beginning with --start"
                if self._control_name is None
                else ("a control with --control-video or --video")
            )
            raise Refusal(f"give {wanted}, or a folder of clips with --data-root")
        return open_source(
            self._data, spelled(self._mix.weights), 0, split="eval", schedule=schedule.config,
            device=device(), text_channels=self._network.text_channels, text_tokens=self._network.text_tokens,
            branches=self._mix.branches, projection=self._projection,
        )  # fmt: skip

    def _encode(self, video: Tensor) -> Tensor:
        if hasattr(self, "_source"):
            return self._source.encode(video).cpu()
        return self._tokenizer.encode(video).cpu() * self._sigma_data

    def _encode_controls(self, beginning: Pictures | None, offset: int) -> Steered:
        """Those of the window that begins at frame ``offset``. All belong to one clip: the one that is begun
        or, without a beginning, that of the first control."""
        data, shown, first = self._data, dict[str, torch.Tensor](), beginning
        padding: np.ndarray | None = None
        for name, file in self._files.items():
            labels = not file.computed and controls.is_labels(name)

            def place(size: tuple[int, int], labels: bool = labels) -> Fit:
                return Fit(*size, data.height, data.width, nearest=labels)

            read = self._read(file.option, file.path, data.frames, place, first, offset)
            frames = np.stack(read.frames)
            if len(frames) < data.frames:  # a still image
                frames = np.repeat(frames, data.frames, axis=0)
            if file.computed:
                settings = controls.preset(name, self._options.control_strength, data.vis_thumbnail)
                frames = controls.compute(name, frames, settings, data.control_models)
            if not shown:
                padding = place(read.size).padding
            if first is None or first.rate is None:
                first = read
            shown[name] = to_video(frames[None])
        latents = {name: self._encode(video) for name, video in shown.items()}
        hint, pixels = (
            torch.cat([of.get(slot, 0 * of[self._mix.used[0]]) for slot in self._mix.slots or of], dim=1)
            for of in (latents, shown)
        )
        assert first is not None
        pixels = pixels if offset == 0 else pixels.new_zeros(0)  # of the others nothing is shown
        mask = padding_mask(padding, *hint.shape[-2:])
        return Steered(hint, self._read_maps(first, hint, offset), mask, first.rate, pixels)

    def _read_maps(self, clip: Pictures, hint: Tensor, offset: int) -> Tensor | None:
        """Where the controls of ``clip`` steer in the window that begins at frame ``offset``."""
        data, patch = self._data, self._network.patch

        def fit(size: tuple[int, int]) -> Fit:
            return Fit(*size, data.height, data.width)

        def pictures(option: str, path: Path) -> list[np.ndarray]:
            _check(option, path)
            return self._read(option, path, data.frames, fit, clip, offset).frames

        if not self._options.control_maps:
            return None
        grid = (hint.shape[2], hint.shape[3] // patch, hint.shape[4] // patch)
        first = tokenizer(data).frames(1)
        window = maps.Window(data.frames, first, grid, offset, self.total)
        return maps.weights(self._options.control_maps, self._mix, pictures, window)

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
        self,
        option: str,
        path: Path,
        count: int,
        place: Place,
        beginning: Pictures | None = None,
        offset: int = 0,
    ) -> Pictures:
        """``count`` frames from number ``offset`` on at the student's stride, or the one of a still image.

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
                times = [i / beginning.rate for i in range(offset, offset + count)]
                return Pictures(video.at_times(path, times, transform), size, beginning.rate)
            if self._data.fps is not None:
                begin, fps = offset / self._data.fps, self._data.fps
                frames, rate, _ = video.resampled(path, begin, count, fps, transform)
                return Pictures(frames, size, rate)
            stride = self._data.stride
            needed = (offset + count - 1) * stride + 1
            if info.frames < needed:
                what = f"{self.frames} latent frames are" if option == "--start" else "a clip is"
                of = offset + count
                raise Refusal(
                    f"{option} {path} is too short: {what} {of} frames at stride {stride}, hence {needed} "
                    f"frames of the video, and it has {info.frames}"
                )
            frames, rate, _ = video.window(path, range(offset * stride, needed, stride), transform)
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

"""One's own clips in the published layout, as a source.

Under ``data.root``::

    videos/<id>.mp4                    clips (the teacher's, for knowledge distillation), or another suffix
    t5_xxl/<id>.safetensors|npz        T5-XXL prompt embedding [tokens, 1024], or data.text_folder another
    captions/<id>.txt                  or another place of captions (:mod:`~cosmos_distill.data.captions`):
                                       where that is missing and data.text_encoder is given
    noise/<id>.safetensors|npz         unit noise the teacher started from, [C, T, h, w]; makes it a KD set
    <control>/<id>.mp4                 control video that covers the times of the clip

With ``noise/`` every clip must be exactly one window long, since saved noise matches no other window, and
the control comes from its file for every modality: it must be the one the teacher saw. Without ``noise/``
a window starts anywhere, and what can be computed from its pixels (edge, vis, upscale) is.

:mod:`~cosmos_distill.data.survey` says which clips are used, and which are held out. What sample n is depends
on the seed, n and these files alone, not on what was read before, in which process, or by how many: it is
the first window of a sequence drawn from the seed and n that can be decoded. A window that cannot is passed
over for this sample only. In training without noise, clips that cannot be used have places in that sequence
like the others, so that mending one changes only the samples in whose sequence it comes first.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmos_distill import controls
from cosmos_distill.config import Data
from cosmos_distill.config.data import Held
from cosmos_distill.controls import DRAWS
from cosmos_distill.data import clips, keeping
from cosmos_distill.data.clip_source import ClipSource, Decoded, PassedOver
from cosmos_distill.data.clips import Split
from cosmos_distill.data.errors import DataError, NothingLeft
from cosmos_distill.data.fit import Fit
from cosmos_distill.data.order import order
from cosmos_distill.data.prompts import Prompts
from cosmos_distill.data.seeks import FAR, Seeks, seeks_of
from cosmos_distill.data.survey import Sample, reasons, survey
from cosmos_distill.data.text import T5_TOKENS, load_array
from cosmos_distill.data.windows import Windows, shape_of, window_span, windows_of
from cosmos_distill.files import printable
from cosmos_distill.members import File, Member, Stamp, stamp
from cosmos_distill.randomness import generator
from cosmos_distill.tokenizers import Tokenizer

if TYPE_CHECKING:
    import torch

    from cosmos_distill.data.embeddings import Projection

log = logging.getLogger(__name__)
_TRIES = 16
"""Windows of one clip that are tried for a variant: of a long one all would take hours."""
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ETIMEDOUT)
"""Errors that say nothing about a clip."""


class FolderSource(ClipSource):
    """A :class:`~cosmos_distill.data.sources.Source` over ``data.root`` (layout: see the module).

    Of ``data`` with several shapes it is the clips of one of them, ``shape``; ``share`` says how many of all
    clips that can be used these are, which may be none. Without ``shape`` it is all that are long enough for
    the data's own frames, in that shape.

    Opening looks at all files, whichever split they are in, and decodes none; what it finds is remembered.
    Raises DataError when no clip of the split can be used, or files beside the clips are wrong.
    """

    def __init__(
        self,
        data: Data,
        control: str | None,
        seed: int,
        *,
        split: Split,
        tokenizer: Tokenizer,
        text_channels: int,
        text_tokens: int | None = None,
        sigma_data: float = 0.5,
        branches: int = 1,
        held: Held = "some",
        projection: Projection | None = None,
        device: torch.device | str = "cpu",
        mixed: bool = False,
        shape: Data | None = None,
    ) -> None:
        everything, data = data, shape or replace(data, buckets=None)
        self._everything, self._shape = everything, shape
        self._begin(
            data, control, seed, split, tokenizer=tokenizer, sigma_data=sigma_data, branches=branches,
            text_shape=(text_tokens or T5_TOKENS, text_channels),
        )  # fmt: skip
        self._mix.refuse_drawn_pairs(data)
        self._span = window_span(data)
        self._survey = survey(
            everything, control, text_channels=text_channels, latent_shape=self.latent_shape, held=held
        )
        self._paired = self._survey.paired
        self._from_files = self._mix.from_files(data, self._paired)
        left_out = self._survey.left_out
        broken = {name: why for name, why in self._survey.skipped.items() if name not in left_out}
        for number, (name, reason) in enumerate(broken.items(), start=1):
            log.warning("clip %s skipped (%d so far): %s", printable(name), number, printable(reason))
        if said := keeping.said(keeping.counted(fault.word for fault in left_out.values())):
            log.warning("left out: %s", said)
        self._damaged: dict[str, tuple[int, str]] = {}
        self._unreadable: dict[tuple[str, int, tuple[str, ...]], str] = {}
        self._news: list[PassedOver] = []
        if shape is None:
            usable = self._chosen = self._survey.long_enough(split, data)
        else:
            usable = self._survey.usable(split)
            self._chosen = [s for s in usable if shape_of(s.info, everything, s.cuts) == shape]
        self.share = len(self._chosen) / max(1, len(usable))
        self._samples = list(self._survey.samples.values())
        shaped = {sample.name for sample in self._chosen}
        named = {sample.name: sample for sample in self._samples if sample.name in shaped}
        self._places = [named.get(name) for name in self._survey.split(split)]
        self._stamps: dict[File, Stamp] = {path: stamp(path) for s in self._chosen for path in s.videos}
        self._seeks = self._places_in_long_clips()
        self._prompts = Prompts(data, self._survey, self.text_shape, projection, device, mixed)
        self.text_shape, self._negative = self._prompts.shape, self._prompts.negative

    @property
    def skipped(self) -> dict[str, str]:
        """Why clips are not used, by name; and what is wrong with clips that were met so far of which some
        windows cannot be decoded, while the others are used. A record: nothing is decided by it."""
        damaged = {
            name: f"damaged in places ({reason})" for name, (_, reason) in self._damaged.copy().items()
        }
        return dict(self._survey.skipped) | dict(sorted(damaged.items()))

    def _places_in_long_clips(self) -> dict[File, Seeks]:
        """Where decoding can begin in the clips of this split, as far as that is worth to know."""
        far = [s for s in self._chosen if self._windows(s)[-1] >= FAR]
        paths = [path for s in far for path in s.videos]
        index = self._survey.index
        found = index.each(paths, lambda path: seeks_of(path, index), f"{self._survey.root}: long clips")
        frames = {s.video: s.info.frames for s in far}
        return {
            path: seeks
            for path, seeks in zip(paths, found, strict=True)
            if seeks is not None and frames.get(path, seeks.frames) == seeks.frames
        }

    def _candidates(self, index: int) -> tuple[Iterator[tuple[Sample, int]], np.ndarray]:
        """Windows of sample ``index`` as (clip, first frame), the first that can be decoded being taken, and
        numbers in [0, 1) of which its control is drawn. After one of every clip come their beginnings, which
        are left of a file that is cut off, and then all that they have."""
        places, random = order(
            self.seed, self.split, index, [place is not None for place in self._places],
            epochs=self.split == "eval" or self._paired,
        )  # fmt: skip
        u = random.random(1 + DRAWS)
        usable = [sample for i in places if (sample := self._places[i]) is not None]
        windows = map(self._windows, usable)
        drawn = ((sample, of[int(u[0] * len(of))]) for sample, of in zip(usable, windows, strict=True))
        begins = ((sample, self._windows(sample)[0]) for sample in usable)
        return chain(drawn, begins, self._rest(usable, random)), u[1:]

    def _rest(self, samples: Sequence[Sample], random: np.random.Generator) -> Iterator[tuple[Sample, int]]:
        for sample in samples:
            windows = self._windows(sample)
            yield from ((sample, windows[k]) for k in random.permutation(len(windows)).tolist())

    def _windows(self, sample: Sample) -> Windows:
        return windows_of(sample.info, self.data, sample.cuts)

    def decoded(self, index: int) -> Decoded:
        """Sample ``index``. Raises DataError when nothing can be read any more."""
        if (found := self._first(*self._candidates(index), index)) is not None:
            return found
        raise NothingLeft(
            f"no window that can be decoded is left for {self.split} in {self._survey.place}."
            f"{reasons(self.skipped)}"
        )

    def _first(self, candidates: Iterator[tuple[Sample, int]], u: np.ndarray, index: int) -> Decoded | None:
        """The first of these windows that can be decoded, as sample ``index``; None: none can."""
        used = self._mix.of_sample(self.seed, self.split, index)
        read = tuple(name for name in used if name in self._from_files)
        for sample, start in candidates:
            if (sample.name, start, read) in self._unreadable:
                continue
            try:
                video, control, mask, fps = self._window(sample, start, read)
            except DataError as error:
                self._pass_over(sample, start, read, error)
                continue
            return Decoded(
                name=f"{sample.name}[{self._place(sample, start)}]",
                video=video,
                controls=self._controls(index, video, u, control),
                text=self._prompts.of(sample),
                fps=fps,
                padding=mask,
                noise=load_array(sample.noise, "noise") if self._paired and sample.noise else None,
                passed_over=self._take_news(),
            )
        return None

    def splits(self) -> dict[str, Split]:
        """All clips by name and which split each is in, those that cannot be used included."""
        held_out = self._survey.held_out
        return {name: "eval" if name in held_out else "train" for name in self._survey.names}

    def latents_of(self, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """[C, T, h, w] of the latents of (frames, height, width)."""
        return self._tokenizer.latent_shape(*shape)

    def reads(self, name: str) -> bool:
        """Whether a clip can be used in this shape, whichever split it is in now."""
        sample = self._survey.samples.get(name)
        if sample is None or self._shape is None:
            return sample is not None and bool(self._windows(sample))
        return shape_of(sample.info, self._everything, sample.cuts) == self._shape

    def reason(self, name: str) -> str | None:
        """Why a clip cannot be used; None if it can, as far as that is known without decoding it."""
        if name in self._survey.samples:
            return None
        return self._survey.skipped.get(name, "it is not there any more")

    def hashes(self, name: str) -> dict[str, str]:
        """SHA-256 of the files of one clip, by what they are."""
        return self._survey.hashes([name])[name]

    @property
    def computes_control(self) -> bool:
        """Whether the one control of a sample is always computed from its pixels alone."""
        used = self._mix.used
        return (
            bool(used)
            and not self._paired
            and self._mix.branches == 1
            and all(map(controls.is_computed, used))
        )

    def variants(self, name: str, most: int, *, drawn: bool) -> list[Decoded]:
        """Windows of one clip: one in each of as many equal parts of it.

        They depend on the seed, the clip's name and their number alone. There are ``most``, or as many as the
        clip has where that is fewer and each is the same whenever it is drawn: where nothing of its control
        is drawn, or that is not asked for (``drawn``).

        Raises:
            NothingLeft: none of the windows that were tried, :data:`_TRIES` for each, can be decoded.
        """
        sample = self._survey.samples[name]
        places = self._windows(sample)
        windows = len(places)
        used = self._mix.used
        varies = not self._paired and (len(used) > 1 or any(map(controls.is_computed, used)))
        random_control = drawn and varies and self.split == "train"
        count = most if random_control else min(most, windows)
        found = []
        for number in range(count):
            random = generator(self.seed, f"variant {name}", number)
            u = random.random(1 + DRAWS)
            start = min(windows - 1, int((number + u[0]) / count * windows))
            of = int(random.integers(2**62))  # in place of a sample's number
            starts = islice(chain([start, 0], random.permutation(windows).tolist()), _TRIES)
            if (one := self._first(((sample, places[k]) for k in starts), u[1:], of)) is None:
                raise NothingLeft(f"no window of it can be decoded: {self._damaged[name][1]}")
            found.append(one)
        return found

    def _take_news(self) -> tuple[PassedOver, ...]:
        news, self._news = tuple(self._news), []
        return news

    def _pass_over(self, sample: Sample, start: int, read: tuple[str, ...], error: DataError) -> None:
        """Remember that a window cannot be decoded, which is a fact of the file.

        Raises DataError where it is none: the file is another than at opening, or the system failed.
        """
        self._refuse_changed(sample, error)
        if getattr(error.__cause__, "errno", None) in _OF_THE_MACHINE:
            raise error
        self._news.append(PassedOver(sample.name, start, read, str(error)))
        self._note(self._news[-1])

    def _refuse_changed(self, sample: Sample, error: DataError | None = None) -> None:
        for file in sample.videos:
            if not self._as_opened(file):
                raise DataError(
                    f"{file} was changed or removed while it was being read: the same command goes on with "
                    "the file as it is then"
                ) from error

    def _note(self, window: PassedOver) -> None:
        name, start, controls, reason = window
        self._unreadable[name, start, controls] = reason
        if name not in self._damaged:
            log.warning(
                "clip %s skipped (%d so far): %s; windows of it that can be read are used",
                name, len(self.skipped) + 1, reason,
            )  # fmt: skip
        self._damaged[name] = min((start, reason), self._damaged.get(name, (start, reason)))

    def learn(self, sample: Decoded) -> None:
        """Take note of windows that another process could not decode."""
        for window in sample.passed_over:
            if window[:3] not in self._unreadable:
                self._note(window)

    def _as_opened(self, path: File) -> bool:
        try:
            return stamp(path)[:2] == self._stamps[path][:2]
        except OSError:
            return False

    def _place(self, sample: Sample, start: int) -> str:
        """Where a window lies: its frames, or its seconds where it is resampled."""
        if self.data.fps is None:
            return f"{start}:{start + self._span}"
        begin = start / sample.info.rate
        return f"{begin:.3f}s:{begin + (self.data.frames - 1) / self.data.fps:.3f}s"

    def _window(
        self, sample: Sample, start: int, controlled: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray, float]:
        """Video, the controls of these names from their files, padding mask and fps. DataError when they
        cannot be decoded."""
        if isinstance(sample.video, Member):  # at its place in another archive could lie anything
            self._refuse_changed(sample)
        size = sample.info.height, sample.info.width, self.data.height, self.data.width
        fit = Fit(*size)
        seeks, fps = self._seeks.get(sample.video), self.data.fps
        if fps is None:
            wanted = range(start, start + self._span, self.data.stride)
            frames, rate, times = clips.window(sample.video, wanted, fit, seeks)
        else:
            begin, count = start / sample.info.rate, self.data.frames
            frames, rate, times = clips.resampled(sample.video, begin, count, fps, fit, seeks)
        read = {}
        for name in controlled:
            file = sample.controls[name]
            # Labels and joints have no meaningful average: their colours are kept as they are.
            place = Fit(*size, nearest=controls.is_labels(name))
            read[name] = np.stack(clips.at_times(file, times, place, self._seeks.get(file)))
        return np.stack(frames), read, fit.padding, rate / self.data.stride

    def description(self) -> dict[str, Any]:
        """Clips of this split by hash, and what :attr:`skipped` says."""
        hashes = self._survey.hashes([sample.name for sample in self._chosen])
        return {
            "source": self.data.source,
            "split": self.split,
            "seed": self.seed,
            "control": self.control,
            "saved_noise": self._paired,
            "clips": {name: files["video"] for name, files in hashes.items()},
            "text": self._prompts.description(self._chosen),
            "windows": sum(len(self._windows(sample)) for sample in self._chosen),
            **({} if self.data.cuts is None else {"cuts": sum(len(sample.cuts) for sample in self._chosen)}),
            "left_out": keeping.counted(fault.word for fault in self._survey.left_out.values()),
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }

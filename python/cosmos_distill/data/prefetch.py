"""Decode the next batches in other processes while the network computes."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cosmos_distill.data.batch import Batch
from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.data.errors import DataError

MOST_WORKERS = 4
_METHOD = "spawn"
"""How workers are started. A forked copy of the rank would keep the lock of the run folder and the sockets of
its launch for as long as it outlives the rank; and a child of a fork server never learns that the rank has
gone, since each holds the other's pipe."""


class Prefetch:
    """A source whose following batches are decoded ahead, in order, by :class:`torch.utils.data.DataLoader`.

    Its workers decode only; samples are encoded in this process, where the tokenizer is. A source is
    stateless, so guessing wrong costs time only: after ``batch(first, count)`` the guess is that the next one
    asks for ``count`` samples from ``following(first + count)`` on (by default that number itself; a
    data-parallel rank passes :func:`within_share`). An error of the source is raised by the call that asked
    for its batch. Workers leave Ctrl-C to this process, and end within seconds of it, however it ends.

    Args:
        source: of which every worker gets a copy without its tokenizer.
        depth: batches that each worker is ahead, at most.
        workers: processes; None: one for each core of this rank, up to :data:`MOST_WORKERS`.
    """

    def __init__(
        self,
        source: ClipSource,
        depth: int = 2,
        following: Callable[[int], int] = lambda first: first,
        workers: int | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, not {depth}")
        self._source, self._depth, self._following = source, depth, following
        self._workers = _cores() if workers is None else workers
        self._ahead: Iterator[Sequence[Decoded | Exception]] | None = None
        self._next = (-1, -1)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """That of the source."""
        return self._source.latent_shape

    @property
    def text_shape(self) -> tuple[int, int]:
        """That of the source."""
        return self._source.text_shape

    @property
    def skipped(self) -> Mapping[str, str]:
        """Clips that the source could not use, and why."""
        return self._source.skipped

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1, equal to what the source itself gives.

        Raises:
            DataError: as the source does, or a worker was ended by the system.
        """
        if self._ahead is None or self._next != (first, count):
            self.close()
            self._ahead = self._start(first, count)
        try:
            found = next(self._ahead)
        except RuntimeError as error:  # the library's, of a worker that is gone
            self.close()
            raise DataError(
                f"a process that decodes clips has ended ({error}): if memory was short, free some, and the "
                "same command goes on"
            ) from error
        self._next = self._following(first + count), count
        samples = []
        for one in found:
            if isinstance(one, Exception):
                self.close()
                raise one
            samples.append(one)
        return self._source.encoded(first, samples)

    def _start(self, first: int, count: int) -> Iterator[Sequence[Decoded | Exception]]:
        loader = DataLoader(
            _Samples(self._source),
            batch_sampler=_Guesses(first, count, self._following),
            num_workers=self._workers,
            prefetch_factor=self._depth,
            collate_fn=_as_they_are,
            worker_init_fn=_become_worker,
            multiprocessing_context=_METHOD,
        )
        # Workers are born deaf to Ctrl-C, which this process gets, too, and answers in its own time.
        resource_tracker.ensure_running()  # it would let the signal through again
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _own_answer_to_lost_children():
                return iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """End the workers; batches in preparation are thrown away."""
        self._ahead, self._next = None, (-1, -1)  # the iterator ends them as it goes

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the source gives them, without reading ahead."""
        return self._source.pixels(first, count)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """By the source."""
        return self._source.decode(latents)

    def description(self) -> dict[str, Any]:
        """That of the source."""
        return self._source.description()


class _Samples(Dataset[Decoded | Exception]):
    """Samples by number. Errors are results: the library would change their text."""

    def __init__(self, source: ClipSource) -> None:
        self._source = source

    def __getitem__(self, index: int) -> Decoded | Exception:
        try:
            return self._source.decoded(index)
        except Exception as error:
            return _to_be_sent(error)


class _Guesses:
    """Numbers of the samples of one batch after the other, without end."""

    def __init__(self, first: int, count: int, following: Callable[[int], int]) -> None:
        self._first, self._count, self._following = first, count, following

    def __iter__(self) -> Iterator[list[int]]:
        first = self._first
        while True:
            yield list(range(first, first + self._count))
            first = self._following(first + self._count)


def _to_be_sent(error: Exception) -> Exception:
    """An error that says where it was raised; in words where it does not survive the way to another process,
    and would keep its batch from coming."""
    if not isinstance(error, DataError):  # which says what to do
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError("".join(traceback.format_exception_only(error)).strip())
    return error


@contextmanager
def _own_answer_to_lost_children() -> Iterator[None]:
    """Keep what this process does when a child ends. The library would raise an error of its own wherever the
    process happens to be; the call for the next batch finds out as well."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and signal.getsignal(signal.SIGCHLD) is not before:  # in the main thread only
            signal.signal(signal.SIGCHLD, before)


def _as_they_are(samples: list[Decoded | Exception]) -> list[Decoded | Exception]:
    return samples


def _become_worker(number: int) -> None:
    logging.disable(logging.WARNING)  # this rank says what they find
    try:
        import cv2

        cv2.setNumThreads(1)  # there are as many workers as cores
    except ImportError:
        pass


def _cores() -> int:
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // ranks))


def within_share(share: int, ranks: int) -> Callable[[int], int]:
    """The next sample of a data-parallel rank that goes through the stream in order: after its ``share``
    samples of a step those of the ``ranks - 1`` others come first."""
    return lambda first: first if first % share else first + share * (ranks - 1)

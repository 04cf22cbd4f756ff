"""Decoding ahead changes when and where a clip is decoded, never what a batch is; workers end with their
process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos_distill.data import prefetch as module
from cosmos_distill.data.clip_source import ClipSource, Decoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.prefetch import Prefetch, within_share
from cosmos_distill.data.sources import open_source
from tests.data.folders import digests, open_, write_clip, write_text


class Stubborn(Exception):
    """Does not survive the way to another process."""

    def __init__(self, index: int, lock: object) -> None:
        super().__init__(f"sample {index} holds a lock")
        self.lock = lock


class Numbered(ClipSource):
    """Samples whose name says which process decoded them."""

    latent_shape, text_shape = (3, 2, 2, 2), (1, 1)
    _sigma_data, _negative = 1.0, np.zeros((1, 1), np.float32)

    class _tokenizer:
        @staticmethod
        def encode(video: torch.Tensor) -> torch.Tensor:
            return video.float()

    def decoded(self, index: int) -> Decoded:
        if index == 40:
            raise DataError("sample 40 is bad")
        if index == 50:
            raise Stubborn(index, threading.Lock())
        if index == 60:
            raise KeyError("sixty")
        if index == 666:
            os.kill(os.getpid(), signal.SIGKILL)
        video = np.full((2, 2, 2, 3), index % 256, np.uint8)
        return Decoded(f"{index} {os.getpid()}", video, (), np.zeros((1, 1), np.float32), 24.0)

    def description(self):
        return {}


def numbers(batch) -> list[int]:
    return [int(name.split()[0]) for name in batch.names]


def test_other_processes_decode_in_order_and_errors_come_with_their_batch():
    ahead = Prefetch(Numbered(), workers=2)
    batches = [ahead.batch(first, 10) for first in (0, 10, 20, 30)]
    assert [n for batch in batches for n in numbers(batch)] == list(range(40))
    pids = {int(name.split()[1]) for batch in batches for name in batch.names}
    assert len(pids) == 2 and os.getpid() not in pids
    with pytest.raises(DataError, match=r"^sample 40 is bad$"):
        ahead.batch(40, 10)
    assert numbers(ahead.batch(70, 10)) == list(range(70, 80))
    ahead.close()
    ended(pids)


def runs(pid: int) -> bool:
    """Not so one that has ended and whose new parent has not asked for its status yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def ended(pids: set[int]) -> None:
    until = time.monotonic() + 120  # torch's workers look for their parent every five seconds
    while any(map(runs, pids)):
        assert time.monotonic() < until, pids
        time.sleep(0.1)


def test_jumps_and_ranks():
    ahead = Prefetch(Numbered(), following=within_share(4, 2), workers=1)  # the second of two ranks
    wanted = [4, 6, 12, 14, 20, 6, 12]
    batches = [ahead.batch(first, 2) for first in wanted]
    assert [numbers(batch)[0] for batch in batches] == wanted
    pids = [batch.names[0].split()[1] for batch in batches]
    assert len(set(pids[:5])) == 1 and pids[5] != pids[4] and pids[6] == pids[5]  # 6 was no guess
    ahead.close()
    with pytest.raises(ValueError, match="at least 1"):
        Prefetch(Numbered(), depth=0)


def test_a_worker_that_is_ended_is_said():
    ahead = Prefetch(Numbered(), workers=1)
    with pytest.raises(DataError, match="process that decodes clips has ended"):
        ahead.batch(666, 1)
    assert numbers(ahead.batch(0, 1)) == [0]
    ahead.close()


def test_a_worker_that_is_ended_meanwhile_is_said_with_the_next_batch():
    """Not where this process happens to be: in the middle of a step, say."""
    ahead = Prefetch(Numbered(), workers=1)
    os.kill(int(ahead.batch(0, 1).names[0].split()[1]), signal.SIGKILL)
    time.sleep(1)
    with pytest.raises(DataError, match="process that decodes clips has ended"):
        for first in range(1, 9):
            ahead.batch(first, 1)
    assert numbers(ahead.batch(0, 1)) == [0]
    ahead.close()


def test_errors_that_cannot_be_sent_are_said_in_words_and_others_say_where():
    ahead = Prefetch(Numbered(), workers=1)
    with pytest.raises(RuntimeError, match="Stubborn: sample 50 holds a lock"):
        ahead.batch(50, 1)
    with pytest.raises(KeyError, match="sixty") as caught:
        ahead.batch(60, 1)
    assert "in decoded" in "".join(caught.value.__notes__)
    ahead.close()


def test_equals_the_source_it_wraps(mini):
    source = open_source(mini, "edge", 1, text_channels=4)
    assert isinstance(source, ClipSource)
    ahead = Prefetch(source, workers=1)
    for first in (0, 5, 10):
        a, b = ahead.batch(first, 5).tensors(), source.batch(first, 5).tensors()
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert ahead.latent_shape == source.latent_shape and ahead.description() == source.description()
    ahead.close()


def test_what_workers_could_not_decode_is_known_and_said_here(mini, tmp_path, caplog):
    for i in range(6):
        write_clip(tmp_path / "videos" / f"clip{i}.mp4", 40, level=20 * i)
        write_text(tmp_path, f"clip{i}")
    damaged = tmp_path / "videos" / "clip2.mp4"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    damaged.write_bytes(content)
    data = replace(mini, source="folder", root=tmp_path, stride=1)
    plain = open_(data)
    expected = [digests(plain.batch(first, 8)) for first in (0, 8, 16)]
    assert plain.skipped
    caplog.clear()
    ahead = Prefetch(open_(data), workers=1)
    assert [digests(ahead.batch(first, 8)) for first in (0, 8, 16)] == expected
    assert dict(ahead.skipped) == dict(plain.skipped)
    assert "clip2" in caplog.text and caplog.text.count("windows of it that can be read") == 1
    ahead.close()


CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which what a shell runs in the background ignores
from cosmos_distill.data.prefetch import Prefetch
from tests.data.test_prefetch import Numbered
ahead = Prefetch(Numbered(), workers=2)
names = ahead.batch(0, 1).names + ahead.batch(1, 1).names
try:
    print(*{name.split()[1] for name in names}, flush=True)  # the signal may come from here on
    time.sleep(60)
except KeyboardInterrupt:
    print(*ahead.batch(2, 1).names, flush=True)  # what is under way is still finished
    ahead.close()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_process_and_leave_ctrl_c_to_it(how: signal.Signals):
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *(p for p in sys.path if p)])}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    pids = {int(word) for word in child.stdout.readline().split()}
    assert len(pids) == 2
    if how == signal.SIGINT:
        os.killpg(child.pid, how)  # as a terminal does
        assert child.stdout.readline().startswith("2 ")
        assert child.wait(30) == 0
    else:
        os.kill(child.pid, how)
        child.wait(30)
    ended(pids)


def test_workers_are_as_many_as_cores_for_this_rank(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert module._cores() == module.MOST_WORKERS
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert module._cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert module._cores() == 1

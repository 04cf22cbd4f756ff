"""Prefetching changes when a batch is made, never what it is."""

from __future__ import annotations

import threading

import pytest
import torch

from cosmos_distill.data.prefetch import Prefetch, within_share
from cosmos_distill.data.sources import open_source


class Counted:
    latent_shape, text_shape = (1, 1, 1, 1), (1, 1)

    def __init__(self):
        self.asked, self.threads, self.reached = [], set(), threading.Event()

    def batch(self, first, count):
        self.asked.append(first)
        self.threads.add(threading.current_thread().name)
        if len(self.asked) >= 3:
            self.reached.set()
        if first == 40:
            raise RuntimeError("sample 40 is bad")
        return first, count


def test_reads_ahead_in_order_in_another_thread():
    source = Counted()
    prefetch = Prefetch(source, depth=2)
    assert prefetch.batch(0, 10) == (0, 10)
    assert source.reached.wait(5)  # 10 and 20, although nobody asked yet
    assert source.asked == [0, 10, 20] and threading.current_thread().name not in source.threads
    assert [prefetch.batch(f, 10)[0] for f in (10, 20, 30)] == [10, 20, 30]
    with pytest.raises(RuntimeError, match="sample 40"):
        prefetch.batch(40, 10)
    assert prefetch.batch(50, 10) == (50, 10)
    prefetch.close()
    assert len(source.asked) == len(set(source.asked))


def test_jumps_and_ranks():
    source = Counted()
    prefetch = Prefetch(source, depth=1, following=within_share(4, 2))  # the second of two ranks
    wanted = [4, 6, 12, 14, 20, 6, 12]
    assert [prefetch.batch(first, 2)[0] for first in wanted] == wanted
    prefetch.close()
    assert source.asked[:5] == wanted[:5]
    assert set(source.asked) <= {4, 6, 12, 14, 20, 22}  # never what is another rank's
    with pytest.raises(ValueError, match="at least 1"):
        Prefetch(source, depth=0)


def test_equals_the_source_it_wraps(mini):
    source = open_source(mini, "edge", 1, text_channels=4)
    prefetch = Prefetch(source)
    for first in (0, 5, 10):
        a, b = prefetch.batch(first, 5), source.batch(first, 5)
        assert (
            torch.equal(a.latents, b.latents)
            and torch.equal(a.conditioning.hint, b.conditioning.hint)
            and a.names == b.names
        )
    assert prefetch.latent_shape == source.latent_shape and prefetch.description() == source.description()
    prefetch.close()

"""Waiting by a store: for as long as the others live. Threads stand for ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from cosmos_distill.parallel import waiting


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[waiting._Signs]]:
    """Of three ranks that share a store and give signs of life fast."""
    monkeypatch.setattr(waiting, "BEAT", 0.02)
    store = dist.HashStore()
    signs = [waiting._Signs(store, rank) for rank in range(3)]
    yield signs
    for one in signs:
        one.end()


def test_whoever_comes_waits_for_the_last_each_time(three: list[waiting._Signs]) -> None:
    order: list[str] = []

    def rank(signs: waiting._Signs) -> None:
        for turn in (1, 2):
            time.sleep(0.05 * signs.rank)
            order.append(f"come {turn}")
            times = signs.come("here")
            signs.wait("here", 3 * times, times, [0, 1, 2])
            order.append(f"gone {turn}")

    threads = [threading.Thread(target=rank, args=(signs,)) for signs in three]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert order[:3] == ["come 1"] * 3
    assert (
        order.count("gone 2") == 3
        and "gone 2" not in order[: max(n for n, it in enumerate(order) if it == "come 2")]
    )


def test_a_rank_that_lives_is_waited_for_and_one_that_is_lost_is_named(
    three: list[waiting._Signs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "SILENCE", 1.0)
    times = three[0].come("here")
    three[1].come("here")  # and gives no more signs, which does not matter
    three[1].end()
    late = threading.Timer(1.5, three[2].come, ["here"])
    late.start()
    three[0].wait("here", 3, times, [0, 1, 2])  # longer than the silence: it lives
    late.join()
    three[0].come("there")
    three[2].end()
    with pytest.raises(waiting.RankLostError, match=r"rank 1 has shown no sign of life for \d+ seconds"):
        three[0].wait("there", 3, 1, [0, 1, 2])

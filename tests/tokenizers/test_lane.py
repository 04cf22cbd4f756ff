"""On an accelerator a tokenizer works on the device that it was built for, in a stream of its own."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import cosmos_distill
from cosmos_distill.run import networks
from cosmos_distill.tokenizers.common import lane

PACKAGE = Path(cosmos_distill.__file__).parent


class Pretended:
    """torch.cuda of a machine with several accelerators, which writes down what is asked of it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.device_now, self.stream_now = 0, "default"

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return self.device_now

    def Stream(self, device: torch.device) -> Any:
        return PretendedStream(self, f"own of {device.index}")

    def current_stream(self) -> Any:
        return PretendedStream(self, f"{self.stream_now} of {self.device_now}")

    @contextmanager
    def device(self, device: torch.device) -> Any:
        before, self.device_now = self.device_now, device.index
        yield
        self.device_now = before

    @contextmanager
    def stream(self, stream: Any) -> Any:
        before, self.stream_now = self.stream_now, stream.name
        yield
        self.stream_now = before


class PretendedStream:
    def __init__(self, cuda: Pretended, name: str) -> None:
        self.cuda, self.name = cuda, name

    def wait_stream(self, other: PretendedStream) -> None:
        self.cuda.said.append(f"{self.name} waits for {other.name}")


class Codec:
    def __init__(self, cuda: Pretended) -> None:
        self.cuda = cuda

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        self.cuda.said.append(f"encode on {self.cuda.device_now} in {self.cuda.stream_now}")
        return video + 1

    decode = encode

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return 16, frames, height, width


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    found = Pretended()
    for name in ("is_available", "current_device", "Stream", "current_stream", "device", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(found, name))
    return found


def test_work_is_done_on_the_device_in_a_stream_of_its_own_and_waited_for(cuda: Pretended) -> None:
    tokenizer = lane.OnLane(Codec(cuda), torch.device("cuda", 3))
    assert torch.equal(tokenizer.encode(torch.zeros(2)), torch.ones(2))
    assert cuda.said == [
        "own of 3 waits for default of 3",
        "encode on 3 in own of 3",
        "default of 3 waits for own of 3",
    ]
    assert cuda.device_now == 0 and tokenizer.latent_shape(1, 2, 3) == (16, 1, 2, 3)
    with pytest.raises(ValueError, match="has no index"):
        lane.OnLane(Codec(cuda), torch.device("cuda"))


def test_a_ranks_device_has_an_index(cuda: Pretended) -> None:
    cuda.device_now = 5
    assert networks.device() == torch.device("cuda", 5)


def test_no_device_of_the_package_is_left_to_the_calling_thread() -> None:
    """An accelerator without an index is GPU 0 in a thread of any rank."""
    bare = re.compile(r"""device\(\s*["']cuda["']\s*\)|device=["']cuda["']|\.to\(["']cuda["']|\.cuda\(\)""")
    for path in PACKAGE.rglob("*.py"):
        assert not bare.search(path.read_text(encoding="utf-8")), path

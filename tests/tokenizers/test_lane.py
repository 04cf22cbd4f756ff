"""On an accelerator a tokenizer works on the device that it was built for, in a stream of its own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import cosmos_distill
from cosmos_distill.run import networks
from cosmos_distill.tokenizers.common import lane
from tests.accelerators import Pretended

PACKAGE = Path(cosmos_distill.__file__).parent


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
    for name in Pretended.NAMES:
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

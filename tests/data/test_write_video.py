"""Written clips: tagged, in the right colours, whole or not there."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cosmos_distill.data.clips import decode, probe
from cosmos_distill.data.write_video import write_mp4


def flat(colour: tuple[int, int, int], height: int, width: int, frames: int = 3) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, frames, height, width)


@pytest.mark.parametrize("size", [(704, 1280), (32, 32), (256, 448), (33, 47), (301, 401)])
def test_colours_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    for colour in ((200, 0, 0), (30, 180, 90), (255, 255, 255), (0, 0, 0), (10, 20, 250)):
        path = write_mp4(flat(colour, *size, frames=1), tmp_path / "clip.mp4", 24.0)
        with av.open(str(path)) as file:
            frame = next(file.decode(video=0))
        tags = frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]
        # As a player shows high definition, by the equations of BT.709.
        y, u, v = (
            np.asarray(frame.to_ndarray()).ravel()[i] for i in (0, -frame.width * frame.height // 4 - 1, -1)
        )
        luma, pb, pr = (float(y) - 16) / 219, (float(u) - 128) / 224, (float(v) - 128) / 224
        red, blue = luma + 1.5748 * pr, luma + 1.8556 * pb
        green = (luma - 0.2126 * red - 0.0722 * blue) / 0.7152
        shown = np.clip(np.array([red, green, blue]) * 255, 0, 255)
        assert np.abs(shown - colour).max() < 4
        assert np.abs(decode(path)[0][0].astype(int) - colour).max() < 5


def test_the_container_says_it_too(tmp_path: Path) -> None:
    data = write_mp4(flat((200, 0, 0), 64, 64), tmp_path / "clip.mp4", 24.0).read_bytes()
    assert b"colrnclx\0\1\0\1\0\1\0" in data


SIZES = {
    (32, 32): (256, 256), (40, 48): (280, 336), (33, 47): (264, 376), (301, 401): (602, 802),
    (704, 1280): (704, 1280),
}  # fmt: skip


@pytest.mark.parametrize("size, shown", SIZES.items())
def test_sizes(tmp_path: Path, size: tuple[int, int], shown: tuple[int, int]) -> None:
    info = probe(write_mp4(flat((9, 9, 9), *size, frames=5), tmp_path / "clip.mp4", 24.0))
    assert (info.height, info.width, info.frames, info.rate) == (*shown, 5, 24.0)


@pytest.mark.parametrize("fps", [24.0, 30000 / 1001, 8.5, 5.0, 60.0, 4.0])
def test_rates(tmp_path: Path, fps: float) -> None:
    assert probe(write_mp4(flat((9, 9, 9), 16, 16, 9), tmp_path / "clip.mp4", fps)).rate == pytest.approx(
        fps, 1e-3
    )


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mp4(flat((9, 9, 9), 16, 16), tmp_path / "clip.mp4", 24.0)
    before = path.read_bytes()
    broken = torch.zeros(3, 2, 16, 16, dtype=torch.uint8)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail)
    with pytest.raises(KeyboardInterrupt):
        write_mp4(broken, path, 24.0)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]

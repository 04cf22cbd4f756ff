"""Clips longer than a window: each window goes on from the last frames of the one before."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np
import pytest
import torch

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.errors import Refusal
from cosmos_distill.run.sizes import clip_bytes
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.exported import read
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.tokenizers import find
from tests.data.video_files import encode
from tests.run.commands import said_of

WEIGHTS = Path(cosmos_distill.__file__).parent / "weights"
TRANSFER, PREDICT = WEIGHTS / "transfer1-smoke.safetensors", WEIGHTS / "predict2.5-smoke.safetensors"


def levels(path: Path, count: int) -> Path:
    """A video whose frame n has the grey level 8 n."""
    return encode(path, [np.full((32, 32, 3), 8 * n, np.uint8) for n in range(count)], fps=24)


def conditions(**options: object) -> Conditions:
    """Of a student that takes a control and given frames: none is shipped, so its data is one's that does."""
    exported = read(TRANSFER)
    data = dataclasses.replace(exported.data, max_condition_frames=2)
    chosen = SampleOptions(**options)  # type: ignore[arg-type]
    return Conditions(chosen, exported.network, exported.control, data, exported.schedule)


def test_every_window_has_the_controls_of_its_own_frames(tmp_path: Path) -> None:
    data = read(TRANSFER).data
    again = find(data.tokenizer).frames(2)
    step = data.frames - again
    needed = (data.frames + 2 * step - 1) * data.stride + 1
    shown = levels(tmp_path / "control.mp4", needed)
    clips = conditions(control_video=shown, windows=3)
    assert (clips.overlap, clips.shown_again, clips.total) == (2, again, data.frames + 2 * step)
    batch, pixels = clips.batch(0, 2)
    assert pixels is not None and pixels.shape[2] == data.frames
    drawn = torch.randint(0, 256, (2, 3, data.frames, 32, 32), dtype=torch.uint8)
    for number in (1, 2):
        batch = clips.following(batch, drawn, number)
        torch.testing.assert_close(
            batch.latents[:, :, :2], clips._encode(drawn[:, :, -again:]), rtol=0, atol=0
        )
        assert not batch.latents[:, :, 2:].any() and batch.conditioning.hint is not None
        hint = clips.decode(batch.conditioning.hint)[0, 0, :, 0, 0].float()
        wanted = [8.0 * data.stride * (number * step + n) for n in range(data.frames)]
        assert (hint - torch.tensor(wanted)).abs().max() < 8, (number, hint)
    with pytest.raises(Refusal, match=f"is too short: a clip is {data.frames + 2 * step} frames"):
        conditions(control_video=levels(tmp_path / "short.mp4", needed - 1), windows=3)


def test_held_out_clips_go_on_as_well() -> None:
    exported = read(PREDICT)
    whose = (exported.network, exported.control, exported.data, exported.schedule)
    clips = Conditions(SampleOptions(windows=2, overlap=1), *whose)
    batch, _ = clips.batch(3, 2)
    drawn = torch.arange(exported.data.frames, dtype=torch.uint8)[None, None, :, None, None]
    drawn = (40 * drawn).expand(2, 3, -1, 32, 32)
    after = clips.following(batch, drawn, 1)
    assert torch.equal(after.conditioning.text, batch.conditioning.text) and after.first == 3
    back = clips.decode(after.latents[:, :, :1])
    assert (back[:, :, 0].float() - drawn[:, :, -1].float()).abs().max() <= 1


def test_maps_are_of_the_whole_clip(tmp_path: Path) -> None:
    data = read(TRANSFER).data
    step = data.frames - find(data.tokenizer).frames(1)
    total = data.frames + step
    shown = levels(tmp_path / "control.mp4", (total - 1) * data.stride + 1)
    values = np.zeros((total, 4, 4), np.float32)
    values[step:] = 1  # from the second window on
    np.savez(tmp_path / "map.npz", values)
    clips = conditions(control_video=shown, windows=2, overlap=1, control_maps={"edge": tmp_path / "map.npz"})
    batch, _ = clips.batch(0, 1)
    assert batch.conditioning.extra["control_weight"].min() == 0
    drawn = torch.zeros((1, 3, data.frames, 32, 32), dtype=torch.uint8)
    assert (clips.following(batch, drawn, 1).conditioning.extra["control_weight"] == 1).all()


def test_the_command_draws_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = read(PREDICT).data
    again = find(data.tokenizer).frames(data.max_condition_frames)
    start = levels(tmp_path / "start.mp4", 9)
    draw = ["sample", str(PREDICT), "--start", str(start), "--clips", "1", "--out"]
    seen = []
    for number in ("1", "3"):
        assert cli.main([*draw, str(tmp_path / f"{number}.mp4"), "--windows", number]) == 0
        with av.open(str(tmp_path / f"{number}.mp4")) as container:
            seen.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    short, long = seen
    assert len(short) == data.frames and len(long) == data.frames + 2 * (data.frames - again)
    apart = [np.abs(a.astype(int) - b.astype(int)).mean() for a, b in zip(short, long, strict=False)]
    assert max(apart) < 8  # but for how they are compressed
    assert cli.main([*draw, str(tmp_path / "no.mp4"), "--overlap", "1"]) == 2
    assert "--overlap is between the windows of a longer clip" in said_of(capsys)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"windows": 2, "overlap": 3},
            "--overlap 3: this student was trained with 1 to 2 given latent frames",
        ),
        ({"windows": 2, "overlap": 0}, "--overlap 0: this student was trained with 1 to 2"),
        ({"windows": 2}, "--windows: held-out clips have controls of one window"),
    ],
)
def test_what_cannot_go_on_is_refused(options: dict[str, int], said: str) -> None:
    with pytest.raises(Refusal, match=said):
        conditions(**options)


def test_a_student_without_given_frames_draws_one_window(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", str(TRANSFER), "--windows", "2"]) == 2
    assert "--windows 2: this student was trained with no given frames" in said_of(capsys)


def test_more_than_fits_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = read(PREDICT).data
    whole = 2 * clip_bytes(data, 0) * 8  # eight clips of one window, and as much again
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1}.get(name, whole))
    assert cli.main(["sample", str(PREDICT), "--windows", "3"]) == 2
    assert "--batch 8: so many clips at once take at least" in said_of(capsys)

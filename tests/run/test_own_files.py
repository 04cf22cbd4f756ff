"""``sample`` with files of the user's: what it sees in them, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.data.clips import decode, probe
from cosmos_distill.errors import Refusal
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.sample import read
from tests.data.video_files import encode, quadrants, trim

WEIGHTS = Path(cosmos_distill.__file__).parent / "weights"
TRANSFER, PREDICT = WEIGHTS / "transfer1-smoke.safetensors", WEIGHTS / "predict2.5-smoke.safetensors"


def conditions(student: Path, **options: object) -> Conditions:
    exported = read(student)
    chosen = SampleOptions(**options)
    return Conditions(chosen, exported.network, exported.control, exported.data, exported.schedule)


def control(**options: object) -> np.ndarray:
    """The control of the first clip, [F, H, W, 3]."""
    pixels = conditions(TRANSFER, **options).batch(0, 1)[1]
    assert pixels is not None
    return pixels[0].permute(1, 2, 3, 0).numpy()


def beginning(path: Path, **options: object) -> np.ndarray:
    """The first frame that clips begin with, [H, W, 3], through the tokenizer and back."""
    clips = conditions(PREDICT, start=path, **options)
    return clips.decode(clips.batch(0, 1)[0].latents)[0, :, 0].permute(1, 2, 0).numpy()


def off(image: np.ndarray, wanted: np.ndarray) -> float:
    assert image.shape == wanted.shape
    return float(np.abs(image.astype(int) - wanted.astype(int)).mean())


SQUARE = quadrants(32, 32)


def frames(count: int = 9, image: np.ndarray = SQUARE) -> list[np.ndarray]:
    return [image] * count


def test_turned_videos(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "phone.MOV", frames(), prepare=lambda s: s.set_display_rotation(90), container="mov"
    )
    shown = np.rot90(SQUARE)
    assert off(control(control_video=path)[0], shown) < 3
    assert off(beginning(path), shown) < 12 < off(beginning(path), SQUARE)


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.mp4", "12:30.png"])
def test_turned_photos_whatever_their_name(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(SQUARE).transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / name, format="JPEG", quality=98, subsampling=0, exif=exif)
    assert off(beginning(tmp_path / name), SQUARE) < 12
    assert off(control(control_video=tmp_path / name)[2], SQUARE) < 6


def test_a_still_is_the_control_of_the_whole_clip(tmp_path: Path) -> None:
    Image.fromarray(quadrants(24, 64)).save(tmp_path / "a.webp", lossless=True)
    shown = control(control_video=tmp_path / "a.webp")
    data = read(TRANSFER).data
    assert shown.shape == (data.frames, data.height, data.width, 3) and (shown == shown[:1]).all()
    edges = control(video=tmp_path / "a.webp")
    assert set(np.unique(edges)) <= {0, 255} and edges.any() and (edges == edges[:1]).all()
    batch, _ = conditions(TRANSFER, control_video=tmp_path / "a.webp").batch(0, 3)
    assert batch.conditioning.fps.tolist() == [24.0] * 3 and batch.conditioning.padding_mask.any()


def test_cut_clips_and_rates_of_their_own(tmp_path: Path) -> None:
    long = encode(tmp_path / "long.mp4", frames(24), fps=30, options={"g": "24", "x264-params": "bframes=0"})
    path = trim(long, tmp_path / "cut.mp4", 10, 20, fps=30)
    stride = read(TRANSFER).data.stride
    batch, _ = conditions(TRANSFER, control_video=path).batch(0, 1)
    assert batch.conditioning.fps.item() == pytest.approx(30 / stride)
    slow = encode(tmp_path / "slow.mp4", frames(9), fps=Fraction(12))
    assert conditions(PREDICT, start=slow).batch(0, 1)[0].conditioning.fps.item() == pytest.approx(
        12 / read(PREDICT).data.stride
    )


def test_wide_pixels(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "dv.mp4", frames(image=quadrants(32, 16)),
        prepare=lambda s: setattr(s.codec_context, "sample_aspect_ratio", Fraction(2)),
    )  # fmt: skip
    assert off(beginning(path), SQUARE) < 12
    assert off(control(control_video=path)[0], SQUARE) < 12


def both(tmp_path: Path, start: Path, **options: object) -> Conditions:
    """A student that takes a control and a beginning: none is shipped, so its data is one's that does."""
    exported, other = read(TRANSFER), read(PREDICT)
    data = dataclasses.replace(exported.data, max_condition_frames=other.data.max_condition_frames)
    chosen = SampleOptions(start=start, **options)
    return Conditions(chosen, exported.network, exported.control, data, exported.schedule)


def test_a_control_is_read_at_the_times_of_the_beginning(tmp_path: Path) -> None:
    levels = [np.full((32, 32, 3), 20 * i, np.uint8) for i in range(12)]
    start = encode(tmp_path / "start.mp4", frames(9), fps=24)
    slow = encode(tmp_path / "control.mp4", levels, fps=12)
    clips = both(tmp_path, start, control_video=slow)
    batch, shown = clips.batch(0, 1)
    assert shown is not None and batch.conditioning.fps.item() == 12.0  # every second frame of 24
    assert [round(float(shown[0, :, i].float().mean()) / 20) for i in range(5)] == [0, 1, 2, 3, 4]
    fast = encode(tmp_path / "fast.mp4", levels, fps=48)
    with pytest.raises(Refusal, match=r"--control-video: .*fast\.mp4: ends after 0\.250 s"):
        both(tmp_path, start, control_video=fast)
    wide = encode(tmp_path / "wide.mp4", frames(image=quadrants(32, 64)), fps=24)
    with pytest.raises(Refusal, match=r"--control-video: 32 x 32 pixels, but .*wide\.mp4 has another aspect"):
        both(tmp_path, start, control_video=wide)
    Image.fromarray(SQUARE).save(tmp_path / "still.png")
    batch, _ = both(tmp_path, tmp_path / "still.png", control_video=slow).batch(0, 1)
    assert batch.conditioning.fps.item() == 6.0  # a still has no rate of its own
    big = encode(tmp_path / "big.mp4", frames(9, quadrants(64, 64)), fps=24)
    assert both(tmp_path, start, control_video=big).batch(0, 1)[1] is not None


def bad_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Name of a fault -> file, and what must be said of it."""
    folder = tmp_path / "bad"
    folder.mkdir()
    png = folder / "cut-off.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(png)
    png.write_bytes(png.read_bytes()[:900])
    pictures = [Image.fromarray(SQUARE), Image.fromarray(255 - SQUARE)]
    pictures[0].save(folder / "moves.gif", save_all=True, append_images=pictures[1:])
    Image.fromarray(np.ones((32, 32), np.float32)).save(folder / "depth.tif")
    (folder / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    encode(folder / "other.mp4", frames())
    tags = {"color_trc": 16, "color_primaries": 9, "colorspace": 9}
    encode(folder / "hdr.mp4", frames(), tags=tags)
    encode(folder / "uneven.mp4", frames(), times=[0, 40, 80, 120, 160, 1000, 2000, 4000, 8000])
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    encode(folder / "short.mp4", frames(1))
    said = {
        "cut-off.png": "damaged or cut off image", "moves.gif": "animated image of 2 frames",
        "depth.tif": "floating-point numbers", "list.mp4": "it is no video file", "hdr.mp4": "HDR (PQ)",
        "uneven.mp4": "no steady frame rate", "empty.mp4": "is empty", "folder.mp4": "is no regular file",
        "none.mp4": "no such file", "short.mp4": "too short",
    }  # fmt: skip
    return {name: (folder / name, reason) for name, reason in said.items()}


def test_files_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (path, reason) in bad_files(tmp_path).items():
        for student, option in ((PREDICT, "--start"), (TRANSFER, "--video"), (TRANSFER, "--control-video")):
            out = tmp_path / f"{name} for {student.stem} {option}"
            status = cli.main(["sample", str(student), option, str(path), "--clips", "1", "--out", str(out)])
            said = " ".join(capsys.readouterr().err.replace("│", " ").split())
            if (name, option) == ("uneven.mp4", "--start"):  # its first frames are steady
                assert status == 0
                continue
            assert status == cli.REFUSED, (name, option, said)
            assert option in said and name in said.replace(" ", "") and reason in said, (name, option, said)
            assert "goes on from what is complete" not in said and not out.exists()


def test_a_student_that_wants_the_control_of_a_folder_is_unchanged() -> None:
    """Without files of one's own nothing here is involved."""
    batch, shown = conditions(TRANSFER).batch(0, 2)
    assert shown is not None and batch.names[0] and torch.isfinite(batch.latents).all()


def test_written_clips_can_be_read_again(tmp_path: Path) -> None:
    out = tmp_path / "12:30 out"
    assert cli.main(["sample", str(PREDICT), "--clips", "1", "--out", str(out)]) == 0
    info = probe(out / "clip-000.mp4")
    assert len(decode(out / "clip-000.mp4")[0]) == info.frames == read(PREDICT).data.frames
    assert cli.main(["sample", str(PREDICT), "--clips", "1", "--start", str(out / "clip-000.mp4"),
                     "--condition-frames", "1", "--out", str(tmp_path / "again")]) == 0  # fmt: skip
    assert json.dumps(sorted(p.name for p in out.iterdir())) == '["clip-000.mp4", "grid.png"]'


def test_a_folder_in_the_place_of_a_clip_is_named_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "grid.png").mkdir(parents=True)
    words = ["sample", str(TRANSFER), "--clips", "1", "--out", str(out), "--overwrite"]
    assert cli.main(words) == cli.REFUSED
    assert "grid.png is a folder, where a file is to be written" in " ".join(
        capsys.readouterr().err.replace("│", " ").split()
    )
    assert [path.name for path in out.iterdir()] == ["grid.png"]

"""The published layout: real mp4 files made here, some of them damaged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from cosmos_distill.controls import vis
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.frames import to_frames, to_video
from cosmos_distill.data.sources import open_source
from tests.data.folders import TEXT, open_, write_clip, write_noise, write_text


@pytest.fixture
def root(tmp_path):
    for i in range(6):
        write_clip(tmp_path / "videos" / f"clip{i}.mp4", 8 + i, level=20 * i)
        write_text(tmp_path, f"clip{i}", tokens=5 + i)
    return tmp_path


@pytest.fixture
def kd(tmp_path):
    for i in range(3):
        name = f"clip{i}"
        write_clip(tmp_path / "videos" / f"{name}.mp4", 5, level=20 * i)
        write_clip(tmp_path / "edge" / f"{name}.mp4", 5, level=255 - 20 * i)
        write_text(tmp_path, name)
        write_noise(tmp_path, name)
    return tmp_path


@pytest.fixture
def data(mini, tmp_path):
    return replace(mini, source="folder", root=tmp_path, stride=1)


def test_batches_are_stateless_and_complete(root, data):
    source = open_(data)
    batch = source.batch(3, 6)
    assert (
        batch.latents.shape == batch.conditioning.hint.shape == (6, *source.latent_shape) == (6, 16, 3, 8, 8)
    )
    assert (
        batch.conditioning.text.shape == (6, 16, TEXT)
        and batch.noise is None
        and set(batch.fps.tolist()) == {24.0} == set(batch.conditioning.fps.tolist())
    )
    again = open_(data).batch(5, 2)
    assert torch.equal(again.latents, batch.latents[2:4]) and again.names == batch.names[2:4]
    assert torch.equal(again.conditioning.hint, batch.conditioning.hint[2:4]) and torch.equal(
        again.conditioning.text, batch.conditioning.text[2:4]
    )
    assert not torch.equal(open_(data, seed=1).batch(3, 6).latents, batch.latents)
    assert len({name.split("[")[1] for name in source.batch(0, 40).names}) > 3  # windows start anywhere


def test_vis_is_drawn_for_every_sample_and_fixed_for_evaluation(root, data):
    train, held = (open_(data, "vis", split) for split in ("train", "eval"))
    (video, control), (again, same) = train.pixels(3, 12), open_(data, "vis").pixels(9, 2)
    assert torch.equal(video[6:8], again) and torch.equal(control[6:8], same)
    medium = [to_video(vis.blur(frames)[None])[0] for frames in to_frames(video)]
    assert not any(torch.equal(m, c) for m, c in zip(medium, control, strict=True))
    assert torch.equal(video, open_(data, "edge").pixels(3, 12)[0])
    video, control = held.pixels(0, 1)
    assert torch.equal(control, to_video(vis.blur(to_frames(video)[0])[None]))


def test_a_source_knows_its_samples_of_all_splits(root, data):
    """By this name programs of others ask what is used of a folder."""
    opened = open_(data)
    assert [sample.name for sample in opened._samples] == sorted(opened.splits())


def test_every_fifth_clip_is_held_out(root, data):
    train, held = open_(data), open_(data, split="eval")
    names = [{n.split("[")[0] for n in s.batch(0, 30).names} for s in (train, held)]
    assert names == [{"clip0", "clip1", "clip2", "clip3", "clip5"}, {"clip4"}]
    assert list(held.description()["clips"]) == ["clip4"] and held.description()["skipped"] == []


def test_text_is_padded_and_cut(root, data):
    text = (
        open_source(data, "edge", 0, split="eval", text_channels=TEXT, text_tokens=16)
        .batch(0, 1)
        .conditioning.text[0]
    )
    assert text[:9].any(dim=1).all() and not text[9:].any()
    cut = (
        open_source(data, "edge", 0, split="eval", text_channels=TEXT, text_tokens=4)
        .batch(0, 1)
        .conditioning.text[0]
    )
    assert torch.equal(cut, text[:4])
    with pytest.raises(DataError, match=rf"\[tokens, 1024\], got \[9, {TEXT}\]"):
        open_source(data, "edge", 0, split="eval").batch(0, 1)


def test_aspect_ratio_is_kept_and_the_rest_reflected(root, data):
    source = open_(data, split="eval")
    video, _ = source.pixels(0, 1)
    # 32x64 into 32x32: scaled to 16x32, 8 rows of reflection above and below.
    assert torch.equal(video[..., 7, :], video[..., 9, :]) and torch.equal(
        video[..., 0, :], video[..., 16, :]
    )
    assert torch.equal(video[..., 24, :], video[..., 22, :])
    mask = source.batch(0, 1).conditioning.padding_mask[0, 0]
    assert mask[:2].eq(1).all() and mask[2:6].eq(0).all() and mask[6:].eq(1).all()


def test_kd_uses_saved_noise_and_control(kd, data):
    source = open_(data)
    batch = source.batch(0, 4)
    assert batch.noise.shape == (4, 16, 3, 8, 8) and abs(batch.noise.std().item() - 1) < 0.1
    assert {n.split("[")[1] for n in batch.names} == {"0:5]"}
    _, control = source.pixels(0, 2)
    assert control.float().mean() > 150  # the file's bright background, no computed edge map
    assert sorted(n.split("[")[0] for n in source.batch(0, 2).names) == ["clip0", "clip1"]  # one epoch
    assert source.description()["saved_noise"] is True


def test_kd_refuses_what_cannot_match(kd, data):
    write_clip(kd / "videos" / "long.mp4", 7)
    write_clip(kd / "edge" / "long.mp4", 7)
    write_text(kd, "long")
    write_noise(kd, "long")
    source = open_(data)
    assert "exactly 5" in source.skipped["long"]
    with pytest.raises(DataError, match=r"set data\.stride to 1"):
        open_(replace(data, stride=2))
    write_noise(kd, "clip0", shape=(16, 16, 8, 8))
    with pytest.raises(DataError, match=r"noise \[16, 16, 8, 8\], but 5 frames"):
        open_(data).batch(0, 3)
    write_noise(kd, "clip0", scale=80.0)
    with pytest.raises(DataError, match="not 1: it was saved at another scale"):
        open_(data).batch(0, 3)
    noise = np.zeros((16, 3, 8, 8), np.float32)
    noise[0, 0, 0, 0] = np.nan
    save_file({"noise": noise}, str(kd / "noise" / "clip0.safetensors"))
    with pytest.raises(DataError, match="noise holds NaN"):
        open_(data).batch(0, 3)


def test_damaged_clips_are_skipped_named_and_counted(root, data, caplog):
    whole = (root / "videos" / "clip1.mp4").read_bytes()
    (root / "videos" / "clip0.mp4").write_bytes(b"not a video at all")
    (root / "videos" / "clip1.mp4").write_bytes(whole[: len(whole) * 6 // 10])  # header intact
    (root / "t5_xxl" / "clip2.safetensors").unlink()
    write_clip(root / "videos" / "clip3.mp4", 3)
    source = open_(data)
    assert "cannot be decoded" in source.skipped["clip0"]
    assert "has no t5_xxl/clip2" in source.skipped["clip2"]
    assert "3 frames, fewer than the 5" in source.skipped["clip3"]
    batch = source.batch(0, 20)
    assert "clip1" in source.skipped and not any(n.startswith("clip1[") for n in batch.names)
    assert len(source.description()["skipped"]) == 4 and "4 so far" in caplog.text
    # What was already found damaged changes nothing: the stream is the same in a fresh process.
    assert torch.equal(source.batch(0, 20).latents, batch.latents)
    assert torch.equal(open_(data).batch(7, 3).latents, batch.latents[7:10])


def test_no_usable_clip_is_an_error_with_reasons(root, data, tmp_path):
    for path in (root / "videos").iterdir():
        path.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"no usable clip for train(.|\n)*clip0: .*cannot be decoded"):
        open_(data)
    with pytest.raises(DataError, match=r"holds no \.mp4 file: put clips there"):
        open_(replace(data, root=tmp_path / "empty"))
    with pytest.raises(DataError, match=r"set data\.root"):
        open_(replace(data, root=None))


def test_pickles_are_refused_with_the_converter_named(root, data):
    (root / "t5_xxl" / "clip0.safetensors").rename(root / "t5_xxl" / "clip0.pickle")
    with pytest.raises(DataError, match=r"python -m cosmos_distill\.data\.convert .*t5_xxl"):
        open_(data)


def test_file_controls(root, data):
    for i in range(6):
        write_clip(root / "depth" / f"clip{i}.mp4", 8 + i - (i == 2), level=100)
    source = open_(data, control="depth")
    assert "10 frames, but its depth control has 9" in source.skipped["clip2"]
    assert source.batch(0, 2).conditioning.hint.shape == (2, 16, 3, 8, 8)
    with pytest.raises(DataError, match=r"has no seg/clip0\.mp4"):
        open_(data, control="seg")


def test_negative_prompt_is_zeros_or_a_file(root, data):
    assert not open_(data).batch(0, 1).conditioning.negative_text.any()
    named = replace(data, negative_prompt=str(root / "t5_xxl" / "clip3.safetensors"))
    assert open_(named).batch(0, 2).conditioning.negative_text[1, :8].any(dim=1).all()
    with pytest.raises(DataError, match=r"is a text, .* or the path of its embedding"):
        open_(replace(data, negative_prompt="an old video game"))

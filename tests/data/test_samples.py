"""Sample n of a folder is a function of the seed, n and the files, whoever reads it, whatever was before."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosmos_distill.data import clips, container, video
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.prefetch import Prefetch, within_share
from tests.data import folders
from tests.data.folders import digests, lose, open_, write_clip, write_folder, write_noise

COUNT = 24


@pytest.fixture
def data(mini, tmp_path):
    return replace(mini, source="folder", root=tmp_path, stride=1)


@pytest.fixture
def damaged(tmp_path):
    """Seven clips for training: two have lost pictures, one is no video, one has no text."""
    videos = write_folder(tmp_path, 8, frames=20)
    lose(videos[1], 0.5)
    lose(videos[3], 0.7, 0.75)
    videos[5].write_bytes(b"no video")
    (tmp_path / "t5_xxl" / "c06.safetensors").unlink()
    return tmp_path


def test_what_was_read_before_changes_nothing(damaged, data):
    through = digests(open_(data).batch(0, COUNT))
    source = open_(data)
    assert [digests(source.batch(i, 1))[0] for i in reversed(range(COUNT))] == through[::-1]
    assert digests(source.batch(0, COUNT)) == through
    for start in (1, 7, 16):  # a run that is killed there and goes on
        assert digests(open_(data).batch(start, COUNT - start)) == through[start:]


def test_windows_of_a_damaged_clip_that_can_be_read_are_used(damaged, data):
    source = open_(data)
    names = source.batch(0, 60).names
    starts = {name: [int(n.split("[")[1].split(":")[0]) for n in names if n.startswith(name)] for name in
              ("c00", "c01", "c03")}  # fmt: skip
    assert max(starts["c00"]) > 12 and 0 < len(starts["c01"]) < len(starts["c00"])
    assert max(starts["c01"]) <= 5 and 4 < max(starts["c03"]) <= 10
    assert not [n for n in names if n[:3] in ("c05", "c06")]
    assert set(source.skipped) == {"c01", "c03", "c05", "c06"}
    assert "can be read" not in source.skipped["c05"] and "has no t5_xxl" in source.skipped["c06"]


def test_the_beginning_is_left_of_the_only_clip(data, tmp_path):
    videos = write_folder(tmp_path, 2, frames=30)
    lose(videos[0], 0.3)
    source = open_(data)
    names = source.batch(0, 20).names
    assert len(names) == 20 and names.count("c00[0:5]") > 10  # most windows are beyond what is left
    lose(videos[0], 0.12)
    with pytest.raises(DataError, match=r"no window that can be decoded is left for train(.|\n)*c00: "):
        open_(data).batch(0, 1)


def test_all_windows_of_the_only_clip_are_tried(data, tmp_path, monkeypatch):
    """Where neither what is drawn nor a beginning can be decoded, whatever else can is taken."""
    write_folder(tmp_path, 2, frames=30)
    read = clips.window

    def window(path, wanted, fit, seeks):
        if path.stem == "c00" and wanted.start not in (17, 24):
            raise DataError(f"{path}: frame {wanted.start} is damaged")
        return read(path, wanted, fit, seeks)

    monkeypatch.setattr(clips, "window", window)
    names = open_(data).batch(0, 12).names
    assert set(names) == {"c00[17:22]", "c00[24:29]"}
    source = open_(data)
    assert [source.batch(i, 1).names[0] for i in reversed(range(12))] == list(names)[::-1]


def test_two_ranks_read_what_one_process_reads(damaged, data):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    other = subprocess.Popen(
        [sys.executable, folders.__file__, str(damaged)], env=environment, stdout=subprocess.PIPE
    )
    found = folders.shares(data, 0) | json.loads(other.communicate(timeout=120)[0])
    whole = digests(open_(data).batch(0, COUNT))
    assert found == {str(first): whole[first : first + 2] for first in range(0, COUNT, 2)}


def test_prefetch_reads_what_the_source_reads(damaged, data):
    ahead = Prefetch(open_(data), following=within_share(2, 2))
    read = [digests(ahead.batch(first, 2)) for first in (0, 4, 8, 2, 6)]
    ahead.close()
    whole = digests(open_(data).batch(0, 12))
    assert read == [whole[first : first + 2] for first in (0, 4, 8, 2, 6)]


def test_mending_a_clip_changes_only_the_samples_that_become_it(damaged, data):
    before = open_(data).batch(0, 60)
    write_clip(damaged / "videos" / "c05.mp4", 20, level=50)
    after = open_(data).batch(0, 60)
    same = [a == b for a, b in zip(digests(before), digests(after), strict=True)]
    assert [n[:3] == "c05" for n in after.names] == [not it for it in same]
    assert 4 < same.count(False) < 30


@pytest.mark.parametrize("paired", [False, True])
def test_every_clip_once_per_epoch_whatever_cannot_be_used(data, tmp_path, paired):
    videos = write_folder(tmp_path, 12, frames=5, control="edge")
    if paired:
        for video in videos:
            write_noise(tmp_path, video.stem)
    videos[2].write_bytes(b"no video")
    videos[4].write_bytes(b"no video")
    source = open_(data, split="train" if paired else "eval")
    usable = {f"c{i:02d}" for i in ((0, 1, 3, 5, 6, 7, 8, 10, 11) if paired else (9,))}
    for epoch in range(3):
        batch = source.batch(epoch * len(usable), len(usable))
        assert {n[:3] for n in batch.names} == usable


def test_what_is_wrong_with_the_machine_passes_over_no_window(damaged, data, monkeypatch):
    source = open_(data)

    def fail(path, *rest):
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise DataError(f"{path} cannot be decoded") from error

    with monkeypatch.context() as patch:
        patch.setattr(clips, "window", fail)
        with pytest.raises(DataError, match="cannot be decoded"):
            source.batch(0, 1)
    assert digests(source.batch(0, COUNT)) == digests(open_(data).batch(0, COUNT))


def test_a_clip_that_is_taken_away_meanwhile_is_no_damaged_one(data, tmp_path):
    videos = write_folder(tmp_path, 3)
    source = open_(data)
    videos[0].unlink()
    with pytest.raises(DataError, match=r"c00\.mp4 was changed or removed while it was being read"):
        source.batch(0, 10)
    write_clip(videos[0], 12)
    assert source.batch(0, 10).names  # though not with the same size: what decodes is used


def spoil(path, seed):
    """A long group of pictures in which some bytes are others: nothing but the decoder can tell."""
    random = np.random.default_rng(seed)
    write_clip(path, 40, 48, 64, noise=seed + 1, g="40", preset="fast", crf="8")
    whole = bytearray(path.read_bytes())
    begin = whole.index(b"mdat") + 4
    at = begin + int(random.uniform(0.1, 0.8) * (len(whole) - begin))
    whole[at : at + 60] = bytes(60) if seed % 2 else random.bytes(60)
    path.write_bytes(whole)


def test_damage_is_seen_alike_by_any_number_of_threads(tmp_path, monkeypatch):
    def seen(path):
        try:
            frames = clips.window(path, range(28, 40)).frames
            return hashlib.sha256(np.stack(frames).tobytes()).hexdigest()
        except DataError:
            return None

    # No encoder makes the same file twice everywhere: as many are spoilt as it takes to have both kinds.
    paths: list[Path] = []
    shown: list[str | None] = []
    while len(shown) < 12 or None not in shown or len(set(shown)) < 5:
        assert len(shown) < 200
        paths.append(tmp_path / f"{len(paths)}.mp4")
        spoil(paths[-1], len(paths) + 5)
        shown.append(seen(paths[-1]))
    opened, found = container.opened, []
    for threads in (1, 2, 4, 8):

        @contextmanager
        def on_such_a_machine(path, threads=threads):
            with opened(path) as file:
                file.stream.codec_context.thread_count = threads
                yield file

        monkeypatch.setattr(container, "opened", on_such_a_machine)
        monkeypatch.setattr(video, "opened", on_such_a_machine)
        found.append([seen(path) for path in paths])
    assert all(other == shown for other in found)

"""What a folder holds is found out at opening, by the files alone: who is held out, skipped, or wrong."""

from __future__ import annotations

import logging
import os
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from cosmos_distill.data import survey as module
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.survey import _held_out, survey
from tests.data.folders import TEXT, open_, write_clip, write_folder, write_noise, write_text


@pytest.fixture
def data(mini, tmp_path):
    return replace(mini, source="folder", root=tmp_path, stride=1)


def look(data, control=None, latents=(16, 3, 8, 8)):
    return survey(data, control, text_channels=TEXT, latent_shape=latents)


NAMES = [f"c{i:02d}" for i in range(12)]


@pytest.mark.parametrize("names, broken, held", [
    (NAMES, "", "c04 c09"),
    (NAMES, "c00 c01 c07", "c04 c09"),  # as without them
    (NAMES, "c04", "c04 c09"),
    (NAMES, "c04 c09", "c04 c09 c11"),  # one that can be used
    (NAMES, "c11 c04 c09 c10", "c04 c09 c08"),
    (NAMES[:3], "", "c02"),
    (NAMES[:3], "c00", "c02"),
    (NAMES[:3], "c02", "c02 c01"),
    (NAMES[:5], "c00 c01 c02", "c04"),
    (NAMES[:10], "c00 c01 c02 c03 c05 c06 c07 c08", "c09"),  # the two that are left are for one split each
    (NAMES[:2], "c01", "c01"),
    (NAMES[:1], "", ""),
    (NAMES[:5], "c00 c01 c02 c03", ""),
])  # fmt: skip
def test_what_is_held_out_does_not_depend_on_what_else_is_broken(names, broken, held):
    usable = [name for name in names if name not in broken.split()]
    found = _held_out(names, dict.fromkeys(usable))
    assert found == set(held.split())
    if len(usable) > 1:
        assert 0 < len(found & set(usable)) < len(usable)


def test_a_name_that_comes_last_and_an_empty_file_shift_none(data, tmp_path):
    write_folder(tmp_path, 11, frames=5)
    before = look(data)
    assert before.held_out == {"c04", "c09"}
    (tmp_path / "videos" / "c02.mp4").write_bytes(b"")
    write_clip(tmp_path / "videos" / "d.mp4", 5)
    write_text(tmp_path, "d")
    after = look(data)
    assert after.held_out == before.held_out and set(after.samples) == set(before.samples) - {"c02"} | {"d"}
    (tmp_path / "videos" / "c02.mp4").unlink()
    assert look(data).held_out == {"c05", "c10"}


def test_what_is_no_file_neither_blocks_nor_ends_anything(data, tmp_path):
    write_folder(tmp_path, 10, frames=5)
    videos, texts = tmp_path / "videos", tmp_path / "t5_xxl"

    def instead(path):
        path.unlink()
        return path

    os.mkfifo(instead(videos / "c00.mp4"))
    instead(videos / "c01.mp4").symlink_to(tmp_path / "nowhere")
    instead(videos / "c02.mp4").symlink_to(videos / "c02.mp4")
    instead(videos / "c03.mp4").mkdir()
    instead(videos / "c04.mp4").symlink_to("/dev/zero")
    os.mkfifo(instead(texts / "c05.safetensors"))
    instead(texts / "c06.safetensors").mkdir()
    instead(texts / "c07.safetensors").symlink_to("/dev/zero")
    (tmp_path / "elsewhere").write_bytes((videos / "c08.mp4").read_bytes())
    instead(videos / "c08.mp4").symlink_to(tmp_path / "elsewhere")  # this one is a file
    found = look(data)
    assert set(found.samples) == {"c08", "c09"}
    for name, reason in {
        "c00": "is a named pipe", "c01": "leads nowhere", "c02": "leads nowhere", "c03": "is a folder",
        "c04": "is a device", "c05": "its t5_xxl/c05.safetensors is a named pipe",
        "c06": "its t5_xxl/c06.safetensors is a folder", "c07": "its t5_xxl/c07.safetensors is a device",
    }.items():  # fmt: skip
        assert reason in found.skipped[name]


def test_every_suffix_is_used_and_what_is_not_is_named(data, tmp_path, caplog):
    videos = write_folder(tmp_path, 6, frames=5, control="depth")
    videos[1].rename(tmp_path / "videos" / "c01.MP4")
    for i, suffix in ((2, ".mov"), (3, ".MKV")):
        write_clip(tmp_path / "videos" / f"c{i:02d}{suffix}", 5)
        videos[i].unlink()
    (tmp_path / "depth" / "c05.mp4").rename(tmp_path / "depth" / "c05.MoV")
    write_clip(tmp_path / "videos" / "c00.mov", 5)
    for name in ("notes.txt", ".DS_Store", "._c00.mp4"):
        (tmp_path / "videos" / name).write_text("no video")
    (tmp_path / "videos" / "more").mkdir()
    with caplog.at_level(logging.WARNING):
        source = open_(data, control="depth")
    assert [s.name for s in source._survey.samples.values()] == [f"c{i:02d}" for i in range(6)]
    assert next(iter(source._survey.samples.values())).video.name == "c00.mp4"
    assert set(source.skipped) == {"c00.mov", "notes.txt", "more"}
    assert "the name of c00.mp4, which is taken" in source.skipped["c00.mov"]
    assert "clip c00.mov skipped" in caplog.text and "3 so far" in caplog.text


def test_names_that_look_alike_belong_together(data, tmp_path):
    videos = write_folder(tmp_path, 4, frames=5, control="depth")
    apart, whole = "cafe\u0301", "caf\u00e9"
    for folder, old, new in (("videos", "c00.mp4", apart), ("t5_xxl", "c00.safetensors", whole),
                             ("depth", "c00.mp4", apart), ("videos", "c01.mp4", "x" + whole),
                             ("t5_xxl", "c01.safetensors", "x" + apart),
                             ("depth", "c01.mp4", "x" + apart)):  # fmt: skip
        path = tmp_path / folder / old
        path.rename(path.with_stem(new))
    assert len(videos) == 4
    source = open_(data, control="depth")
    assert {s.name for s in source._survey.samples.values()} == {
        apart,
        "x" + whole,
        "c02",
        "c03",
    } and not source.skipped


def test_a_name_that_is_not_utf8_is_skipped_and_shown_as_python_spells_it(data, tmp_path, caplog):
    write_folder(tmp_path, 4, frames=5)
    odd = os.fsdecode(b"caf\xe9\x1b[31m")
    (tmp_path / "videos/c00.mp4").rename(tmp_path / "videos" / f"{odd}.mp4")
    (tmp_path / "t5_xxl/c00.safetensors").rename(tmp_path / "t5_xxl" / f"{odd}.safetensors")
    with caplog.at_level(logging.WARNING):
        source = open_(data)
    assert "not UTF-8" in source.skipped[odd] and len(source._survey.samples) == 3
    assert "caf\\udce9\\x1b[31m skipped" in caplog.text


def embedding(path, array, key="t5_text_embeddings"):
    path.unlink(missing_ok=True)
    if isinstance(array, torch.Tensor):
        save_torch({key: array}, str(path))
    elif path.suffix == ".npz":
        np.savez(path, **{key: array})
    else:
        save_file({key: array}, str(path))


def bad(shape=(4, TEXT), dtype=np.float32, value=0.5):
    return np.full(shape, value, dtype)


WRONG = {
    "narrow": (bad((4, 8)), rf"expected an embedding \[tokens, {TEXT}\], got \[4, 8\]"),
    "flat": (bad((TEXT,)), rf"got \[{TEXT}\]"),
    "two prompts": (bad((2, 4, TEXT)), rf"got \[2, 4, {TEXT}\]"),
    "no tokens": (bad((0, TEXT)), rf"got \[0, {TEXT}\]"),
    "tokens": (bad(dtype=np.int64, value=7), "of type I64, not of floating-point"),
    "bool": (bad(dtype=bool), "of type BOOL, not of floating-point"),
    "nan": (bad(value=np.nan), "holds NaN or infinity"),
    "too large": (bad(dtype=np.float64, value=1e300), "holds NaN or infinity"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("clip", ["c00", "c04"])  # for training, and held out
def test_wrong_embeddings_are_found_before_either_split_is_used(data, tmp_path, name, clip):
    write_folder(tmp_path, 6, frames=5)
    array, message = WRONG[name]
    embedding(tmp_path / "t5_xxl" / f"{clip}.safetensors", array)
    for split in ("train", "eval"):
        with pytest.raises(DataError, match=rf"{clip}\.safetensors: .*{message}"):
            open_(data, split=split)


def test_all_formats_that_are_read_are_right(data, tmp_path):
    write_folder(tmp_path, 6, frames=5)
    texts = tmp_path / "t5_xxl"
    embedding(texts / "c00.safetensors", torch.ones(3, TEXT, dtype=torch.bfloat16))
    embedding(texts / "c01.safetensors", bad((1, 3, TEXT), np.float16), key="anything")
    for name, array in (("c02", bad(dtype=">f8")), ("c03", bad((1, 9, TEXT), np.longdouble))):
        (texts / f"{name}.safetensors").unlink()
        embedding(texts / f"{name}.npz", array)
    assert len(open_(data).batch(0, 5)) == 5


def test_wrong_npz_and_unreadable_files_are_named_together(data, tmp_path):
    write_folder(tmp_path, 20, frames=5)
    texts = tmp_path / "t5_xxl"
    for i in range(13):
        (texts / f"c{i:02d}.safetensors").unlink()
        embedding(texts / f"c{i:02d}.npz", bad((4, 8), np.float16))
    (texts / "c13.safetensors").write_bytes(b"\x10")
    with pytest.raises(DataError) as error:
        open_(data)
    lines = str(error.value).splitlines()
    assert len(lines) == 11 and lines[-1] == "and 4 more"
    assert all(f"c{i:02d}.npz: expected" in line for i, line in enumerate(lines[:10]))


@pytest.mark.parametrize("kind", ["file", "link"])
def test_noise_that_is_no_folder_is_not_taken_for_none(data, tmp_path, kind):
    """A disk that is not mounted must not turn distillation from saved noise into another one."""
    write_folder(tmp_path, 2, frames=5)
    noise = tmp_path / "noise"
    noise.write_text("") if kind == "file" else noise.symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match="noise is no folder, or a link that leads nowhere"):
        open_(data)


@pytest.mark.parametrize("descr, shape, message", [
    ("'<f4'", f"(-3, -{TEXT})", "its shape is"),
    ("'<c8'", f"(3, {TEXT})", "of type complex64, not of floating-point"),
    ("'<f4'", f"(3, {2**40})", r"got \[3, 1099511627776\]"),
])  # fmt: skip
def test_forged_headers_are_refused_by_the_header(data, tmp_path, descr, shape, message):
    write_folder(tmp_path, 2, frames=5)
    (tmp_path / "t5_xxl" / "c00.safetensors").unlink()
    said = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "t5_xxl" / "c00.npz", "w") as archive:
        archive.writestr("t5_text_embeddings.npy", b"\x93NUMPY\x01\0" + struct.pack("<H", len(said)) + said)
    with pytest.raises(DataError, match=rf"c00\.npz: .*{message}"):
        open_(data)


@pytest.mark.parametrize("change, message", [
    ({"shape": (16, 16, 8, 8)}, r"noise \[16, 16, 8, 8\], but 5 frames of 32x32 have latents \[16, 3"),
    ({"scale": 80.0}, "not 1: it was saved at another scale"),
    ({"scale": float("nan")}, "noise holds NaN"),
])  # fmt: skip
def test_wrong_noise_of_a_clip_held_out_is_found_at_opening(data, tmp_path, change, message):
    for video in write_folder(tmp_path, 3, frames=5, control="edge"):
        write_noise(tmp_path, video.stem)
    assert len(open_(data).batch(0, 2)) == 2
    write_noise(tmp_path, "c02", **change)
    with pytest.raises(DataError, match=message):
        open_(data)


def test_the_negative_prompt_is_looked_at_like_any_other(data, tmp_path):
    write_folder(tmp_path, 3, frames=5)
    negative = tmp_path / "negative.safetensors"
    named = replace(data, negative_prompt=str(negative))
    for array, message in ((bad((4, 8)), "expected an embedding"), (bad(value=np.inf), "NaN or infinity")):
        embedding(negative, array)
        with pytest.raises(DataError, match=rf"negative\.safetensors: .*{message}"):
            look(named)
    negative.unlink()
    os.mkfifo(negative)
    with pytest.raises(DataError, match="is a named pipe, not a file"):
        look(named)


def test_a_second_opening_reads_nothing_but_what_has_changed(data, tmp_path, monkeypatch):
    monkeypatch.setattr("cosmos_distill.data.index.SETTLED_NS", -(10**12))
    write_folder(tmp_path, 6, frames=5)
    look(data)
    monkeypatch.setattr(module.clips, "probe", lambda path: pytest.fail(f"{path} was opened"))
    monkeypatch.setattr(
        "cosmos_distill.data.companion_checks.load_array", lambda path, key: pytest.fail(f"{path} was read")
    )
    found = look(data)
    assert len(found.samples) == 6 and found.samples["c03"].info.frames == 5
    write_text(tmp_path, "c03", tokens=9)
    with pytest.raises(pytest.fail.Exception, match=r"c03\.safetensors was read"):
        look(data)


def test_folders_in_folders_and_links(data, tmp_path):
    """A clip is called by its way from videos/, what belongs to it lies likewise, and links are followed."""
    write_folder(tmp_path, 6, frames=9, control="depth")
    flat = look(data, "depth")
    before = flat.hashes(flat.names)
    elsewhere = tmp_path / "elsewhere"
    for kind, suffix in (("videos", ".mp4"), ("depth", ".mp4"), ("t5_xxl", ".safetensors")):
        (tmp_path / kind / "a" / "b").mkdir(parents=True)
        (elsewhere / kind).mkdir(parents=True)
        for name, after in (("c00", "a/c00"), ("c01", "a/c01"), ("c02", "a/b/c02")):
            (tmp_path / kind / f"{name}{suffix}").rename(tmp_path / kind / f"{after}{suffix}")
        (tmp_path / kind / f"c03{suffix}").rename(elsewhere / kind / f"c03{suffix}")
        (tmp_path / kind / "b").symlink_to(elsewhere / kind)
    videos = tmp_path / "videos"
    (videos / "c05.mp4").rename(videos / "c05.WebM")
    (videos / "a" / "round").symlink_to(videos)
    (videos / "a" / ".hidden.mp4").touch()
    (videos / "a" / "notes.txt").touch()
    (videos / "none").mkdir()
    found = look(data, "depth")
    assert found.names == ("a/b/c02", "a/c00", "a/c01", "b/c03", "c04", "c05") == tuple(found.samples)
    assert found.held_out == {"c04"}
    assert found.skipped == dict.fromkeys(("a/notes.txt", "a/round", "none"), "is no video")
    hashes = found.hashes(found.names)
    assert {name.rpartition("/")[2]: files for name, files in hashes.items()} == before
    assert set(open_(data, "depth").description()["clips"]) == {*found.names} - {"c04"}

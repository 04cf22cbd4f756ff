"""A run over a folder of clips: files count by content, and after a change the least that helps is said."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from cosmos_distill.config import (
    Data,
    Evaluate,
    Export,
    Generate,
    Guidance,
    MethodConfig,
    Optim,
    Recipe,
    Stage,
    Train,
    Trainer,
)  # fmt: skip
from cosmos_distill.errors import Refusal
from cosmos_distill.files import sha256
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.run import inputs, runner
from cosmos_distill.run.manifest import (
    RECORD,
    ExportedFile,
    File,
    Manifest,
    Output,
    Pairs,
    Scores,
    Student,
    plain,
)  # fmt: skip
from cosmos_distill.run.runner import Run, run_recipe, status
from tests.data.folders import write_clip, write_folder
from tests.run.commands import SMOKE

KINDS = {"generate": "train", "kd": "pairs", "dmd2": "train", "evaluate": "eval", "export": None}


class Made:
    """Stands for every stage: writes what it leaves behind, or the half of it and stops."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.stops = self.stops_at_once = ""

    def __call__(self, name: str, stage: Stage, run: Run, folder: Path) -> Output:
        self.ran.append(name)
        if name == self.stops_at_once:
            raise OSError("no space left")
        path = folder / "made.safetensors"
        path.write_text(name)
        if name == self.stops:
            raise OSError("no space left")
        made = File.of(path, run.out)
        match stage:
            case Generate():
                return Pairs(folder=name, count=0, sha256=sha256(path))
            case Train():
                return Student(made, 1)
            case Evaluate():
                return Scores(made, made)
        return ExportedFile(made)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    made = Made()
    monkeypatch.setattr(runner, "_load", lambda stage, parallel: made)
    monkeypatch.setattr("cosmos_distill.run.report.write", lambda *args: None)
    return made


def write_text(root: Path, name: str, seed: int = 0, value: float | None = None) -> Path:
    """An embedding of the smoke network's width."""
    path = root / "t5_xxl" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)
    if value is not None:
        array[1, 1] = value
    save_file({"t5_text_embeddings": array}, str(path))
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Ten clips, of which c04 and c09 are held out; c02 is no video."""
    root = tmp_path / "clips"
    for video in write_folder(root, 10, frames=5):
        write_text(root, video.stem, int(video.stem[1:]))
    (root / "videos" / "c02.mp4").write_bytes(b"no video")
    return root


@pytest.fixture
def recipe(tmp_path: Path, clips: Path) -> Recipe:
    shutil.copy(SMOKE, tmp_path / "teacher.safetensors")
    (tmp_path / "tokenizer").mkdir()
    for name in ("encoder.jit", "README.md"):
        (tmp_path / "tokenizer" / name).write_text(name)
    negative = write_text(tmp_path, "negative", seed=99)

    def train(method: MethodConfig, **more: str) -> Train:
        return Train(method=method, trainer=Trainer(max_steps=4, global_batch=2), **more)

    adam = Optim(lr=1e-3)

    return Recipe(
        network="transfer1-smoke",
        teacher=tmp_path / "teacher.safetensors",
        data=Data(
            source="folder", root=clips, tokenizer="haar", tokenizer_path=tmp_path / "tokenizer",
            frames=5, height=32, width=32, negative_prompt=str(negative),
        ),
        stages={
            "generate": Generate(pairs=2, guidance=Guidance(1.0)),
            "kd": train(KD(student=adam), pairs_from="generate"),
            "dmd2": train(DMD2(gan_weight=0), start_from="kd"),
            "evaluate": Evaluate(clips=2, guidance=Guidance(1.0), students={"student": "dmd2"}),
            "export": Export(student_from="dmd2"),
        },
    )  # fmt: skip


def go(recipe: Recipe, out: Path, only: tuple[str, ...] = ()) -> None:
    run_recipe(recipe, out, console=Console(quiet=True), only=only)


def states(recipe: Recipe, out: Path) -> dict[str, str]:
    return {name: state for name, (state, _) in status(recipe, out).items()}


ALL_COMPLETE = dict.fromkeys(KINDS, "complete")


def test_only_what_a_stage_reads_counts(made: Made, recipe: Recipe, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    assert made.ran == list(KINDS) and states(recipe, out) == ALL_COMPLETE
    records = {
        name: json.loads((out / name / RECORD).read_text())
        for name in KINDS
        if (out / name / RECORD).exists()
    }
    assert {name: list(record["clips"]) for name, record in records.items()} == {
        "generate": ["c00", "c01", "c03", "c05", "c06", "c07", "c08"],
        "dmd2": ["c00", "c01", "c03", "c05", "c06", "c07", "c08"],
        "evaluate": ["c04", "c09"],
    }
    assert list(records["dmd2"]["skipped"]) == ["c02"]
    assert records["dmd2"]["clips"]["c00"]["video"] == sha256(clips / "videos" / "c00.mp4")

    kept = (clips / "t5_xxl" / "c04.safetensors").read_bytes()
    write_text(clips, "c04", seed=77)  # of the same size
    assert states(recipe, out) == ALL_COMPLETE | {"evaluate": "mismatch"}
    with pytest.raises(
        Refusal, match=rf"c04 \(text\)\. Put them back.*{out / 'evaluate' / RECORD} to keep it"
    ):
        go(recipe, out)
    (clips / "t5_xxl" / "c04.safetensors").write_bytes(kept)  # at another time
    assert states(recipe, out) == ALL_COMPLETE

    write_clip(clips / "videos" / "c00.mp4", 5, level=200)
    assert states(recipe, out) == ALL_COMPLETE | {"generate": "mismatch", "dmd2": "mismatch", "kd": "resume",
                                                  "evaluate": "resume", "export": "resume"}  # fmt: skip
    with pytest.raises(Refusal) as refused:
        go(recipe, out)
    said = str(refused.value)
    assert "c00 (video)" in said and str(out / "generate" / RECORD) in said
    (out / "generate" / RECORD).unlink()
    (out / "dmd2" / RECORD).unlink()
    go(recipe, out)
    assert made.ran == list(KINDS) and states(recipe, out) == ALL_COMPLETE


def test_places_do_not_count(made: Made, recipe: Recipe, clips: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(clips)
    moved = tmp_path / "moved"
    for root in ("clips", "clips/", "./clips/../clips", "link", moved):
        if root is moved:
            shutil.copytree(clips, moved)  # other inodes, other times
            for name in ("tokenizer", "t5_xxl"):
                shutil.move(tmp_path / name, moved / f"of {name}")
        data = dataclasses.replace(recipe.data, root=Path(root))
        if root is moved:
            data = dataclasses.replace(
                data, tokenizer_path=moved / "of tokenizer",
                negative_prompt=str(moved / "of t5_xxl" / "negative.safetensors"),
            )  # fmt: skip
        assert states(dataclasses.replace(recipe, data=data), out) == ALL_COMPLETE, root
    assert made.ran == list(KINDS)


@pytest.mark.parametrize("what, stops", [("tokenizer", "generate"), ("negative prompt", "generate")])
def test_contents_of_tokenizer_and_negative_prompt_count(
    made: Made, recipe: Recipe, tmp_path: Path, what: str, stops: str
) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    (tmp_path / "tokenizer" / "README.md").write_text("other words")
    assert states(recipe, out) == ALL_COMPLETE
    if what == "tokenizer":
        (tmp_path / "tokenizer" / "encoder.jit").write_text("encoder.jjt")
    else:
        write_text(tmp_path, "negative", seed=98)
    assert status(recipe, out)[stops] == ("mismatch", f"{what}: made with another than is given now")
    without = dataclasses.replace(recipe.data, negative_prompt="", tokenizer_path=None)
    assert status(dataclasses.replace(recipe, data=without), out)["generate"][0] == "mismatch"


def test_saved_noise_and_controls_count(made: Made, recipe: Recipe, clips: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(recipe, control="depth")
    for i in range(10):
        write_clip(clips / "depth" / f"c{i:02d}.mp4", 5, level=255 - i)
    out = tmp_path / "run"
    go(recipe, out)
    write_clip(clips / "depth" / "c01.mp4", 5, level=9)
    assert "c01 (control)" in status(recipe, out)["generate"][1]
    for i in range(10):
        (clips / "noise").mkdir(exist_ok=True)
        noise = np.random.default_rng(i).standard_normal((16, 3, 8, 8)).astype(np.float32)
        save_file({"noise": noise}, str(clips / "noise" / f"c{i:02d}.safetensors"))
    assert "c00 (noise)" in status(recipe, out)["generate"][1]


@pytest.mark.parametrize("change", ["mended", "added", "broken one taken away"])
def test_clips_that_come_to_it_take_nothing_back(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path, change: str
) -> None:
    out = tmp_path / "run"
    made.stops = "dmd2"
    with pytest.raises(OSError, match="no space"):
        go(recipe, out)
    if change == "mended":
        write_clip(clips / "videos" / "c02.mp4", 5)
    elif change == "added":
        write_clip(clips / "videos" / "d.mp4", 5)
        write_text(clips, "d")
    else:
        (clips / "videos" / "c08.mp4").write_bytes(b"no video")  # was used
        assert "c08 (" in status(recipe, out)["dmd2"][1]
        write_clip(clips / "videos" / "c08.mp4", 5, level=80)
        (clips / "videos" / "d.mp4").write_bytes(b"no video")
    before = json.loads((out / "dmd2" / RECORD).read_text())["sha256"]
    assert states(recipe, out)["dmd2"] == "resume"
    made.stops = ""
    go(recipe, out)
    assert made.ran == ["generate", "kd", "dmd2", "dmd2", "evaluate", "export"]
    assert states(recipe, out) == ALL_COMPLETE
    found = Manifest.read(out / "dmd2")
    assert found is not None and found.inputs["clips"] != before
    if change != "broken one taken away":
        new = {"mended": "c02", "added": "d"}[change]
        assert status(recipe, out)["generate"][1] == f"made before these clips were added or mended: {new}"
        assert status(recipe, out)["dmd2"][1] == ""


def test_a_stage_that_made_nothing_takes_what_is_there_now(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    made.stops_at_once = "generate"
    with pytest.raises(OSError, match="no space"):
        go(recipe, out)
    write_text(clips, "c00", seed=55)
    other = dataclasses.replace(recipe, seed=3)
    assert states(other, out)["generate"] == "resume"
    made.stops_at_once = ""
    go(other, out)
    assert states(other, out) == ALL_COMPLETE


def test_a_wrong_file_is_refused_before_any_stage_and_mended_goes_on(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    write_text(clips, "c09", value=np.nan)  # held out: the fourth stage would be the first to meet it
    with pytest.raises(Refusal, match=r"c09\.safetensors: .*NaN"):
        go(recipe, out)
    assert made.ran == []
    write_text(clips, "c09")
    made.stops = "evaluate"
    with pytest.raises(OSError, match="no space"):
        go(recipe, out)
    write_text(clips, "c01", seed=54)
    with pytest.raises(Refusal, match=r"'generate'.*c01 \(text\)"):
        go(recipe, out)


def test_no_clip_for_a_later_stage_is_refused_before_the_first(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    for video in sorted((clips / "videos").iterdir())[1:]:
        video.write_bytes(b"no video")
    with pytest.raises(Refusal, match=r"no usable clip for eval in(.|\n)*c01: "):
        go(recipe, tmp_path / "run")
    assert not made.ran
    alone = dataclasses.replace(recipe, stages={"generate": recipe.stages["generate"]})
    go(alone, tmp_path / "alone")
    assert made.ran == ["generate"]
    made.ran.clear()
    write_clip(clips / "videos" / "c04.mp4", 5)
    go(recipe, tmp_path / "run")
    assert made.ran == list(KINDS)


def test_an_evaluation_under_way_takes_no_other_clips(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    (clips / "videos" / "c09.mp4").write_bytes(b"no video")
    made.stops = "evaluate"
    with pytest.raises(OSError, match="no space"):
        go(recipe, out)
    write_clip(clips / "videos" / "c09.mp4", 5)
    with pytest.raises(
        Refusal, match=r"held-out clips were changed, added.*or delete \S*evaluate to redo it"
    ):
        go(recipe, out)
    shutil.rmtree(out / "evaluate")
    made.stops = ""
    go(recipe, out)
    assert made.ran[-2:] == ["evaluate", "export"]


def test_files_that_shift_the_split_are_named(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    (clips / "videos" / "c02.mp4").unlink()
    with pytest.raises(
        Refusal, match=r"c05 \(gone, or in the other split, since files came or went before it\)"
    ):
        go(recipe, out)
    (clips / "videos" / "c02.mp4").touch()  # keeps its place
    go(recipe, out)
    assert made.ran == list(KINDS)


def legacy(recipe: Recipe, out: Path) -> None:
    """Manifests as versions wrote them that recorded names, sizes and places."""
    for name in recipe.stages:
        (out / name / RECORD).unlink(missing_ok=True)
        found = Manifest.read(out / name)
        assert found is not None
        others = {k: v for k, v in found.inputs.items() if k not in ("clips", "tokenizer", "negative_prompt")}
        dataclasses.replace(
            found, configuration=found.configuration | {"data": plain(recipe.data)},
            inputs={"clips": inputs._names_and_sizes(recipe)} | others,
        ).write(out / name)  # fmt: skip


def test_runs_of_earlier_versions_go_on(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    made.stops = "dmd2"
    with pytest.raises(OSError, match="no space"):
        go(recipe, out)
    unfinished = dataclasses.replace(recipe, stages={n: recipe.stages[n] for n in ("generate", "kd", "dmd2")})
    legacy(unfinished, out)
    assert states(unfinished, out) == {"generate": "complete", "kd": "complete", "dmd2": "resume"}
    made.stops = ""
    go(recipe, out)
    assert made.ran == ["generate", "kd", "dmd2", "dmd2", "evaluate", "export"]
    legacy(recipe, out)
    monkeypatch.chdir(tmp_path)
    moved = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=Path("clips")))
    assert states(moved, out) == ALL_COMPLETE
    elsewhere = dataclasses.replace(recipe.data, tokenizer_path=Path("tokenizer"))
    assert (
        "data.tokenizer_path: made with"
        in status(dataclasses.replace(recipe, data=elsewhere), out)["generate"][1]
    )
    (clips / "videos" / "c02.mp4").write_bytes(b"no video, and longer")
    state, reason = status(recipe, out)["generate"]
    assert state == "mismatch" and "Put them back for one run" in reason
    assert status(recipe, out)["kd"][0] == "resume"
    (clips / "videos" / "c02.mp4").write_bytes(b"no video")
    made.ran.clear()
    go(recipe, out)
    assert states(moved, out) == ALL_COMPLETE
    (clips / "videos" / "c02.mp4").write_bytes(b"no video, and longer")
    (clips / "videos" / "notes.txt").write_text("no clip")
    write_clip(clips / "videos" / "d.mp4", 5)
    write_text(clips, "d")
    go(recipe, out)
    assert states(recipe, out) == ALL_COMPLETE and not made.ran
    write_text(clips, "c00", seed=77)
    state, reason = status(recipe, out)["generate"]
    assert state == "mismatch" and "others now: c00 (text)" in reason and "by the names" not in reason


def test_a_damaged_record_is_named_where_it_is_needed(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    for text in ("{", "[]", '{"clips": {"c00": 3}}', "\0"):
        (out / "dmd2" / RECORD).write_text(text)
        assert states(recipe, out) == ALL_COMPLETE
    write_clip(clips / "videos" / "d.mp4", 5)
    write_text(clips, "d")
    with pytest.raises(Refusal, match=r"clips\.json is damaged.*delete it"):
        go(recipe, out)
    os.unlink(out / "dmd2" / RECORD)
    go(recipe, out)


def test_a_changed_hash_in_a_record_is_damage_and_no_other_clip(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    go(recipe, out)
    record = out / "generate" / RECORD
    whole = json.loads(record.read_text())
    write_clip(clips / "videos" / "d.mp4", 5)
    write_text(clips, "d")
    assert states(recipe, out) == ALL_COMPLETE
    digest = whole["clips"]["c00"]["video"]
    record.write_text(record.read_text().replace(digest, ("0" if digest[0] != "0" else "1") + digest[1:]))
    with pytest.raises(Refusal, match=r"generate/clips\.json is damaged \(its checksum differs\)"):
        go(recipe, out)
    record.write_text(json.dumps({key: value for key, value in whole.items() if key != "checksum"}))
    assert states(recipe, out) == ALL_COMPLETE  # of an earlier version, which wrote none


# -- several sources


def mixed(recipe: Recipe, *sources: str) -> Recipe:
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=None, sources=sources))


def test_sources_count_by_content_and_weight(made: Made, recipe: Recipe, clips: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "run"
    shutil.copytree(clips, other)
    write_clip(other / "videos" / "c00.mp4", 5, level=99)
    go(mixed(recipe, f"{clips}=0.75", f"{other}=0.25"), out)
    record = json.loads((out / "dmd2" / RECORD).read_text())
    assert len(record["clips"]) == 14 and list(record["skipped"]) == ["1:c02", "2:c02"]
    moved = tmp_path / "moved"
    shutil.move(other, moved)
    assert states(mixed(recipe, f"{clips}=3", str(moved)), out) == ALL_COMPLETE
    for different in (mixed(recipe, str(clips), str(moved)), mixed(recipe, f"{moved}=1", f"{clips}=3")):
        assert states(different, out)["generate"] == "mismatch"
    assert (
        "mixture: made with '0.75 0.25', now asked for '0.5 0.5'"
        in (status(mixed(recipe, str(clips), str(moved)), out)["dmd2"][1])
    )
    write_clip(moved / "videos" / "c01.mp4", 5, level=98)
    assert "2:c01 (video)" in status(mixed(recipe, f"{clips}=3", str(moved)), out)["dmd2"][1]


@pytest.mark.parametrize("lacking", ["folder", "depth", "noise"])
def test_a_source_that_lacks_something_is_refused(
    made: Made, recipe: Recipe, clips: Path, tmp_path: Path, lacking: str
) -> None:
    other = tmp_path / "other"
    if lacking != "folder":
        shutil.copytree(clips, other)
    if lacking == "noise":
        (other / "noise").mkdir()
    if lacking == "depth":
        recipe = dataclasses.replace(recipe, control="depth")
        (clips / "depth").mkdir()
    with pytest.raises(Refusal, match=f"{'noise' if lacking == 'noise' else other}"):
        go(mixed(recipe, str(clips), str(other)), tmp_path / "run")
    assert not made.ran


def test_the_report_says_what_was_seen(recipe: Recipe, clips: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "run"
    shutil.copytree(clips, other)
    trainer = Trainer(max_steps=3, global_batch=4, precision="fp32", save_every=0, sample_every=0)
    adam = Optim(lr=1e-3)
    recipe = mixed(recipe, f"{clips}=3", str(other))
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, tokenizer_path=None),
        stages={"dmd2": Train(method=DMD2(gan_weight=0, student=adam, fake_score=adam), trainer=trainer)},
    )
    go(recipe, out)
    seen = Manifest.read(out / "dmd2").details["seen"]
    assert sum(found["samples"] for found in seen.values()) == 12 and set(seen) == {"clips", "other"}
    assert seen["clips"]["share"] == seen["clips"]["samples"] / 12

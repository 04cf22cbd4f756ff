"""Manifests: what decides whether a stage's folder may be used."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest

import cosmos_distill
from cosmos_distill.config import Data, Generate, Guidance, Optim, Parallel, Recipe, Train, Trainer
from cosmos_distill.errors import Refusal
from cosmos_distill.families import described, preset
from cosmos_distill.methods.kd import KD
from cosmos_distill.ranges import effects
from cosmos_distill.run.lock import locked
from cosmos_distill.run.manifest import (
    RESULTS,
    ExportedFile,
    File,
    Manifest,
    Pairs,
    Student,
    checksum,
    configuration,
    plain,
    results,
    sha256,
)  # fmt: skip
from cosmos_distill.run.progress import Log
from cosmos_distill.storage import DiskError, publish
from cosmos_distill.train.fingerprint import fingerprint, require_same
from cosmos_distill.train.log import RunLog


def recipe() -> Recipe:
    kd = Train(method=KD(student=Optim(lr=1e-3)), trainer=Trainer(max_steps=4), pairs_from="generate")
    return Recipe(
        network="transfer1-smoke",
        data=Data(),
        stages={"generate": Generate(pairs=2, guidance=Guidance(1.0)), "kd": kd},
    )


def manifest(**changes: object) -> Manifest:
    r = recipe()
    values = {"stage": "kd", "configuration": configuration(r, r.stages["kd"]), "inputs": {"teacher": "a"},
              "seed": 0, "version": "1"}  # fmt: skip
    return Manifest(**(values | changes))  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    for outputs in (None, Student(File("kd/s.safetensors", "ab"), 4), Pairs("generate/pairs", 2, "cd")):
        written = manifest(outputs=outputs, seconds=1.5, attempts=2, details={"skipped": ["x"]})
        written.write(tmp_path)
        found = Manifest.read(tmp_path)
        assert found is not None and found.outputs == outputs and found.complete == (outputs is not None)
        assert plain(found) == plain(written)
        assert written.mismatch(found) is None
    assert Manifest.read(tmp_path / "elsewhere") is None


def test_first_difference_is_named() -> None:
    r = recipe()
    kd = r.stages["kd"]
    assert isinstance(kd, Train)
    other = dataclasses.replace(kd, trainer=dataclasses.replace(kd.trainer, max_steps=5))
    changed = manifest(configuration=configuration(r, other))
    assert manifest().mismatch(changed) == "stage.trainer.max_steps: made with 4, now asked for 5"
    assert "input teacher" in (manifest().mismatch(manifest(inputs={"teacher": "b"})) or "")
    assert "seed" in (manifest().mismatch(manifest(seed=1)) or "")
    assert "code version" in (manifest(version="2").mismatch(manifest()) or "")
    edm = dataclasses.replace(r, schedule=dataclasses.replace(r.schedule, sigma_max=70.0))
    assert "schedule.sigma_max" in (manifest().mismatch(manifest(configuration=configuration(edm, kd))) or "")


def test_a_preset_that_an_earlier_version_named_is_its_sizes() -> None:
    r = recipe()
    now = configuration(r, r.stages["kd"])
    assert now["network"] == described(preset("transfer1-smoke"))
    earlier = manifest(configuration=now | {"network": "transfer1-smoke"})
    assert earlier.mismatch(manifest()) is None and manifest().mismatch(earlier) is None
    other = manifest(configuration=now | {"network": "transfer1-mini"})
    assert other.mismatch(manifest()) == "network.width: made with 192, now asked for 48"
    gone = manifest(configuration=now | {"network": "transfer9-mini"})
    assert "transfer9-mini" in (gone.mismatch(manifest()) or "")


@pytest.mark.parametrize("name", ["generate", "kd"])
def test_a_field_that_an_earlier_version_did_not_know_stood_at_its_default(name: str) -> None:
    r = recipe()
    stage, tried = r.stages[name], []
    for path in (("data",), ("stage",), ("stage", "method"), ("stage", "trainer")):
        part = r.data if path == ("data",) else stage if len(path) == 1 else getattr(stage, path[1], None)
        for field in dataclasses.fields(part) if part is not None else ():
            made = field.default_factory
            default = field.default if made is dataclasses.MISSING else made()
            wanted = manifest(configuration=configuration(r, stage))
            before = json.loads(json.dumps(wanted.configuration))
            there = before
            for key in path:
                there = there[key]
            if there.pop(field.name, None) is None:  # of no effect, or None, as a missing one counts
                continue
            found = manifest(configuration=before).mismatch(wanted)
            if default is not dataclasses.MISSING and getattr(part, field.name) == default:
                tried.append(field.name)
                assert found is None, (field.name, found)
            else:
                assert found is not None and field.name in found
    assert {"generate": {"precision", "recolour", "steps"}, "kd": {"precision", "keep_pairs"}}[name] <= {
        *tried
    }


def test_a_setting_that_was_not_known_is_no_other_than_its_default() -> None:
    r = recipe()
    stage = dataclasses.replace(r.stages["generate"], precision="bf16")
    wanted = manifest(configuration=configuration(r, stage))
    before = json.loads(json.dumps(wanted.configuration))
    del before["stage"]["precision"]
    found = manifest(configuration=before).mismatch(wanted)
    assert found == "stage.precision: made with 'fp32', now asked for 'bf16'"


def test_pairs_of_an_earlier_version_were_given_as_many_frames_each() -> None:
    r = recipe()
    generate = r.stages["generate"]
    assert isinstance(generate, Generate)
    now = configuration(r, generate)
    assert now["stage"]["condition_frames"] == [0]
    earlier = manifest(configuration=now | {"stage": now["stage"] | {"condition_frames": 0}})
    made = manifest(configuration=now)
    assert earlier.mismatch(made) is None and made.mismatch(earlier) is None
    other = manifest(configuration=configuration(r, dataclasses.replace(generate, condition_frames=(0, 1))))
    assert earlier.mismatch(other) == "stage.condition_frames: made with [0], now asked for [0, 1]"


def test_bookkeeping_and_sources_make_no_difference() -> None:
    r = recipe()
    kd = r.stages["kd"]
    assert isinstance(kd, Train)
    trainer = dataclasses.replace(kd.trainer, log_every=7, save_every=9, keep_every=5)
    other = dataclasses.replace(kd, trainer=trainer)
    assert (
        manifest().mismatch(manifest(configuration=configuration(r, other), sources="x", seconds=3.0)) is None
    )


def test_a_stage_may_go_on_under_another_layout() -> None:
    r = recipe()
    kd = r.stages["kd"]
    assert isinstance(kd, Train)
    cut = dataclasses.replace(kd, trainer=dataclasses.replace(
        kd.trainer, micro_batch=kd.trainer.global_batch, activation_checkpointing="full"
    ))  # fmt: skip
    other = dataclasses.replace(r, parallel=Parallel(tensor=2, pipeline=2, data="sharded_optimizer"))
    asked = manifest(configuration=configuration(other, cut))
    assert manifest().mismatch(asked) is None
    optims = [kd.method.student]  # type: ignore[attr-defined]
    before, after = (fingerprint(kd.method, optims, s.trainer, 0) for s in (kd, cut))
    require_same(before, after)
    assert before == after


# What manifests and resumed runs compared when each had a list of its own.
RESUMED = {"global_batch", "precision", "ema_decay", "ema_power"}
COMPARED = RESUMED | {"max_steps"}


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Trainer)])
def test_a_field_says_once_whether_it_changes_the_result(name: str) -> None:
    r = recipe()
    kd = r.stages["kd"]
    assert isinstance(kd, Train)
    assert (name in configuration(r, kd)["stage"]["trainer"]) == (name in COMPARED)
    for cosine in (False, True):
        resumed = fingerprint(kd.method, [Optim(lr=1e-3, cosine=cosine)], kd.trainer, 0)
        assert (f"trainer.{name}" in resumed) == (name in RESUMED or (cosine and name == "max_steps"))


def test_the_place_of_a_negative_prompt_is_none_where_it_is_text() -> None:
    values = {"source": "folder", "negative_prompt": "x"}
    assert effects(Data, values)["negative_prompt"] == effects(Data, values)["root"] == "place"
    assert effects(Data, values | {"source": "film"})["negative_prompt"] == "result"


def test_outputs_keep_the_names_that_manifests_have(tmp_path: Path) -> None:
    made = ExportedFile(File("export/student.safetensors", "0" * 64))
    manifest(outputs=made).write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["outputs"]["type"] == "Exported"
    found = Manifest.read(tmp_path)
    assert found is not None and found.outputs == made


def test_damaged_manifest_is_none(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    for text in (
        "{",
        "{}",
        "[]",
        "7",
        "null",
        '"words"',
        "[" * 10**5,
        '{"stage": "kd", "outputs": {"type": "Nonsense"}}',
        "\ufeff{}",
    ):
        path.write_text(text)
        assert Manifest.read(tmp_path) is None
    path.write_bytes(b"\xff\x00")
    assert Manifest.read(tmp_path) is None
    manifest(version=cosmos_distill.__version__, inputs={"teacher": "aaaa"}).write(tmp_path)
    whole = path.read_text()
    assert Manifest.read(tmp_path) is not None
    path.write_text(whole.replace("aaaa", "aaba"))  # a flipped bit is no other teacher
    assert Manifest.read(tmp_path) is None
    document = json.loads(whole)
    del document["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(document))
    assert Manifest.read(tmp_path) == manifest(version=cosmos_distill.__version__, inputs={"teacher": "aaaa"})
    path.unlink()
    path.mkdir()
    with pytest.raises(Refusal, match=r"manifest\.json cannot be read"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("change", [{}, {"new": 1}, {"configuration": 3}, {"outputs": {"type": "Later"}}])
def test_manifest_of_another_version_is_none_that_is_asked_for(change: dict, tmp_path: Path) -> None:
    asked = manifest(version=cosmos_distill.__version__)
    asked.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": "99.0"} | change))
    found = Manifest.read(tmp_path)
    assert found is not None
    assert found.mismatch(asked) == f"code version: made by 99.0, this is {asked.version}"


@pytest.mark.parametrize("made_by", ["0.1.0", "0.1.9", "0.2.0"])
def test_what_earlier_releases_finished_is_used(made_by: str, tmp_path: Path) -> None:
    """A release that computes the same goes on with their runs: 0.1.0 did not write RESULTS yet."""
    manifest(version=made_by, outputs=Student(File("kd/s.safetensors", "ab"), 4)).write(tmp_path)
    path = tmp_path / "manifest.json"
    document = json.loads(path.read_text())
    for name in ("results", "checksum"):
        del document[name]
    document["checksum"] = checksum(document)
    path.write_text(json.dumps(document))
    found = Manifest.read(tmp_path)
    assert found is not None and found.complete
    assert found.mismatch(manifest(version="0.2.0")) is None
    asked = manifest(version="0.3.0", results=RESULTS + 1)
    assert found.mismatch(asked) == f"code version: made by {made_by}, and 0.3.0 computes other results"
    path.write_text(path.read_text().replace('"steps": 4', '"steps": 5'))
    assert Manifest.read(tmp_path) is None, "their checksums count"


def test_only_runs_with_another_blur_than_before_are_done_anew() -> None:
    edge, film = (
        recipe(),
        dataclasses.replace(recipe(), control="vis", data=Data(source="film", vis_thumbnail=5.0)),
    )
    assert results(edge) == results(film) == RESULTS
    blurred = dataclasses.replace(recipe(), control="vis")
    before, now = manifest(version="0.2.0"), manifest(version="0.2.0", results=results(blurred))
    assert before.mismatch(now) == "code version: made by 0.2.0, and 0.2.0 computes other results"


@pytest.mark.parametrize("version", ["0.10.0", "1.0", "0.2.0.1", "words", ""])
def test_what_newer_releases_made_is_refused(version: str) -> None:
    reason = manifest(version=version).mismatch(manifest(version="0.2.0"))
    assert reason == f"code version: made by {version}, this is 0.2.0"


def test_numbers_that_json_has_not_are_words(tmp_path: Path) -> None:
    odd = manifest(version=cosmos_distill.__version__, configuration={"lr": math.inf, "eps": math.nan})
    odd.write(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    assert '"inf"' in text and "Infinity" not in text and "NaN" not in text
    found = Manifest.read(tmp_path)
    assert (
        found is not None
        and found.mismatch(manifest(**vars(odd) | {"configuration": found.configuration})) is None
    )


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    publish(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"No space.*free some space"):
        publish(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "kd/../../x", "", ".", "..", "a\0b", 7, None], ids=repr
)
def test_outputs_lie_in_the_run_folder(tmp_path: Path, path: object) -> None:
    """One that says otherwise is as good as none."""
    for output in (
        {"type": "Student", "weights": {"path": path, "sha256": "ab"}, "steps": 4},
        {"type": "Pairs", "folder": path, "count": 2, "sha256": "cd"},
        {"type": "Scores", "scores": {"path": path, "sha256": "a"}, "grid": {"path": "g.png", "sha256": "a"}},
    ):
        for version in (cosmos_distill.__version__, "0.0.1"):
            document = plain(manifest(version=version)) | {"outputs": output}
            publish(tmp_path / "manifest.json", json.dumps(document))
            found = Manifest.read(tmp_path)
            assert found is None or (found.outputs is None and found.version == "0.0.1")
    with pytest.raises(ValueError, match="is not a path inside of the run folder"):
        File("../x", "ab")


def test_a_manifest_that_is_no_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(Refusal, match=r"manifest\.json is a named pipe, not a file"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").unlink()
    publish(tmp_path / "manifest.json", "[" * 10**5)
    assert Manifest.read(tmp_path) is None


def test_logs_are_no_way_to_another_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "log.jsonl").symlink_to(mine)
    for write in (lambda: RunLog(tmp_path, 0, 1, "kd"), lambda: Log(tmp_path).line(step=1)):
        with pytest.raises(DiskError, match=r"log\.jsonl is a link"):
            write()
    assert mine.read_text() == "mine"


def test_the_lock_is_no_way_to_another_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "run.lock").symlink_to(mine)
    with pytest.raises(Refusal, match=r"run\.lock cannot be opened"), locked(tmp_path):
        pass
    assert mine.read_text() == "mine"
    (tmp_path / "run.lock").unlink()
    os.mkfifo(tmp_path / "run.lock")
    with pytest.raises(Refusal, match=r"run\.lock is no file"), locked(tmp_path):
        pass

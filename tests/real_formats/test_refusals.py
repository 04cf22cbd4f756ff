"""What somebody brought that does not go together is refused before any work, by the dry run and the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from cosmos_distill import cli
from cosmos_distill.run import runner
from cosmos_distill.run.manifest import Manifest
from tests.real_formats import tokenizers
from tests.run.commands import PREDICT25, RECIPE

pytestmark = pytest.mark.needs("transformers", "diffusers")


@dataclass(frozen=True)
class Wrong:
    """A command of the zoo with something wrong in it."""

    said: str
    """Words of the message."""
    recipe: Path = PREDICT25
    given: dict[str, str] = field(default_factory=dict)
    """Options in place of the right ones; a value that begins with @ is a place in the zoo."""


RIGHT = {
    RECIPE: {"teacher": "@transfer1", "data": "@layouts/embeddings", "tokenizer": "@transfer1/tokenizer"},
    PREDICT25: {
        "teacher": "@predict25",
        "data": "@layouts/embeddings",
        "tokenizer": "@predict25/Wan2.1_VAE.pth",
    },
}
WRONG = {
    "a teacher of another width": Wrong(
        "2 blocks of width 32", given={"teacher": "@refused/another_size.safetensors"}
    ),
    "a teacher of another depth": Wrong("missing: base.blocks.2.", given={"network.blocks": "3"}),
    "a teacher of another family": Wrong("does not fit this network", RECIPE, {"teacher": "@predict25"}),
    "a teacher without control branch": Wrong(
        "pass the pair", RECIPE, {"teacher": "@transfer1/base_model.pt"}
    ),
    "a teacher for another control": Wrong("vis_control.pt does not exist", RECIPE, {"control": "vis"}),
    "another embedding width of the network": Wrong(
        "expected an embedding [tokens, 32], got [6, 64]", RECIPE, {"network.text-dim": "32"}
    ),
    "a pointer in the place of the teacher": Wrong(
        "is a pointer of Git LFS", given={"teacher": "@refused/pointer.safetensors"}
    ),
    "a teacher of another tokenizer's latents": Wrong(
        "was trained in latents of haar", given={"teacher": "None"}
    ),
    "latents of another number of channels": Wrong(
        "takes latents of 8 channels", given={"network.latent-channels": "8"}
    ),
    "Cosmos' tokenizer for Wan's latents": Wrong(
        "and the Wan 2.1 tokenizer is asked for", given={"tokenizer": "@transfer1/tokenizer"}
    ),
    "Wan's tokenizer for Cosmos' latents": Wrong(
        "is the Wan 2.1 tokenizer, and", RECIPE, {"tokenizer": "@predict25/vae"}
    ),
    "Cosmos' tokenizer chosen for Wan's latents": Wrong(
        "Cosmos-Predict2.5 takes latents of wan2.1",
        given={"data.tokenizer": "cosmos-cv8x8x8", "tokenizer": "@transfer1/tokenizer"},
    ),
    "a tokenizer that was cut short": Wrong("was cut short", RECIPE, {"tokenizer": "@refused/cv_cut"}),
    "a tokenizer without its statistics": Wrong(
        "lacks mean_std.pt", RECIPE, {"tokenizer": "@refused/cv_without"}
    ),
    "another VAE": Wrong("AutoencoderKL", given={"tokenizer": "@refused/other_vae"}),
    "embeddings of another width": Wrong(
        "expected an embedding [tokens, 64], got [6, 32]", given={"data": "@layouts/narrow"}
    ),
    "a negative prompt of another width": Wrong(
        "expected an embedding [tokens, 64], got [6, 32]",
        given={"negative-prompt": "@layouts/narrow/reason1/street.safetensors"},
    ),
    "a control without files": Wrong("needs the folder", RECIPE, {"control": "seg", "teacher": "@transfer1"}),
    "clips without embeddings": Wrong("no usable clip", given={"data": "@layouts/nothing"}),
    "clips that are too short": Wrong("fewer than the 49 of a window", given={"data.frames": "25"}),
    "captions without a text encoder": Wrong(
        "has captions and no embeddings", given={"data": "@layouts/jsonl"}
    ),
    "captions with another family's text encoder": Wrong(
        "of the kind t5", given={"data": "@clips", "text-encoder": "@transfer1/t5"}
    ),
    "a text encoder of another width": Wrong(
        "gives embeddings of 64 channels",
        RECIPE,
        {"data": "@clips", "text-encoder": "@transfer1/t5", "network.text-dim": "32"},
    ),
    "a text encoder without its tokenizer": Wrong(
        "has no tokenizer", RECIPE, {"data": "@clips", "text-encoder": "@refused/no_words"}
    ),
    "a text encoder of which a shard is missing": Wrong(
        "lacks model-00002", given={"data": "@clips", "text-encoder": "@refused/reason1_lacking"}
    ),
    "a student of another size": Wrong(
        "another_size.safetensors does not fit",
        given={"stages.dmd2.student": "@refused/another_size.safetensors"},
    ),
    "a student that is not there": Wrong(
        "--stages.dmd2.student", given={"stages.dmd2.student": "@nowhere.pt"}
    ),
    "a student with two starts": Wrong(
        "two starts", RECIPE, {"stages.dmd2.student": "@transfer1/edge_control_distilled.pt"}
    ),
}


def command(zoo: Path, recipe: Path, out: Path, given: dict[str, str]) -> list[str]:
    """Words of the smoke recipe from the zoo."""
    options = RIGHT[recipe] | given
    words = [str(recipe), "--scale", "smoke", "--out", str(out)]
    for name, value in options.items():
        words += [f"--{name}", str(zoo / value[1:]) if value.startswith("@") else value]
    return words


@pytest.mark.parametrize("dry", [True, False], ids=["dry-run", "run"])
@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_before_any_work(
    name: str,
    dry: bool,
    zoo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = WRONG[name]
    monkeypatch.setattr(runner, "_run_stage", lambda *args: pytest.fail("a stage began"))
    monkeypatch.setenv("COLUMNS", "1000")  # a message is one line, however long its paths are
    words = command(zoo, wrong.recipe, tmp_path / "run", wrong.given)
    assert cli.main([*words, *(["--dry-run"] if dry else [])]) == cli.REFUSED
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert wrong.said in said and "Traceback" not in said, said


@pytest.mark.parametrize("recipe", RIGHT, ids=["transfer1", "predict25"])
def test_what_goes_together_is_not_refused(
    recipe: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command(zoo, recipe, tmp_path / "run", {}), "--dry-run"]) == 0, capsys.readouterr().err


class Crooked(nn.Module):
    """An encoder that gives another number of channels, which no header says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1, ::8, ::8, ::8].repeat(1, 8, 1, 1, 1)


def test_a_stage_that_failed_before_it_made_anything_takes_corrected_options(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that has made something does not."""
    bad, out = tokenizers.cosmos(tmp_path / "bad", Crooked()), tmp_path / "run"
    short = ["--only", "generate", "--stages.generate.pairs", "2", "--stages.generate.steps"]

    def run(tokenizer: str, steps: str) -> int:
        return cli.main([*command(zoo, RECIPE, out, {"tokenizer": tokenizer}), *short, steps])

    assert run(str(bad), "1") not in (0, cli.REFUSED)
    manifest = Manifest.read(out / "generate")
    assert manifest is not None and not manifest.complete and manifest.attempts == 1
    assert "encoder.jit gave" in capsys.readouterr().err
    assert run("@transfer1/tokenizer", "2") == 0, capsys.readouterr().err
    manifest = Manifest.read(out / "generate")
    assert manifest is not None and manifest.complete and manifest.attempts == 2
    assert run("@transfer1/tokenizer", "1") == cli.REFUSED
    assert "holds another 'generate'" in " ".join(capsys.readouterr().err.replace("│", " ").split())

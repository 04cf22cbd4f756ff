"""Every recipe file can be read at every scale, and the published numbers are the published numbers."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.config import (
    Evaluate,
    FewStep,
    Generate,
    Guidance,
    LambdaLinear,
    Recipe,
    Scale,
    Train,
)
from cosmos_distill.config.controls import CONTROLS
from cosmos_distill.families import title
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.methods.levels import Grid, ShiftedTime
from cosmos_distill.run.sizes import latent_frames

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
TRANSFER1 = Path(__file__).parents[2] / "recipes" / "transfer1_kd_dmd2.py"
PREDICT25 = TRANSFER1.with_name("predict25_dmd2_4step.py")
TRANSFER25 = TRANSFER1.with_name("transfer25_dmd2_4step.py")


def scales(path: Path) -> tuple[str, ...]:
    return get_args(get_type_hints(cli.load(path).recipe)["scale"])


EVERY = [pytest.param(p, s, id=f"{p.stem}-{s}") for p in RECIPES for s in scales(p)]


@pytest.mark.parametrize("path, scale", EVERY)
def test_every_recipe_resolves(path: Path, scale: str) -> None:
    function = cli.load(path).recipe
    controls = CONTROLS if "control" in get_type_hints(function) else (None,)
    for control in controls:
        recipe = function(scale=scale, **({"control": control} if control else {}))
        assert isinstance(recipe, Recipe)
        assert recipe.control == control
        for stage in recipe.stages.values():
            if isinstance(stage, Train):
                most = len(getattr(stage.method, "condition_frames", (1.0,))) - 1  # a tokenizer's has none
                assert most == recipe.data.max_condition_frames < latent_frames(recipe)


@pytest.mark.parametrize("path, scale", EVERY)
def test_published_recipes_recompute_all_but_attention(path: Path, scale: str) -> None:
    stages = cli.load(path).recipe(scale=scale).stages.values()
    found = {stage.trainer.activation_checkpointing for stage in stages if isinstance(stage, Train)}
    assert found == {"selective" if scale in ("7b", "2b", "14b") else "none"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_import_config_and_methods_only(path: Path) -> None:
    modules = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    ours = [m for m in modules if m and m.startswith("cosmos_distill")]
    assert ours and all(m == "cosmos_distill.config" or m.startswith("cosmos_distill.methods.") for m in ours)


def test_reading_a_recipe_imports_no_torch() -> None:
    code = f"""
import sys
from pathlib import Path
from cosmos_distill.cli import load
for path in {[str(p) for p in RECIPES]}:
    load(Path(path)).recipe()
assert "torch" not in sys.modules, "torch"
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={"PYTHONPATH": str(Path(cosmos_distill.__file__).parents[1])},
    )


def test_transfer1_7b_is_the_published_recipe() -> None:
    recipe: Recipe = cli.load(TRANSFER1).recipe(scale="7b")
    generate, kd, dmd2, evaluate = (recipe.stages[n] for n in ("generate", "kd", "dmd2", "evaluate"))
    assert isinstance(generate, Generate) and isinstance(kd, Train) and isinstance(dmd2, Train)
    assert isinstance(evaluate, Evaluate) and isinstance(kd.method, KD) and isinstance(dmd2.method, DMD2)
    assert (generate.pairs, generate.guidance, generate.steps) == (10_000, Guidance(7.0, "added"), 35)
    assert (kd.trainer.max_steps, kd.trainer.global_batch) == (10_000, 64)
    student = kd.method.student
    assert (student.lr, student.betas, student.eps, student.weight_decay) == (1e-5, (0.9, 0.999), 1e-8, 0.01)
    assert (student.clip_norm, student.warmup_steps, student.cosine) == (10.0, 0, False)
    assert (dmd2.trainer.max_steps, dmd2.trainer.global_batch) == (24_000, 64)
    method = dmd2.method
    for optim in (method.student, method.fake_score, method.discriminator):
        assert (optim.lr, optim.betas, optim.weight_decay, optim.warmup_steps) == (
            5e-7,
            (0.9, 0.999),
            0.01,
            0,
        )
    clips = (method.student.clip_norm, method.fake_score.clip_norm, method.discriminator.clip_norm)
    assert clips == (10.0, None, None)  # of the student only
    assert (method.guidance, method.student_update_freq, method.gan_weight) == (
        Guidance(5.0, "added"),
        5,
        1e-3,
    )
    assert (method.levels, method.head) == (Grid("edm_sampling", adjust_video_noise=True), "conv3d")
    assert method.condition_frames == kd.method.condition_frames == (1 / 3, 1 / 3, 1 / 3)
    assert (method.critic_warmup_steps, method.recon_loss_weight, method.ladd) == (0, 0.0, False)
    assert all(s.trainer.precision == "bf16" and s.trainer.ema_decay is None for s in (kd, dmd2))
    assert (kd.pairs_from, dmd2.start_from, dmd2.pairs_from) == ("generate", "kd", None)
    assert latent_frames(recipe) == 16
    assert recipe.schedule.sigma_data == 0.5 and recipe.schedule.sigma_max == 80.0


@pytest.mark.parametrize("scale", get_args(Scale))
def test_teacher_costs_72_evaluations(scale: Scale) -> None:
    from cosmos_distill.sampling.samplers import evaluations

    recipe: Recipe = cli.load(TRANSFER1).recipe(scale=scale)
    stage = recipe.stages["evaluate"]
    assert isinstance(stage, Evaluate)
    calls = recipe.network.family.teacher.calls(stage.steps)
    assert evaluations(calls, stage.guidance) == (16 if scale == "smoke" else 72)
    assert evaluations(36, Guidance(0.0, "added")) == evaluations(36, Guidance(1.0, "standard")) == 36


@pytest.mark.parametrize("scale, fake_score_lr, clean_times", [("2b", 2e-7, True), ("14b", 1e-7, False)])
def test_predict25_is_the_published_recipe(scale: str, fake_score_lr: float, clean_times: bool) -> None:
    from cosmos_distill.diffusion import build_schedule
    from cosmos_distill.sampling.samplers import evaluations

    recipe: Recipe = cli.load(PREDICT25).recipe(scale=scale)
    dmd2, evaluate = recipe.stages["dmd2"], recipe.stages["evaluate"]
    assert isinstance(dmd2, Train) and isinstance(dmd2.method, DMD2) and isinstance(evaluate, Evaluate)
    method, trainer = dmd2.method, dmd2.trainer
    for optim, rate in ((method.student, 1e-6), (method.fake_score, fake_score_lr)):
        assert (optim.lr, optim.betas, optim.weight_decay, optim.clip_norm) == (rate, (0.9, 0.999), 0.01, 1.0)
        assert optim.linear == LambdaLinear(100, 1e-6, 0.99, 0.4, 400_000) and not optim.cosine
    assert (method.sampler, method.guidance) == (FewStep(4), Guidance(3.0, "added"))
    assert (method.student_update_freq, method.student_warmup_steps, method.gan_weight) == (5, 1, 0.0)
    assert (method.vsd_form, method.fake_score_weighting) == ("predict2.5", "trigflow")
    assert method.levels == ShiftedTime("uniform") and method.mask_given_frames
    assert method.condition_frames == (0.6, 0.2, 0.2)
    assert (method.gan_features, method.head) == ("fake_score", "query_token")
    assert (trainer.max_steps, trainer.save_every, trainer.sample_every) == (30_000, 500, 250)
    assert (trainer.ema_power, trainer.ema_decay, trainer.precision) == (0.1, None, "bf16")
    data = recipe.data
    assert (data.frames, data.height, data.width, latent_frames(recipe)) == (93, 704, 1280, 24)
    assert recipe.network.clean_condition_times is clean_times  # type: ignore[attr-defined]
    levels = build_schedule(recipe.schedule)
    assert (
        evaluations(recipe.network.family.teacher.calls(evaluate.steps), evaluate.guidance) == 70
    )  # to 4: 17.5 times
    taus = [float(levels.to_tau(t)) for t in levels.student_times(4)]  # type: ignore[union-attr]
    assert taus == pytest.approx([1, 0.9375, 5 / 6, 0.625])


def test_transfer25_is_the_published_recipe() -> None:
    recipe: Recipe = cli.load(TRANSFER25).recipe(scale="2b", control="seg")
    dmd2, evaluate = recipe.stages["dmd2"], recipe.stages["evaluate"]
    assert list(recipe.stages) == ["dmd2", "evaluate", "export"] and title(recipe.network) == "transfer2.5-2b"
    assert isinstance(dmd2, Train) and isinstance(dmd2.method, DMD2) and isinstance(evaluate, Evaluate)
    method, trainer = dmd2.method, dmd2.trainer
    for optim, rate in ((method.student, 1e-6), (method.fake_score, 2e-7), (method.discriminator, 2e-7)):
        assert (optim.lr, optim.betas, optim.weight_decay, optim.clip_norm) == (rate, (0.9, 0.999), 0.01, 1.0)
        assert optim.linear == LambdaLinear(100, 1e-6, 0.99, 0.4, 400_000)
    assert (method.sampler, method.guidance) == (FewStep(4), Guidance(3.0, "added", "kept"))
    assert (method.student_update_freq, method.student_warmup_steps, method.gan_weight) == (5, 1, 0.0)
    assert (method.levels, method.condition_frames) == (ShiftedTime("uniform"), (0.6, 0.2, 0.2))
    assert (trainer.max_steps, trainer.save_every, trainer.sample_every) == (30_000, 500, 250)
    data, schedule = recipe.data, recipe.schedule
    assert (data.frames, data.height, data.width, latent_frames(recipe)) == (93, 704, 1280, 24)
    assert (schedule.shift, schedule.sigma_data) == (5.0, 1.0)  # type: ignore[union-attr]
    assert recipe.network.family.teacher.calls(evaluate.steps) == 35


def test_a_method_without_a_teacher_is_given_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--stages.pretrain.teacher-from", "pretrain", "--out", str(tmp_path / "run"))
    assert cli.main([str(TRANSFER25), *args]) == cli.REFUSED
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "--stages.pretrain.teacher-from pretrain: Denoising reads no teacher: leave it out." in said
    assert "no Train stage of that name comes before 'pretrain'" in said


def test_fake_score_features_of_2b_are_the_published_blocks() -> None:
    recipe: Recipe = cli.load(PREDICT25).recipe(scale="2b")
    assert recipe.stages["dmd2"].method.feature_blocks == (11, 19, 27)  # type: ignore[attr-defined]


def test_dry_run_of_7b_shows_sizes_memory_and_launch_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And then refuses, since the weights are not there."""
    out = tmp_path / "run"
    assert cli.main([str(TRANSFER1), "--scale", "7b", "--dry-run", "--out", str(out)]) == cli.REFUSED
    shown = capsys.readouterr()
    assert "7.236 B parameters in the base + 0.890 B in the control branch" in shown.out
    assert "prompts: 512 x 1,024 numbers of T5-XXL, published in t5_xxl/" in shown.out
    for word in ("max_steps: 24000", "fake_score", "discriminator", "GiB", "torchrun", "kd"):
        assert word in shown.out
    assert "--dry-run" not in shown.out
    assert "--teacher PATH" in " ".join(shown.err.replace("│", " ").split())
    assert not out.exists()
    assert cli.main(["plan", str(TRANSFER1), "--scale", "7b", "--out", str(out)]) == cli.REFUSED

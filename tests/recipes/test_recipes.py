"""Every recipe file can be read at every scale, and the published numbers are the published numbers."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import cosmos_distill
from cosmos_distill import cli
from cosmos_distill.config import Control, Evaluate, Generate, Guidance, Recipe, Scale, Train
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.kd import KD
from cosmos_distill.stages.checks import latent_frames

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))
TRANSFER1 = Path(__file__).parents[2] / "recipes" / "transfer1_kd_dmd2.py"


def scales(path: Path) -> tuple[str, ...]:
    return get_args(get_type_hints(cli.load(path).recipe)["scale"])


EVERY = [pytest.param(p, s, id=f"{p.stem}-{s}") for p in RECIPES for s in scales(p)]


@pytest.mark.parametrize("path, scale", EVERY)
def test_every_recipe_resolves(path: Path, scale: str) -> None:
    for control in get_args(Control):
        recipe = cli.load(path).recipe(scale=scale, control=control)
        assert isinstance(recipe, Recipe)
        assert recipe.control == control
        for stage in recipe.stages.values():
            if isinstance(stage, Train):
                assert getattr(stage.method, "max_condition_frames", 0) <= recipe.data.max_condition_frames


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
    assert (method.sigma_schedule, method.adjust_video_noise, method.head) == ("edm_sampling", True, "conv3d")
    assert (method.critic_warmup_steps, method.recon_loss_weight, method.ladd) == (0, 0.0, False)
    assert all(s.trainer.precision == "bf16" and s.trainer.ema_decay is None for s in (kd, dmd2))
    assert (kd.pairs_from, dmd2.start_from, dmd2.pairs_from) == ("generate", "kd", None)
    assert latent_frames(recipe) == 16
    assert recipe.schedule.sigma_data == 0.5 and recipe.schedule.sigma_max == 80.0


@pytest.mark.parametrize("scale", get_args(Scale))
def test_teacher_costs_72_evaluations(scale: Scale) -> None:
    from cosmos_distill.stages.sampling import evaluations

    recipe: Recipe = cli.load(TRANSFER1).recipe(scale=scale)
    stage = recipe.stages["evaluate"]
    assert isinstance(stage, Evaluate)
    assert evaluations(stage.steps, stage.guidance) == (16 if scale == "smoke" else 72)
    assert evaluations(35, Guidance(0.0, "added")) == evaluations(35, Guidance(1.0, "standard")) == 36


def test_dry_run_of_7b_shows_sizes_memory_and_launch_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And then refuses, since the weights are not there."""
    out = tmp_path / "run"
    assert cli.main([str(TRANSFER1), "--scale", "7b", "--dry-run", "--out", str(out)]) == cli.REFUSED
    shown = capsys.readouterr()
    assert "7.236 B parameters in the base + 0.890 B in the control branch" in shown.out
    for word in ("max_steps: 24000", "fake_score", "discriminator", "GiB", "torchrun", "kd"):
        assert word in shown.out
    assert "--dry-run" not in shown.out
    assert "--teacher PATH" in " ".join(shown.err.replace("│", " ").split())
    assert not out.exists()
    assert cli.main(["plan", str(TRANSFER1), "--scale", "7b", "--out", str(out)]) == cli.REFUSED

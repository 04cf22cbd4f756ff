"""Options that cannot work, given to the smoke recipes; all refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.robustness.inputs import Input
from tests.robustness.kills import RECIPES


def option(*words: str, recipe: str = "transfer1", names: tuple[str, ...] = ()) -> Input:
    """The dry run of a smoke recipe with one option more; a refusal names the last part of it."""

    def make(folder: Path) -> Any:
        return [RECIPES[recipe], "--scale", "smoke", "--out", "out", *words, "--dry-run"]

    return Input(make, names or (words[0].rpartition(".")[2].lstrip("-"),), quick=True)


def _predict(*words: str, names: tuple[str, ...] = ()) -> Input:
    return option(*words, recipe="predict25", names=names)


def _words(*words: str, names: tuple[str, ...] = ()) -> Input:
    return Input(lambda folder: list(words), names, quick=True)


KD, DMD2 = "--stages.kd.trainer", "--stages.dmd2"
INPUTS = {
    "save-every negative": option("--trainer.save-every", "-1", names=("save",)),
    "log-every negative": option("--trainer.log-every", "-1", names=("log",)),
    "max-steps 0": option("--trainer.max-steps", "0", names=("max", "steps")),
    "max-steps a word": option(f"{KD}.max-steps", "many"),
    "max-steps a fraction": option(f"{KD}.max-steps", "1.5"),
    "global-batch 0": option(f"{KD}.global-batch", "0", names=("global", "batch")),
    "global-batch not a multiple": option(f"{KD}.global-batch", "7", names=("global", "7")),
    "micro-batch 0": option(f"{KD}.micro-batch", "0", names=("micro", "batch")),
    "micro-batch negative": option(f"{KD}.micro-batch", "-4", names=("micro", "batch")),
    "keep-every negative": option(f"{KD}.keep-every", "-1", names=("keep", "every")),
    "max-nonfinite 0": option(f"{KD}.max-nonfinite", "0", names=("nonfinite",)),
    "ema-decay above 1": option(f"{DMD2}.trainer.ema-decay", "1.5", names=("ema",)),
    "ema-decay negative": option(f"{DMD2}.trainer.ema-decay", "-0.1", names=("ema",)),
    "two averages": option(
        f"{DMD2}.trainer.ema-power", "0.1", f"{DMD2}.trainer.ema-decay", "0.9", names=("ema",)
    ),
    "lr 0": option("--stages.kd.method.student.lr", "0", names=("lr",)),
    "lr negative": option("--stages.kd.method.student.lr", "-1e-4", names=("lr",)),
    "lr nan": option("--stages.kd.method.student.lr", "nan", names=("lr",)),
    "lr infinite": option("--stages.kd.method.student.lr", "inf", names=("lr",)),
    "clip-norm 0": option("--stages.kd.method.student.clip-norm", "0", names=("clip",)),
    "betas above 1": option("--stages.kd.method.student.betas", "0.9", "1.5", names=("betas",)),
    "guidance infinite": option(f"{DMD2}.method.guidance.scale", "inf", names=("scale",)),
    "guidance nan": option("--stages.generate.guidance.scale", "nan", names=("scale",)),
    "guidance convention": option(f"{DMD2}.method.guidance.convention", "own"),
    "sigma-data 0": option("--schedule.sigma-data", "0", names=("sigma", "data")),
    "sigma-min above sigma-max": option("--schedule.sigma-min", "90", names=("sigma",)),
    "pairs 0": option("--stages.generate.pairs", "0", names=("pairs",)),
    "pairs negative": option("--stages.generate.pairs", "-3", names=("pairs",)),
    "generate steps 0": option("--stages.generate.steps", "0", names=("steps",)),
    "generate batch 0": option("--stages.generate.batch", "0", names=("batch",)),
    "evaluate clips 0": option("--stages.evaluate.clips", "0", names=("clips",)),
    "evaluate batch 0": option("--stages.evaluate.batch", "0", names=("batch",)),
    "evaluate draws 0": option("--stages.evaluate.draws", "0", names=("draws",)),
    "frames 0": option("--data.frames", "0", names=("frames",)),
    "frames even": option("--data.frames", "6", names=("frames",)),
    "height 0": option("--data.height", "0", names=("height",)),
    "width no multiple": option("--data.width", "36", names=("width",)),
    "stride 0": option("--data.stride", "0", names=("stride",)),
    "condition frames negative": option("--data.max-condition-frames", "-1", names=("condition",)),
    "student steps 0": _predict(f"{DMD2}.method.sampler.steps", "0", names=("steps",)),
    "shift 0": _predict("--schedule.shift", "0", names=("shift",)),
    "student-update-freq 0": _predict(f"{DMD2}.method.student-update-freq", "0", names=("student", "freq")),
    "head-width 10": option(f"{DMD2}.method.head-width", "10", names=("head",)),
    "feature-blocks 77": option(f"{DMD2}.method.feature-blocks", "77", names=("feature",)),
    "tensor 0": option("--parallel.tensor", "0", names=("tensor",)),
    "tensor of one process": Input(
        lambda folder: [RECIPES["transfer1"], "--scale", "smoke", "--out", "out", "--parallel.tensor", "2"],
        ("tensor", "torchrun"),
        quick=True,
    ),
    "precision unknown": option(f"{KD}.precision", "fp8"),
    "network unknown": option("--network", "transfer9", names=("transfer9",)),
    "network empty": option("--network", "", names=("network",)),
    "control unknown": option("--control", "sketch"),
    "control without its files": option("--control", "depth", names=("depth",)),
    "scale unknown": _words(str(RECIPES["transfer1"]), "--scale", "huge", names=("scale",)),
    "teacher missing": option("--teacher", "nowhere.pt", names=("nowhere.pt",)),
    "teacher empty": option("--teacher", "", names=("teacher", "empty")),
    "data missing": option("--data", "nowhere", names=("nowhere",)),
    "data empty": option("--data", "", names=("data", "empty")),
    "out empty": Input(
        lambda folder: [RECIPES["transfer1"], "--scale", "smoke", "--out", ""], ("out", "empty"), quick=True
    ),
    "out empty with =": Input(
        lambda folder: [RECIPES["transfer1"], "--scale", "smoke", "--out="], ("out", "empty"), quick=True
    ),
    "only unknown": Input(
        lambda folder: [RECIPES["transfer1"], "--scale", "smoke", "--out", "out", "--only", "dk"],
        ("dk",),
        quick=True,
    ),
    "only empty": option("--only", names=("--only is empty",)),
    "only an empty name": Input(
        lambda folder: [RECIPES["transfer1"], "--scale", "smoke", "--out", "out", "--only", ""],
        ("--only",),
        quick=True,
    ),
    "seed a word": option("--seed", "luck"),
    "seed without value": option("--seed"),
    "option unknown": option("--stages.kd.trainer.max-stps", "3", names=("max-steps",)),
    "option of another stage": option("--stages.finetune.trainer.max-steps", "3", names=("finetune",)),
    "stage that starts from a later one": option(
        "--stages.kd.start-from", "dmd2", names=("start-from", "dmd2")
    ),
    "word unknown": _words("trian", names=("trian",)),
    "sample without student": _words("sample", names=("which student",)),
    "generate without recipe": _words("generate", names=("which recipe",)),
    "eval of a recipe without": _words("generate", str(RECIPES["predict25"]), names=("no Generate stage",)),
    "consolidate without target": _words("consolidate", "somewhere", names=("the file to write",)),
    "completion of another shell": _words("completion", "fish", names=("bash",)),
}

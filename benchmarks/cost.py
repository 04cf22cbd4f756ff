"""What an update of the student costs at the published sizes, counted by running its steps on meta tensors.

    python -m benchmarks.cost [--gpu h100] [--json FILE] [--write]

Ratios are of GPU-seconds for one student update and the critics' steps that belong to it, of one clip. The
official recipe runs through the same code, with its own settings. ``--write`` puts the tables into
docs/reference/cost.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType

from benchmarks.options import new_file
from cosmos_distill.config import Recipe, Train
from cosmos_distill.launch.devices import GPUS, Gpu
from cosmos_distill.launch.updates import Update, update
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.methods.sgmd import SGMD

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "cost.md"
BEGIN, END = "<!-- counted: begin -->", "<!-- counted: end -->"


@dataclass(frozen=True)
class Model:
    """A published recipe, and how the official code runs it."""

    recipe: str
    scale: str
    latent: tuple[int, int, int, int]
    official_checkpointing: str


MODELS: Mapping[str, Model] = {
    # 121 frames of 704 x 1280 through CV8x8x8; the official code recomputes whole blocks
    "transfer1-7b": Model("transfer1_kd_dmd2", "7b", (16, 16, 88, 160), "full"),
    # 93 frames through Wan's VAE; the official code keeps attention's results
    "predict2.5-2b": Model("predict25_dmd2_4step", "2b", (16, 24, 88, 160), "selective"),
    "predict2.5-14b": Model("predict25_dmd2_4step", "14b", (16, 24, 88, 160), "selective"),
}


def load(name: str) -> ModuleType:
    """A recipe file as a module."""
    spec = importlib.util.spec_from_file_location(f"cost_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def recipe_of(model: Model) -> Recipe:
    """The recipe at its published scale; no file of it is read."""
    nowhere = Path("somewhere")
    found: Recipe = load(model.recipe).recipe(
        scale=model.scale, teacher=nowhere, data=nowhere, tokenizer=nowhere
    )
    return found


def updates(model: Model, only: Collection[str] | None = None) -> dict[str, Update]:
    """Setting -> what an update costs: the official code's, the recipe as it is shipped, and that with one
    thing changed; of ``only`` these where they are named."""
    recipe = recipe_of(model)
    stage = recipe.stages["dmd2"]
    assert isinstance(stage, Train) and isinstance(stage.method, DMD2)
    official = replace(stage.trainer, activation_checkpointing=model.official_checkpointing)
    methods = {"official": stage.method, "default": stage.method, **cheaper(stage.method)}
    return {
        name: update(
            recipe.network,
            recipe.schedule,
            method,
            model.latent,
            checkpointing=(official if name == "official" else stage.trainer).activation_checkpointing,
            global_batch=stage.trainer.global_batch,
            ema=stage.trainer.averages,
        )
        for name, method in methods.items()
        if only is None or name in only
    }


def cheaper(method: DMD2) -> dict[str, DMD2]:
    """Settings that need fewer passes for an update of the student, each by itself.

    None is recommended by being here: what they do to quality is measured elsewhere, or not yet.
    """
    shared = {f.name: getattr(method, f.name) for f in fields(DMD2)}
    return {
        **({"no GAN": replace(method, gan_weight=0.0)} if method.gan_weight else {}),
        "2 critics' steps, IDA": replace(method, student_update_freq=3, ida_decay=0.97),
        "1 critics' step, IDA": replace(method, student_update_freq=2, ida_decay=0.97),
        "SGMD": SGMD(**shared | {"student_update_freq": 2, "gan_weight": 0.0}),
    }


def ratios(gpu: Gpu) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, Update]]]:
    """Model -> setting -> share of the official recipe's GPU-seconds; and what was counted."""
    counted = {name: updates(model) for name, model in MODELS.items()}
    seconds = {name: {s: u.seconds(gpu) for s, u in found.items()} for name, found in counted.items()}
    return {n: {s: v / found["official"] for s, v in found.items()} for n, found in seconds.items()}, counted


def tables(gpu: Gpu) -> tuple[str, dict[str, dict[str, float]]]:
    """Markdown, and the ratios."""
    shares, counted = ratios(gpu)
    return "\n".join(_lines(gpu, shares, counted)), shares


def _lines(
    gpu: Gpu, shares: Mapping[str, Mapping[str, float]], counted: Mapping[str, Mapping[str, Update]]
) -> Iterator[str]:
    yield f"GPU-seconds of one clip on {gpu.name}: dense bf16 peak {gpu.peak / 1e12:.0f} TFLOP/s, of which"
    yield f"matrix products reach {gpu.products:.0%}, attention {gpu.attention_forward:.0%} forward and"
    yield f"{gpu.attention_backward:.0%} backward; {gpu.bandwidth / 1e12:.2f} TB/s, of which all else reaches"
    yield f"{gpu.streaming:.0%}. These shares are assumed, not measured."
    yield ""
    yield "| | student step | critics' step | update | of the official |"
    yield "|---|---|---|---|---|"
    for name, found in counted.items():
        for setting, one in found.items():
            student, critic = gpu.seconds(one.student), gpu.seconds(one.critic)
            yield (
                f"| {name}, {setting} | {student:.1f} | {critic:.1f} x {one.critic_steps} "
                f"| {one.seconds(gpu):.1f} | {shares[name][setting]:.2f} |"
            )
    yield ""
    yield "Calls of each network, mean over the student's numbers of steps (with a graph / without), and"
    yield "PFLOP of products and attention in an update:"
    yield ""
    yield "| | role | calls in a student step | in a critics' step | forward | recompute | backward |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in counted.items():
        one = found["default"]
        for role in ("student", "teacher", "fake_score"):
            calls = [
                f"{c.passes[role, True]:g} / {c.passes[role, False]:g}" for c in (one.student, one.critic)
            ]
            work = [
                sum(one.work.total(kind, phase, role).flops for kind in ("product", "attention")) / 1e15
                for phase in ("forward", "recompute", "backward")
            ]
            yield f"| {name} | {role} | {' | '.join(calls)} | {' | '.join(f'{w:.1f}' for w in work)} |"


def main() -> None:
    """Print the tables; write what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=__doc__)
    parser.add_argument("--gpu", choices=GPUS, default="h100")
    parser.add_argument("--json", type=new_file, help="file for the ratios")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    asked = parser.parse_args()
    text, shares = tables(GPUS[asked.gpu])
    print(text)
    if asked.json is not None:
        asked.json.write_text(json.dumps(shares, indent=1) + "\n", encoding="utf-8")
    if asked.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), text), encoding="utf-8")


def page(before: str, text: str) -> str:
    """The page with its counted part replaced."""
    head, rest = before.split(BEGIN)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    main()

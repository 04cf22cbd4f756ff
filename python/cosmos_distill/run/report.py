"""After the last stage: the run's report from its manifests, scores, logs and grids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import cosmos_distill
from cosmos_distill.config import Evaluate, Recipe, Train
from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.data import keeping
from cosmos_distill.eval import page
from cosmos_distill.eval.missing import shown
from cosmos_distill.eval.report import metrics_of, summary, targets
from cosmos_distill.families import preset_of, title
from cosmos_distill.files import read_json
from cosmos_distill.run.manifest import Manifest, Scores, plain
from cosmos_distill.run.text import yaml
from cosmos_distill.storage import publish, publish_json


def write(recipe: Recipe, out: Path, console: Console) -> None:
    """Write report.json and report.html into the run folder, if an Evaluate stage is complete."""
    manifests = {name: m for name in recipe.stages if (m := Manifest.read(out / name)) is not None}
    evaluated = [n for n, s in recipe.stages.items() if isinstance(s, Evaluate) and n in manifests]
    if not evaluated or (outputs := manifests[evaluated[-1]].outputs) is None:
        return
    assert isinstance(outputs, Scores)
    scores = read_json(out / outputs.scores.path)
    report: dict[str, Any] = {
        **summary(scores),
        "wall_seconds": sum(m.seconds for m in manifests.values()),
        "stages": {n: {"seconds": m.seconds, "attempts": m.attempts} for n, m in manifests.items()},
        "seed": recipe.seed,
        "version": cosmos_distill.__version__,
        "cores": os.cpu_count(),
        "details": {n: m.details for n, m in manifests.items()},
        "recipe": plain(recipe),
    }
    whole = all(m.complete for m in manifests.values()) and len(manifests) == len(recipe.stages)
    # A teacher's own report (no students in it) promises nothing about a student.
    students = any(stage.students for stage in recipe.stages.values() if isinstance(stage, Evaluate))
    named, promised = preset_of(recipe.network) or "", recipe.network.family.wall_seconds
    limit = promised.get(named) if whole and students else None
    report["targets"] = targets(report, limit, quality=not named.endswith("-smoke"))
    publish_json(out / "report.json", report, indent=2)
    publish(out / "report.html", _html(recipe, out, report, outputs))
    _summary(report, console)
    console.print(f"report: {out / 'report.html'}")


def _html(recipe: Recipe, out: Path, report: dict[str, Any], outputs: Scores) -> str:
    from cosmos_distill.train.visuals import curves

    trained = [name for name, stage in recipe.stages.items() if isinstance(stage, Train)]
    pictures = [("Conditions of held-out clips, same noise for all", out / outputs.grid.path)]
    beyond = (out / outputs.grid.path).parent / OUT_OF_DOMAIN / "grid.png"
    if OUT_OF_DOMAIN in report and beyond.is_file():
        pictures.append(("Clips of another domain", beyond))
    for name in trained:
        if grids := sorted((out / name / "grids").glob("*.png")):
            pictures.append((f"{name}: {grids[-1].stem.replace('_', ' ')}", grids[-1]))
    logs = {name: out / name / "log.jsonl" for name in trained if (out / name / "log.jsonl").is_file()}
    return page.html(
        report,
        title=title(recipe.network) + (f", control: {recipe.control}" if recipe.control else ""),
        curves=curves(logs) if logs else "",
        pictures=pictures,
        recipe=yaml(plain(recipe)),
        left_out=_left_out(report),
    )


def _left_out(report: dict[str, Any]) -> list[str]:
    """What thresholds left out of each stage, in words."""
    found = []
    for name, details in report["details"].items():
        data = details.get("data", {})
        data = data.get("train", data)  # an Encode stage's splits, which are of one folder
        what = "pair" if data.get("source") == "pairs" else "clip"
        if said := keeping.said(data.get("left_out", {}), what):
            found.append(f"{name}: {said}")
    return found


def _summary(report: dict[str, Any], console: Console) -> None:
    names = metrics_of(report)
    sets = {"held-out clips": report, "clips of another domain": report.get(OUT_OF_DOMAIN)}
    for title_of, found in sets.items():
        if found is None:
            continue
        table = Table("", *names.values(), title=title_of, title_justify="left")
        for who, values in found["metrics"].items():
            table.add_row(who, *(shown(values[m], ".3f") for m in names))
        floor = found["floor"]
        table.add_row(
            "floor (real against real)", *(shown(floor[m], ".3f") if m in floor else "" for m in names)
        )
        console.print(table)
    for who, values in {**report["metrics"], "floor": report["floor"]}.items():
        for metric, why in values.get("reasons", {}).items():
            console.print(f"no {metric} of {who}: {why}", markup=False, highlight=False)
    verdicts = {True: "[green]met[/]   ", False: "[red]missed[/]", None: "unknown"}
    for target in report["targets"]:
        why = f"; {target['reason']}" if "reason" in target else ""
        console.print(
            f"{verdicts[target['met']]} {target['name']}: {shown(target['value'])} "
            f"({target['direction']} {target['bound']:.4g}{why})"
        )

"""What a rank holds under each layout, counted in a run of two steps, against one rank alone.

Counted on the CPU with gloo; no layout is timed, since the ranks of one machine share its cores. Written to
results/layouts.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.layouts import FRAMES, HEIGHT, LAYOUTS, NETWORK, SAMPLES, WIDTH

ROOT = Path(__file__).resolve().parent.parent
HEAD = ["layout", "ranks", "weights MiB", "optimiser MiB", "kept for backward MiB", "all, of one rank's"]


def bench_layouts(tmp_path: Path) -> None:
    out = tmp_path / "held.json"
    path = os.pathsep.join(p for p in (str(ROOT), *sys.path) if p)
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.layouts", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        check=True,
        timeout=600,
    )
    found = json.loads(out.read_text(encoding="utf-8"))
    print("\n" + write(found))
    alone = sum(found["one rank"].values())
    for name, held in found.items():
        assert name in ("one rank", "data 2") or sum(held.values()) < alone, f"{name} saves nothing"


def write(found: dict[str, dict[str, int]]) -> str:
    """Write the table and return it."""
    alone = sum(found["one rank"].values())
    lines = [HEAD, ["---"] * len(HEAD)]
    for name, held in found.items():
        sizes = [f"{held[part] / 2**20:.0f}" for part in ("weights", "optimizer", "saved")]
        lines.append([name, str(LAYOUTS[name][0]), *sizes, f"{sum(held.values()) / alone:.2f}"])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    tokens = FRAMES * HEIGHT * WIDTH // NETWORK.patch**2
    text = (
        "# What a rank holds under each layout\n\n"
        f"DMD2 of a network of Transfer1's kind ({NETWORK.blocks} blocks of width {NETWORK.width} and "
        f"{NETWORK.control_blocks} of control) in fp32 on gloo: one step of the student and one of the "
        f"critics, {SAMPLES} samples of {tokens} tokens a step, one at a time. Written by `make bench`.\n\n"
        "Counted, of the fullest rank: weights of student, teacher, fake score and discriminator; AdamW's "
        "moments; the most that autograd kept for backward passes at a time, weights left out. Gradients, as "
        "large as the weights of the roles of the phase, and what passes come and go with are not "
        "counted.\n\n" + table + "\n"
    )
    (Path(__file__).parent / "results" / "layouts.md").write_text(text, encoding="utf-8")
    return table

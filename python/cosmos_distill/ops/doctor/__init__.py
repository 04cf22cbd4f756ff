"""What this machine can do with the operators: ``cosmos-distill doctor``, or ``python -m
cosmos_distill.ops.doctor`` where nothing but the operators is there, a bare source tree on PYTHONPATH too.

It says what is installed, which backend serves which operator and why no other does, runs every kernel
against the reference in fp64, and measures: the bandwidth of a copy, the peak of a matrix product, each
operator beside plain torch, torch.compile and SDPA, and a block of a network. The work is ordered by worth
and ends within the budget; what was left out is said. On a GPU all of it is for the GPU, with its clocks and
temperature noted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .clock import Clock, OutOfTime
from .report import as_html, as_text

SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def budget(text: str) -> float:
    """Seconds: ``90``, ``90s``, ``10m``, ``1h``.

    Raises:
        argparse.ArgumentTypeError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"a time such as 90s, 10m or 1h, not {text!r}")
    return float(found[1]) * SECONDS[found[2]]


def examine(seconds: float, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """The findings, ready for JSON: a list of sections with ``title``, ``state`` (done, failed or left out)
    and what they found, and ``wrong``, the number of kernels that are.

    Args:
        seconds: after which nothing is begun any more.
        say: is told what is begun.
    """
    from . import kernels, machine, speed, training

    clock = Clock(seconds)
    sections: list[dict[str, Any]] = []
    for title, run in (
        ("Machine", machine.described),
        ("Who serves which operator", kernels.serving),
        ("Kernels against the reference in fp64", kernels.compared),
        ("Roofs of this machine", speed.roofs),
        ("Operators beside plain torch", speed.operators),
        ("Attention beside SDPA", speed.attention),
        ("A block of the 7B network", training.block),
        ("Training under every layout of the GPUs", training.layouts),
    ):
        section: dict[str, Any] = {"title": title, "rows": [], "notes": []}
        sections.append(section)
        if clock.over:
            section["state"] = "left out"
            section["notes"].append("the budget was used up")
            continue
        say(title)
        try:
            run(section, clock)
            section.setdefault("state", "done")
        except OutOfTime:
            section["state"] = "left out" if not section["rows"] else "done"
            section["notes"].append(f"ended by the budget: {len(section['rows'])} rows were reached")
        except Exception as error:  # one thing that is broken must not hide the others
            section["state"] = "failed"
            section["notes"].append(f"{type(error).__name__}: {error}")
        section["seconds"] = round(clock.lap(), 1)
    wrong = sum(row.get("state") == "wrong" for section in sections for row in section["rows"])
    return {"sections": sections, "wrong": wrong, "budget_s": seconds, "took_s": round(clock.spent, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 1 where a kernel is wrong or a section failed, else 0."""
    parser = argparse.ArgumentParser(prog="cosmos-distill doctor", description=__doc__)
    parser.add_argument("--budget", type=budget, default=600.0, metavar="TIME", help="as 90s or 10m (10m)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page there")
    options = parser.parse_args(argv)
    for out in (options.json, options.html):
        if out is not None and not out.parent.is_dir():
            parser.error(f"{out} cannot be written: there is no folder {out.parent}")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        print(f"The operators need torch, which cannot be imported: {error}", file=sys.stderr)
        return 2
    found = examine(options.budget, lambda title: print(f"{title} ...", file=sys.stderr, flush=True))
    print(as_text(found))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.html is not None:
        options.html.write_text(as_html(found), encoding="utf-8")
    failed = any(section["state"] == "failed" for section in found["sections"])
    return 1 if found["wrong"] or failed else 0

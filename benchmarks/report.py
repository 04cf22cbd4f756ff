"""The table of a benchmark run, and its files: results/cpu.md to read, results/cpu.json to compute with."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.harness import Row
from benchmarks.tables import markdown

RESULTS = Path(__file__).parent / "results"
HEAD = ["operator", "size", "dtype", "pass", "ms", "vs eager", "vs reference", "vs compile"]
HEAD += ["GB/s", "of copy", "held MB", "peak MB"]


def machine() -> str:
    """What the numbers belong to. Virtual machines of several generations call themselves "AMD EPYC"."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        model = f"{found['model name']} (family {found['cpu family']}, model {found['model']})"
    except (OSError, KeyError):
        pass
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def cells(row: Row) -> list[str]:
    """One line of the table; of held and peak memory, the operator's and the reference's."""
    ratios = [f"{row.ratios[rival]:.2f}" for rival in ("eager", "reference", "compile")]
    share = "" if row.copy_share is None else f"{row.copy_share:.0%}"
    held = "" if row.held is None else f"{row.held[0]:.1f} / {row.held[1]:.1f}"
    peak = f"{row.peak[0]:.1f} / {row.peak[1]:.1f}"
    speed = "" if row.gigabytes_per_second is None else f"{row.gigabytes_per_second:.1f}"
    time = [f"{row.milliseconds:.3f}", *ratios, speed, share]
    return [row.name, row.size, row.dtype, row.mode, *time, held, peak]


def write(rows: list[Row]) -> str:
    """Put the rows into the files, where they replace those of the same name, and return the table.

    A run of some benchmarks (``make bench ARGS="-k adaln"``) leaves the others' rows as they are, if they are
    this machine's.
    """
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "cpu.json"
    known: dict[str, Row] = {}
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old["machine"] == machine():
            known = {row.key: row for row in (Row(**one) for one in old["rows"])}
    known |= {row.key: row for row in rows}
    merged = sorted(known.values(), key=lambda row: row.name)
    record = {"machine": machine(), "rows": [asdict(row) for row in merged]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = (
        "# CPU operators against plain torch\n\n"
        f"{machine()}. Written by `make bench`.\n\n"
        "Ratios are medians of interleaved runs; above 1 the operator is faster. `eager` is the chain of "
        "torch calls that model code has, `reference` the operator's reference backend, `compile` "
        "torch.compile of that. `of copy` is useful bytes per second over those of a copy of 64 MiB timed in "
        "the same turns. Memory is the operator's / the reference's: `held` for the backward pass beside the "
        "inputs, `peak` allocated at a time for results and temporaries.\n\n"
        f"{markdown(HEAD, list(map(cells, merged)))}\n"
    )
    (RESULTS / "cpu.md").write_text(text, encoding="utf-8")
    tables.write()
    return markdown(HEAD, list(map(cells, rows)))

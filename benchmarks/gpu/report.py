"""The static table: what is known about the GPU kernels without a GPU, as text, Markdown and JSON.

Everything in it comes from compilers and arithmetic. No figure is a measurement of time, and each table says
so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.devices import DEVICES, KIB
from benchmarks.gpu.gates import complaints
from benchmarks.gpu.occupancy import occupancy
from benchmarks.gpu.resources import Resources
from benchmarks.gpu.traffic import Traffic
from benchmarks.gpu.triton_aot import Failure
from benchmarks.gpu.work import Work

NOT_TIMED = "compiled, emulated, not timed"

TRAFFIC = ("Triton", "CUDA")

ROOFLINE_NOTES = """\
*minimum*: every input and output once. *moved*: what a backend's kernels ask memory for, from their launches:
beside the minimum, statistics kept for backward and partial sums of the gradients of modulation and weights;
what a second kernel reads again; in CUDA a second sweep over each row or head, of which registers keep
nothing (adaptive LayerNorm's backward, qk_norm_rope); for attention also the keys and values that every block
of queries walks over (and the other way round in backward), in blocks of 128 by Triton on an H100 and of 64
by CUDA. *ratio*: that over the minimum, and in brackets, where it differs, what would be left of it if caches
served all that a launch reads again. Modulation, weights and tables count once a launch, although CUDA's
adaptive LayerNorm reads modulation from the caches for every row. CUDA's accesses have been counted in the
emulator, on small tensors; how often Triton's kernels read a tensor is taken from their text. The roof is the
minimum over the peak bandwidth or the operations over the peak rate, whichever takes longer: no kernel can be
faster, and none has been timed. Attention's backward is counted as the five matrix products it needs; the
kernels compute seven, scores and their gradient once for dk and dv and once more for dq, which repeats bit by
bit without atomic additions."""


@dataclass(frozen=True)
class Report:
    """All that is known, and how to print it."""

    compilers: dict[str, str]
    """Name -> version."""
    kernels: Sequence[Resources]
    failures: Sequence[Failure]
    work: Sequence[tuple[Work, Mapping[str, Traffic]]]
    """With what each of TRAFFIC moves, where it has the operator."""
    not_compiled: Sequence[str] = ()
    """What is not among the kernels, and why: "CUDA kernels: ..."."""

    def complaints(self) -> list[str]:
        """Every gate that fails, with the kernel and the figures."""
        found = [f"{one.label}: {one.error}" for one in self.failures]
        return found + [f"{one.label}: {what}" for one in self.kernels for what in complaints(one)]

    def as_json(self) -> dict[str, Any]:
        return {
            "status": NOT_TIMED,
            "compilers": self.compilers,
            "devices": [asdict(device) for device in DEVICES.values()],
            "roofline": [_work_json(work, moved) for work, moved in self.work],
            "kernels": [_kernel_json(one) for one in self.kernels],
            "not_compiled": list(self.not_compiled),
            "complaints": self.complaints(),
        }

    def as_text(self) -> str:
        """For the terminal: the rooflines, and each kernel in its first configuration."""
        first: dict[tuple[str, str, int], Resources] = {}
        for one in self.kernels:
            first.setdefault((one.operator, one.kernel, one.arch), one)
        parts = [
            _columns(_ROOFLINE_HEAD, map(_roofline_row, self.work)),
            _columns(_KERNEL_HEAD, map(_kernel_row, first.values())),
            *self.not_compiled,
            *(f"REFUSED {complaint}" for complaint in self.complaints()),
        ]
        return "\n\n".join(parts)

    def as_markdown(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.compilers.items())
        refused = [f"- {complaint}" for complaint in self.complaints()] or ["None: all of them pass."]
        absent = [f"**{what}.**" for what in self.not_compiled]
        parts = [
            f"# GPU kernels: {NOT_TIMED}",
            f"Written by `make bench`, on a machine without a GPU, with {versions}.",
            f"## Rooflines ({NOT_TIMED})",
            ROOFLINE_NOTES,
            _markdown(_ROOFLINE_HEAD, map(_roofline_row, self.work)),
            f"## Kernels ({NOT_TIMED})",
            "*blocks*: that a multiprocessor holds at once, and the share of its thread slots they take. "
            "*access*: the widest access of a thread to global memory, in bits.",
            *absent,
            _markdown(_KERNEL_HEAD, map(_kernel_row, self.kernels)),
            "## Gates that fail",
            *absent,
            "\n".join(refused),
        ]
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path, build: Path) -> None:
        """gpu.md and gpu.json into ``folder``, which git holds; into ``build`` a gpu.json that has every
        kernel, too: in ``folder`` only gpu.md has those, a line each."""
        everything = self.as_json()
        recorded = {name: value for name, value in everything.items() if name != "kernels"}
        for where, document in ((folder, recorded), (build, everything)):
            where.mkdir(parents=True, exist_ok=True)
            (where / "gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (folder / "gpu.md").write_text(self.as_markdown(), encoding="utf-8")


_ROOFLINE_HEAD = (
    "operator",
    "mode",
    "shape",
    "minimum MB",
    *(f"{backend} {figure}" for backend in TRAFFIC for figure in ("moved MB", "ratio")),
    "TFLOP",
    *(f"roof {device.name} ms" for device in DEVICES.values()),
    "bound by",
)
_KERNEL_HEAD = (
    "operator",
    "kernel",
    "configuration",
    "sm",
    "threads",
    "registers",
    "stack B",
    "shared KiB",
    "blocks",
    "limited by",
    "matrix instructions",
    "access",
)


def _moved(work: Work, traffic: Traffic | None) -> tuple[str, str]:
    """Megabytes and ratio."""
    if traffic is None:
        return "-", "-"
    ratio, once = (f"{count / work.minimum:.3g}" for count in (traffic.moved, traffic.once))
    return f"{traffic.moved / 1e6:.1f}", ratio if ratio == once else f"{ratio} ({once})"


def _roofline_row(pair: tuple[Work, Mapping[str, Traffic]]) -> list[str]:
    work, moved = pair
    roofs = [work.roof(device) for device in DEVICES.values()]
    bounds = dict.fromkeys(bound for _, bound in roofs)
    return [
        work.operator,
        work.mode,
        work.shape.name,
        f"{work.minimum / 1e6:.1f}",
        *(cell for backend in TRAFFIC for cell in _moved(work, moved.get(backend))),
        f"{(work.matrix_flops or work.vector_flops) / 1e12:.3g}",
        *(f"{seconds * 1e3:.3g}" for seconds, _ in roofs),
        ", ".join(bounds),
    ]


def _kernel_row(one: Resources) -> list[str]:
    held = _occupancy(one)
    columns = f" + {one.tensor_columns} columns" if one.tensor_columns else ""
    return [
        one.operator,
        one.kernel,
        one.config,
        str(one.arch),
        str(one.threads),
        str(one.registers),
        str(one.stack),
        f"{one.shared / KIB:.1f}{columns}",
        f"{held.blocks} ({held.share:.0%})",
        ", ".join(held.limited_by),
        " ".join(f"{name} {count}" for name, count in one.matrix.items()) or "-",
        str(one.access_bits) if one.access_bits else "-",
    ]


def _occupancy(one: Resources) -> Any:
    return occupancy(
        DEVICES[one.arch],
        threads=one.threads,
        registers=one.registers,
        shared=one.shared,
        tensor_columns=one.tensor_columns,
    )


def _kernel_json(one: Resources) -> dict[str, Any]:
    return {**asdict(one), "occupancy": asdict(_occupancy(one)), "complaints": complaints(one)}


def _work_json(work: Work, moved: Mapping[str, Traffic]) -> dict[str, Any]:
    roofs = {device.name: work.roof(device) for device in DEVICES.values()}
    return {
        **asdict(work),
        "traffic": {
            backend: {**asdict(one), "moved_over_minimum": one.moved / work.minimum}
            for backend, one in moved.items()
        },
        "roof": {name: {"seconds": s, "bound": b, "status": NOT_TIMED} for name, (s, b) in roofs.items()},
    }


def _columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

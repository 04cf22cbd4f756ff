"""How fast: roofs, and operators beside plain torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cosmos_distill import ops

from .clock import Clock
from .machine import condition, device

Run = Callable[[], object]


def _wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)


def medians(runs: dict[str, Run], seconds: float, on: torch.device) -> dict[str, float]:
    """Median seconds of each, in turns for about ``seconds`` in all; at least three turns."""
    for run in runs.values():
        run()
    _wait(on)
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            result = run()
            _wait(on)
            times[name].append(time.perf_counter() - start)
            del result
    return {name: statistics.median(found) for name, found in times.items()}


def roofs(section: dict[str, Any], clock: Clock) -> None:
    """The bandwidth of a copy and the rate of a matrix product."""
    on = device()
    gpu = on.type == "cuda"
    source = torch.ones((1 << 30 if gpu else 64 << 20) // 4, device=on)
    target = torch.empty_like(source)
    took = medians({"copy": partial(target.copy_, source)}, min(1.0, clock.left / 10), on)["copy"]
    section["rows"].append(
        {"what": f"copy of {source.nbytes >> 20} MiB", "found": f"{2 * source.nbytes / took / 1e9:.1f} GB/s"}
    )
    del source, target
    sizes = (4096, 8192) if gpu else (768, 256)
    for name, dtype, n in zip(("fp32", "bf16"), (torch.float32, torch.bfloat16), sizes, strict=True):
        clock.need()
        a = torch.randn(n, n, device=on).to(dtype)
        took = medians({"product": partial(torch.mm, a, a)}, min(1.0, clock.left / 10), on)["product"]
        rate = 2 * n**3 / took / 1e12
        section["rows"].append(
            {"what": f"product of {n} x {n} {name} matrices", "found": f"{rate:.3g} TFLOP/s"}
        )
    if gpu:
        section["notes"].append(f"clocks, temperature, power, throttling: {condition()}")


def _timed(
    section: dict[str, Any],
    clock: Clock,
    label: dict[str, Any],
    ours: Callable[..., Any],
    rivals: dict[str, Any],
    tensors: tuple[Tensor, ...],
    backward: bool,
    moved: int | None,
) -> None:
    """A row: our milliseconds, and how many times longer each rival takes."""
    on = tensors[0].device
    leaves = [t.detach().requires_grad_(backward) for t in tensors]

    def run(function: Callable[..., Any]) -> Run:
        def forward() -> object:
            with torch.no_grad():
                return function(*leaves)

        def both() -> object:
            made = function(*leaves)
            outs = made if isinstance(made, tuple) else (made,)
            return torch.autograd.grad([o.float().sum() for o in outs], leaves)

        return both if backward else forward

    runs = {"ours": run(ours)} | {name: run(rival) for name, rival in rivals.items()}
    took = medians(runs, min(1.5, max(0.1, clock.left / 20)), on)
    row = {**label, "pass": "fwd+bwd" if backward else "fwd", "ms": round(took["ours"] * 1e3, 3)}
    row |= {f"vs {name}": round(took[name] / took["ours"], 2) for name in rivals}
    if moved is not None and not backward:
        row["GB/s"] = round(moved / took["ours"] / 1e9, 1)
    section["rows"].append(row)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def operators(section: dict[str, Any], clock: Clock) -> None:
    """Those that are bound by memory, at the width of the 7B network; on a CPU with few tokens."""
    on = device()
    gpu = on.type == "cuda"
    tokens, width, heads = (56_320, 4096, 32) if gpu else (256, 1024, 8)
    dtypes = (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        x, y = (torch.randn(1, tokens, width, device=on).to(dtype) for _ in range(2))
        rows = [torch.randn(1, width, device=on) for _ in range(3)]
        q, k = (torch.randn(1, tokens, heads, width // heads, device=on).to(dtype) for _ in range(2))
        weight = torch.ones(width // heads, device=on)
        table = torch.randn(tokens, width // heads // 2, device=on).repeat(1, 2)
        cos, sin = table.cos(), table.sin()
        found: list[tuple[str, Callable[..., Any], tuple[Tensor, ...], int]] = [
            ("adaln_modulate", ops.adaln_modulate, (x, *rows[1:]), 2),
            ("gated_residual_adaln", ops.gated_residual_adaln, (x, y, *rows), 4),
            ("qk_norm_rope", partial(ops.qk_norm_rope, cos=cos, sin=sin), (q, k, weight, weight), 4),
        ]
        for name, operator, tensors, passes in found:
            rivals: dict[str, Callable[..., Any]] = {"eager": partial(operator, backend="reference")}
            for backward in (False, True):
                # The compiler takes its time, more on a busy CPU.
                clock.need(2.0)
                if clock.left > (60 if gpu else 240):
                    rivals["compile"] = _compiled(rivals["eager"])
                label = {"operator": name, "dtype": str(dtype)[6:], "tokens": tokens, "width": width}
                _timed(section, clock, label, operator, rivals, tensors, backward, passes * x.nbytes)
    if gpu:
        section["notes"].append(f"clocks, temperature, power, throttling: {condition()}")
    section["notes"].append("vs: how many times longer a rival takes; eager is the reference in plain torch")


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attention(section: dict[str, Any], clock: Clock) -> None:
    """Every backend that serves it beside torch's SDPA, which also serves ours where no backend is named."""
    from .. import registry

    on = device()
    gpu = on.type == "cuda"
    for tokens, heads, dim in ((8192, 32, 128), (56_320, 32, 128)) if gpu else ((256, 4, 64),):
        dtype = torch.bfloat16 if gpu else torch.float32
        qkv = tuple(torch.randn(1, tokens, heads, dim, device=on).to(dtype) for _ in range(3))
        for backend in registry.OPERATORS["attention_lse"][1]:
            if backend.name in ("reference", "tiled", "flex"):
                continue
            try:
                registry.pick("attention_lse", backend.name, *qkv, head=dim)
            except registry.BackendUnavailable:
                continue
            for backward in (False, True):
                clock.need(10.0 if gpu else 1.0)
                shape = f"1x{tokens}x{heads}x{dim}"
                label = {"backend": backend.name, "shape": shape, "dtype": str(dtype)[6:]}
                ours = partial(ops.attention, return_lse=True, backend=backend.name)
                _timed(section, clock, label, ours, {"SDPA": _sdpa}, qkv, backward, None)
                products, seconds = 7 if backward else 2, section["rows"][-1]["ms"] / 1e3
                work = 2 * products * tokens**2 * heads * dim
                section["rows"][-1]["TFLOP/s"] = round(work / seconds / 1e12, 3)
    section["notes"].append("ours with the log-sum-exp, SDPA without; fwd+bwd counted as seven products")

"""A block of a network, and training steps on several GPUs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_distill import ops

from .clock import Clock
from .machine import condition, device
from .speed import medians

ROOT = Path(__file__).resolve().parents[4]
"""Of a source tree, where the package lies in one."""


class Block(nn.Module):
    """Self-attention and MLP of a diffusion transformer on the operators, as in the 7B network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.q_weight, self.k_weight = (nn.Parameter(torch.ones(width // heads)) for _ in range(2))

    def forward(self, x: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift, scale, gate, shift_2, scale_2, gate_2 = rows.unbind(1)
        h = ops.adaln_modulate(x, shift, scale)
        q, k, v = self.qkv(h).unflatten(-1, (3 * self.heads, -1)).chunk(3, dim=2)
        q, k = ops.qk_norm_rope(q, k, self.q_weight, self.k_weight, cos, sin)
        y = self.out(ops.attention(q, k, v).flatten(2))
        x, h = ops.gated_residual_adaln(x, y, gate, shift_2, scale_2)
        return ops.gated_residual(x, self.down(F.gelu(self.up(h))), gate_2)


def block(section: dict[str, Any], clock: Clock) -> None:
    """Forward and backward, with what they hold at most; on a CPU a narrow one."""
    on = device()
    gpu = on.type == "cuda"
    tokens, width, heads = (56_320, 4096, 32) if gpu else (128, 256, 4)
    dtype = torch.bfloat16 if gpu else torch.float32
    clock.need(20.0 if gpu else 1.0)
    network = Block(width, heads).to(on, dtype)
    x = torch.randn(1, tokens, width, device=on, dtype=dtype, requires_grad=True)
    rows = torch.randn(1, 6, width, device=on)
    table = torch.randn(tokens, width // heads // 2, device=on).repeat(1, 2)
    cos, sin = table.cos(), table.sin()

    def forward() -> object:
        with torch.no_grad():
            return network(x, rows, cos, sin)

    def both() -> object:
        network.zero_grad(set_to_none=True)
        x.grad = None
        network(x, rows, cos, sin).float().mean().backward()
        return None

    took = medians({"fwd": forward, "fwd+bwd": both}, min(5.0, clock.left / 5), on)
    products = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    for name, times in (("fwd", 1), ("fwd+bwd", 3)):
        row = {"tokens": tokens, "width": width, "pass": name, "ms": round(took[name] * 1e3, 2)}
        section["rows"].append(row | {"TFLOP/s": round(times * products / took[name] / 1e12, 3)})
    if not gpu:
        section["notes"].append("a narrow block: the 7B network's needs a GPU")
        return
    torch.cuda.reset_peak_memory_stats(on)
    before = torch.cuda.memory_allocated(on)
    both()
    torch.cuda.synchronize(on)
    peak = (torch.cuda.max_memory_allocated(on) - before) / 2**30
    # What backward needs: the rows between operators, those of the MLP four times as wide, and the gradients.
    planned = (2 * tokens * width * (1 + 3 + 2 + 1 + 1 + 1 + 1 + 4 + 4 + 2) + 2 * 12 * width**2) / 2**30
    section["notes"].append(f"peak of forward and backward {peak:.2f} GiB, by arithmetic {planned:.2f} GiB")
    section["notes"].append(f"clocks, temperature, power, throttling: {condition()}")


def layouts(section: dict[str, Any], clock: Clock) -> None:
    """The smoke recipe's DMD2 steps in every layout that the GPUs allow, against one rank's."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    recipe = ROOT / "recipes" / "transfer1_kd_dmd2.py"
    reason = (
        f"it takes two GPUs and NCCL, and there {'is one' if gpus == 1 else 'are none'}"
        if gpus < 2
        else "only the operators are installed"
        if importlib.util.find_spec("cosmos_distill.cli") is None
        else "there is no recipe: run it from a source tree"
        if not recipe.is_file()
        else ""
    )
    if reason:
        section["state"] = "left out"
        section["notes"].append(reason)
        return
    one: list[float] | None = None
    for ranks, options in _splits(gpus):
        clock.need(60.0)
        losses = _steps(recipe, ranks, options, clock.left)
        if one is None:
            one = losses
        off = max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(losses, one, strict=True))
        state = "right" if off < 1e-2 else "wrong"
        layout = " ".join(options) or "one rank"
        row = {"layout": layout, "ranks": ranks, "state": state, "largest difference": f"{off:.2e}"}
        section["rows"].append(row)


def _splits(gpus: int) -> list[tuple[int, tuple[str, ...]]]:
    found: list[tuple[int, tuple[str, ...]]] = [(1, ())]
    for ranks in (2, 4, 8):
        if ranks <= gpus:
            found.append((ranks, ()))
            axes = ("tensor", "context", "pipeline")
            found += [(ranks, (f"--parallel.{axis}", str(ranks))) for axis in axes]
    return found


def _steps(recipe: Path, ranks: int, options: tuple[str, ...], seconds: float) -> list[float]:
    """The losses of the smoke recipe's steps."""
    with tempfile.TemporaryDirectory() as out:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [*launch, "-m", "cosmos_distill", str(recipe), "--scale", "smoke", "--out", out, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(30.0, seconds))
        if done.returncode:
            raise RuntimeError(f"{' '.join(options) or 'one rank'}: {done.stderr.strip()[-300:]}")
        logs = sorted(Path(out).rglob("*.jsonl"))
        found = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    numbers = [item for line in found for item in line.items()]
    return [value for name, value in numbers if "loss" in name and isinstance(value, float)]

"""Two tensor-parallel ranks on gloo. Run as ``tensor_worker.py FOLDER``; leaves rank{0,1}.safetensors there.

A process of its own: the parent of a fork must not have used OpenMP threads or a process group, and the
test runner has. Both ranks are forked after the imports, which are the expensive part.
"""

import datetime
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from cosmos_distill.config import Parallel
from cosmos_distill.models import build
from cosmos_distill.models.common import weights
from cosmos_distill.models.transfer1.config import PRESETS
from cosmos_distill.parallel import groups
from cosmos_distill.parallel.linear import ColumnLinear, RowLinear, enter
from cosmos_distill.parallel.parts import parts_of

RANKS = 2


def linears(seed: int = 0) -> dict[str, torch.Tensor]:
    """x [5, 6], A [8, 6], B [4, 8]."""
    g = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(5, 6, generator=g),
        "a": torch.randn(8, 6, generator=g),
        "b": torch.randn(4, 8, generator=g),
    }


def run_linears(rank: int = 0, ranks: int = 1) -> dict[str, torch.Tensor]:
    t = linears()
    column = ColumnLinear(6, 8, dtype=torch.float32)
    row = RowLinear(8, 4, dtype=torch.float32)
    with torch.no_grad():
        column.weight.copy_(t["a"].chunk(ranks, 0)[rank])
        row.weight.copy_(t["b"].chunk(ranks, 1)[rank])
    x = t["x"].requires_grad_()
    hidden = column(enter(x))
    out = row(hidden.square())
    out.square().sum().backward()
    return {
        "hidden": hidden.detach(), "out": out.detach(), "grad_x": x.grad,
        "grad_a": column.weight.grad, "grad_b": row.weight.grad,
    }  # fmt: skip


def run_network(file: Path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    network = build(PRESETS["transfer1-smoke"], seed=None)
    weights.load_into(network, file)
    x = inputs["x"].clone().requires_grad_()
    out = network(**{**inputs, "x": x})
    out.square().mean().backward()
    result = {"out": out.detach(), "grad_x": x.grad}
    return result | {k: p.grad for k, p in network.named_parameters() if k in split_dims(network)}


def split_dims(network: torch.nn.Module) -> dict[str, int]:
    """Dimension along which the tensor-parallel group cuts a parameter."""
    return {k: part.split for k, part in parts_of(network).items() if part.split is not None}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), RANKS)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=RANKS, timeout=datetime.timedelta(seconds=30)
    )
    layout = groups.initialize(Parallel(tensor=RANKS))
    assert layout == groups.initialize() == groups.initialize(Parallel(tensor=RANKS))
    found = {f"linear/{k}": v for k, v in run_linears(rank, RANKS).items()}
    found |= {
        f"network/{k}": v
        for k, v in run_network(folder / "in.safetensors", load_file(folder / "inputs")).items()
    }
    save_file({k: v.contiguous() for k, v in found.items()}, folder / f"rank{rank}.safetensors")
    weights.save(build(PRESETS["transfer1-smoke"], seed=5), folder / "initial.safetensors")
    again = build(PRESETS["transfer1-smoke"], seed=None)
    carried = weights.load_into(again, folder / "in.safetensors")
    weights.save_official(again, folder / "out.safetensors", carried)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    mp.start_processes(main, args=(Path(sys.argv[1]),), nprocs=RANKS, start_method="fork")

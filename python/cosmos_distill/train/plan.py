"""What a stage needs before it is started: bytes per GPU, and the line that launches it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from cosmos_distill.config import Parallel, Precision

GIB = 2**30
_WEIGHT = {"fp32": 4, "bf16": 2}
# Gradients, moments, masters and averages are fp32 whatever the network computes in (train/optim.py).
_GRADIENT = 4
_OPTIMIZER = {"fp32": 2 * 4, "bf16": 3 * 4}
_EMA = 4
_ROOM_FOR_ACTIVATIONS = 0.25


@dataclass(frozen=True)
class RolePlan:
    """Bytes of one role on one GPU."""

    role: str
    parameters: int
    """Of the whole network, over all GPUs."""
    trainable: bool
    weights: int
    gradients: int
    optimizer: int
    """Two fp32 moments, and the fp32 master weights of a bf16 network."""
    ema: int

    @property
    def total(self) -> int:
        """All of it, gradients included."""
        return self.weights + self.gradients + self.optimizer + self.ema


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of all roles on one GPU under a layout. Activations come on top."""

    roles: tuple[RolePlan, ...]
    parallel: Parallel
    data_parallel: int
    peak_gradients: int
    """Largest sum of gradients alive at once: a role whose turn it is not has none."""
    capacity: int

    @property
    def gpus(self) -> int:
        """Number of ranks."""
        return world_size(self.parallel, self.data_parallel)

    @property
    def total(self) -> int:
        """Bytes on one GPU, at the step that needs most."""
        return sum(role.total - role.gradients for role in self.roles) + self.peak_gradients

    @property
    def fits(self) -> bool:
        """Whether weights and training state alone leave anything of the GPU."""
        return self.total < self.capacity

    def verdict(self) -> str:
        """One sentence: does it fit, what is left, and what to change if it does not."""
        need, have = _size(self.total), f"{self.capacity / GIB:.0f} GiB"
        if self.fits:
            left = _size(self.capacity - self.total)
            return f"{need} per GPU fits in {have}; {left} are left for activations."
        ways = self.parallel.tensor * self.parallel.pipeline
        wanted = ways
        while self.total * ways / wanted > self.capacity * (1 - _ROOM_FOR_ACTIVATIONS):
            wanted *= 2
        return (
            f"{need} per GPU does not fit in {have}. Only tensor and pipeline parallelism split weights and "
            f"optimiser (context and data parallelism copy them): a product of {wanted}, for example "
            f"--parallel.tensor {wanted // self.parallel.pipeline}, needs "
            f"{_size(self.total * ways / wanted)} per GPU."
        )

    def table(self) -> Table:
        """The plan as a rich table, per GPU."""
        table = Table(title=f"memory per GPU, {self.gpus} GPU{'s' if self.gpus > 1 else ''}")
        for name in ("role", "parameters", "weights", "gradients", "optimizer", "EMA", "total"):
            table.add_column(name, justify="left" if name == "role" else "right")
        for role in self.roles:
            parts = (role.weights, role.gradients, role.optimizer, role.ema, role.total)
            table.add_row(
                role.role if role.trainable else f"{role.role} (frozen)",
                f"{role.parameters / 1e6:,.2f} M",
                *map(_size, parts),
            )
        everything = (
            sum(role.weights for role in self.roles),
            self.peak_gradients,
            sum(role.optimizer for role in self.roles),
            sum(role.ema for role in self.roles),
            self.total,
        )
        table.add_row("at once", "", *map(_size, everything), style="bold")
        return table

    def text(self, width: int = 100) -> str:
        """Table and verdict as plain text."""
        console = Console(width=width, no_color=True, force_terminal=False)
        with console.capture() as capture:
            console.print(self.table())
            console.print(self.verdict(), highlight=False)
        return capture.get()


def _size(count: float) -> str:
    """Bytes for a person."""
    if not count:
        return "-"
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def plan(
    networks: Mapping[str, tuple[int, bool]],
    precision: Precision,
    *,
    parallel: Parallel | None = None,
    data_parallel: int = 1,
    ema: bool = False,
    turns: Iterable[Collection[str]] | None = None,
    capacity: int = 80 * GIB,
) -> MemoryPlan:
    """Bytes per GPU of weights, gradients, optimiser and average.

    Tensor and pipeline parallelism divide everything (norms and position tables, which tensor parallelism
    copies, are counted as divided: below a thousandth of a 7B network). Context and data parallelism
    divide activations and samples only.

    Args:
        networks: role -> (number of parameters, whether it is trained).
        precision: of the networks; the training state is fp32 in any case.
        parallel: layout, by default one GPU.
        data_parallel: copies of the layout.
        ema: whether an average of the student is kept.
        turns: the sets of roles that step together, so that gradients which never live at the same time
            are not added. None: all trained roles step together.
        capacity: bytes of one GPU.
    """
    parallel = parallel or Parallel()
    ways = parallel.tensor * parallel.pipeline

    def bytes_of(parameters: int, each: int) -> int:
        return math.ceil(parameters / ways) * each

    roles = tuple(
        RolePlan(
            role=role,
            parameters=count,
            trainable=trained,
            weights=bytes_of(count, _WEIGHT[precision]),
            gradients=bytes_of(count, _GRADIENT) if trained else 0,
            optimizer=bytes_of(count, _OPTIMIZER[precision]) if trained else 0,
            ema=bytes_of(count, _EMA) if trained and ema and role == "student" else 0,
        )
        for role, (count, trained) in networks.items()
    )
    together = [networks.keys()] if turns is None else list(turns)
    peak = max((sum(r.gradients for r in roles if r.role in turn) for turn in together), default=0)
    return MemoryPlan(roles, parallel, data_parallel, peak, capacity)


def world_size(parallel: Parallel, data_parallel: int = 1) -> int:
    """Number of ranks of ``data_parallel`` copies of a layout."""
    return parallel.tensor * parallel.pipeline * parallel.context * data_parallel


def launch_line(
    parallel: Parallel,
    command: str,
    *,
    data_parallel: int = 1,
    gpus_per_node: int = 8,
) -> str:
    """The line that starts a run under a layout; with several nodes, to be given on each of them.

    Args:
        parallel: the layout.
        command: what follows ``cosmos-distill``, for example ``recipes/transfer1_kd_dmd2.py --scale 7b``.
        data_parallel: copies of the layout.
        gpus_per_node: GPUs of one machine.

    Raises:
        ValueError: if the ranks do not fill whole nodes.
    """
    ranks = world_size(parallel, data_parallel)
    if ranks <= gpus_per_node:
        return f"torchrun --standalone --nproc-per-node {ranks} -m cosmos_distill {command}"
    if ranks % gpus_per_node:
        raise ValueError(
            f"{ranks} ranks do not fill nodes of {gpus_per_node} GPUs: choose a layout whose product is a "
            f"multiple of {gpus_per_node}"
        )
    return (
        f"torchrun --nnodes {ranks // gpus_per_node} --nproc-per-node {gpus_per_node} "
        f"--rdzv-backend c10d --rdzv-endpoint $MASTER_ADDR:29500 -m cosmos_distill {command}"
    )

"""What a stage needs before it is started: bytes per GPU, and the line that launches it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from cosmos_distill.config import Parallel, Precision

GIB = 2**30
WEIGHT = {"fp32": 4, "bf16": 2}
# Gradients, moments, masters and averages are fp32 whatever the network computes in (train/optim.py).
_GRADIENT = 4
OPTIMIZER = {"fp32": 2 * 4, "bf16": 3 * 4}
EMA = 4
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
class Roles:
    """What is planned for; see :func:`plan`."""

    networks: Mapping[str, tuple[int, bool]]
    precision: Precision
    ema: bool
    phases: tuple[Collection[str], ...]
    whole: Collection[str]
    capacity: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of all roles on one GPU under a layout. Activations come on top."""

    asked: Roles
    roles: tuple[RolePlan, ...]
    parallel: Parallel
    data_parallel: int
    peak_gradients: int
    """Largest sum of gradients alive at once: a role outside of the phase has none."""

    @property
    def gpus(self) -> int:
        """Number of ranks."""
        return world_size(self.parallel, self.data_parallel)

    @property
    def capacity(self) -> int:
        """Bytes of one GPU."""
        return self.asked.capacity

    @property
    def total(self) -> int:
        """Bytes on one GPU, at the step that needs most."""
        return sum(role.total - role.gradients for role in self.roles) + self.peak_gradients

    @property
    def fits(self) -> bool:
        """Whether weights and training state alone leave anything of the GPU."""
        return self.total < self.capacity

    def verdict(self) -> str:
        """Does it fit, what is left, and what to change if it does not."""
        need, have = _size(self.total), f"{self.capacity / GIB:.0f} GiB"
        if self.fits:
            left = _size(self.capacity - self.total)
            return f"{need} per GPU fits in {have}; {left} are left for activations."
        ways = "".join(f"\n  {option}: {_size(other.total)} per GPU" for option, other in self.ways_out())
        return (
            f"{need} per GPU does not fit in {have}. Context parallelism divides activations only. What fits "
            f"with room for them:{ways or ' nothing on up to 1024 GPUs'}"
        )

    def ways_out(self) -> Iterator[tuple[str, MemoryPlan]]:
        """Smallest layouts like this one that leave room for activations, each with the option to set."""
        now, data = self.parallel, self.data_parallel
        sizes = [2**n for n in range(11)]
        for name in ("tensor", "pipeline"):  # which divide everything
            for size in sizes:
                wanted = getattr(now, name) * size
                if (other := self._under(replace(now, **{name: wanted}), data)) is not None:
                    yield f"--parallel.{name} {wanted}", other
                    break
        for kind in ("sharded_optimizer", "fsdp"):
            layout = replace(now, data=kind, fsdp_shards=None)
            for size in sizes:
                if (other := self._under(layout, data * size)) is not None:
                    yield f"--parallel.data {kind} on {other.gpus} GPUs", other
                    break

    def _under(self, parallel: Parallel, data_parallel: int) -> MemoryPlan | None:
        other = _plan(self.asked, parallel, data_parallel)
        room = self.capacity * (1 - _ROOM_FOR_ACTIVATIONS)
        return other if other.total <= room and other.gpus <= 1024 else None

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
    phases: Iterable[Collection[str]] | None = None,
    whole: Collection[str] = (),
    capacity: int = 80 * GIB,
) -> MemoryPlan:
    """Bytes per GPU of weights, gradients, optimiser and average.

    Tensor and pipeline parallelism divide everything (norms, position tables and the time embedding, which
    they copy, are counted as divided: below a hundredth of a 7B network). What data-parallel and context
    ranks divide, and what they copy, is said by ``parallel.data``; the block that fsdp gathers while it
    computes is not counted.

    Args:
        networks: role -> (number of parameters, whether it is trained).
        precision: of the networks; the training state is fp32 in any case.
        parallel: layout, by default one GPU.
        data_parallel: copies of the layout.
        ema: whether an average of the student is kept.
        phases: the sets of roles that step together, so that gradients which never live at the same time
            are not added. None: all trained roles step together.
        whole: roles that every rank has whole, whatever the layout: the discriminator.
        capacity: bytes of one GPU.
    """
    together = (tuple(networks),) if phases is None else tuple(phases)
    asked = Roles(networks, precision, ema, together, whole, capacity)
    return _plan(asked, parallel or Parallel(), data_parallel)


def _plan(asked: Roles, parallel: Parallel, data_parallel: int) -> MemoryPlan:
    sharers = parallel.context * data_parallel
    fsdp, zero = parallel.data == "fsdp", parallel.data == "sharded_optimizer"
    shards = (parallel.fsdp_shards or sharers) if fsdp else 1

    def role_plan(role: str, count: int, trained: bool) -> RolePlan:
        if role in asked.whole:
            held, state = count, math.ceil(count / (data_parallel if zero else 1))
        else:
            held = math.ceil(count / (parallel.tensor * parallel.pipeline * shards))
            state = math.ceil(held / (sharers if zero else 1))
        return RolePlan(
            role=role,
            parameters=count,
            trainable=trained,
            weights=held * WEIGHT[asked.precision],
            gradients=held * _GRADIENT if trained else 0,
            optimizer=state * OPTIMIZER[asked.precision] if trained else 0,
            ema=state * EMA if trained and asked.ema and role == "student" else 0,
        )

    roles = tuple(role_plan(role, *what) for role, what in asked.networks.items())
    peak = max((sum(r.gradients for r in roles if r.role in phase) for phase in asked.phases), default=0)
    return MemoryPlan(asked, roles, parallel, data_parallel, peak)


def world_size(parallel: Parallel, data_parallel: int = 1) -> int:
    """Number of ranks of ``data_parallel`` copies of a layout."""
    return parallel.model * data_parallel


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

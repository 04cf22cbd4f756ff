"""Run the real command and have it die, or be asked to stop, at a chosen moment.

python killer.py WHERE RECIPE.py [options]
"""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any


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
}


def run(moment: str, args: list[str]) -> int:
    """One run in a forked process; returns its status."""
    child = os.fork()
    if child == 0:
        from cosmos_distill.cli import main

        MOMENTS[moment]()
        os._exit(main(args))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for stage in ("generate", "train"):
        importlib.import_module(f"cosmos_distill.stages.{stage}")
    importlib.import_module("cosmos_distill.models.common.weights")
    for moment in sys.argv[1].split(","):
        print(moment, run(moment, sys.argv[2:]), file=sys.stderr, flush=True)

"""The real command under torchrun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.run.commands import ENV, RECIPE


def launch(out: Path, *args: str, options: tuple[str, ...] = (), program: tuple[str, ...] = ()) -> list[str]:
    """The smoke recipe on two ranks of one machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    options = options or ("--standalone", "--nproc-per-node", "2")
    program = program or ("-m", "cosmos_distill")
    return [*torchrun, *options, *program, str(RECIPE), "--scale", "smoke", "--out", str(out), *args]


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """In this process's environment and ``environment``; torchrun is that of its installation."""
    env = {k: v for k, v in ENV.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env["PYTHONPATH"] = os.pathsep.join([env["PYTHONPATH"], str(RECIPE.parents[1])])
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env |= environment
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def end(running: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and everything it said, its words on one line."""
    try:
        said, _ = running.communicate(timeout=600)
    finally:
        running.kill()
    return running.returncode, " ".join(said.replace("│", " ").split())


def with_stages(finished: Path, out: Path, *names: str) -> Path:
    """A run folder in which these stages are complete."""
    for name in names:
        shutil.copytree(finished / name, out / name)
    return out

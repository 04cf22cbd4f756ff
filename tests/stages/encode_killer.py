"""Encode clips and die in the middle of writing, one run after the other.

python -m tests.stages.encode_killer MOMENT[,MOMENT...] CLIPS OUT

Every run is a process of its own, forked from one that has imported what it needs and opened nothing; it is
killed in the middle of the MOMENT-th member that it writes.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from cosmos_distill.data import encoding
from cosmos_distill.run.runner import run_recipe
from cosmos_distill.stages import encode
from tests.stages.encode_recipes import recipe


def dies_at(moment: int) -> None:
    """Let half of a member be written, and end without a word."""
    written, write = [0], encoding._member

    def half(file: Any, name: str, content: bytes) -> int:
        written[0] += 1
        if written[0] == moment:
            file.write(content[: len(content) // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, name, content)

    encoding._member = half


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert encode.FOLDER
    for word in sys.argv[1].split(","):
        child = os.fork()
        if child == 0:
            dies_at(int(word))
            run_recipe(recipe(Path(sys.argv[2]), "edge", clips_per_shard=4), Path(sys.argv[3]))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

"""The real command under torchrun, with one rank that fails, once.

python faulty.py METHOD STEP RANK {raise,sleep,SIGTERM,SIGKILL} RECIPE.py [options]
"""

import os
import signal
import sys
import time
from typing import Any


def main(method: str, step: str, rank: str, what: str, *args: str) -> int:
    from cosmos_distill import cli
    from cosmos_distill.methods.dmd2 import DMD2Method
    from cosmos_distill.methods.kd import KDMethod

    kind: Any = {"kd": KDMethod, "dmd2": DMD2Method}[method]
    losses = kind.losses

    def faulty(self: Any, batch: Any, at: int, noise: Any) -> Any:
        if at == int(step):
            kind.losses = losses
            if what == "raise":
                raise ArithmeticError("the faulty rank's own words")
            if what == "sleep":
                print("asleep", flush=True)
                time.sleep(600)
            os.kill(os.getpid(), getattr(signal, what))
        return losses(self, batch, at, noise)

    if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        kind.losses = faulty
    return cli.main(args)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))

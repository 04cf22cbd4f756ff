"""The real command with cheaper statistics: fewer resamples and real clips behind an evaluation's scores.

python quick.py RECIPE.py [options]
"""

from cosmos_distill import cli
from cosmos_distill.eval import scores
from cosmos_distill.stages import evaluate

CONSTANTS = ((evaluate, "REFERENCE_CLIPS", (32, 64)), (scores, "REPLICAS", 20))
"""What a score is, how it is computed and where it goes is the same; tests of statistics have their own."""


def quicken() -> None:
    """Of this process, from here on."""
    for module, name, value in CONSTANTS:
        assert hasattr(module, name)
        setattr(module, name, value)


if __name__ == "__main__":
    quicken()
    raise SystemExit(cli.main())

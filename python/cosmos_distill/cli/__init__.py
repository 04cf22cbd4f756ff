"""The command line: ``cosmos-distill RECIPE.py [options]`` and a few words besides.

A recipe is a Python file with one function, ``recipe(...) -> Recipe``. Its own arguments are options
(``--scale 7b``), and so is every number of the Recipe it returns (``--stages.kd.trainer.max-steps 10``).
Nothing here imports torch before a run starts, so that ``--help`` answers at once.
"""

from cosmos_distill.cli.commands import main
from cosmos_distill.cli.ending import FAILED, INTERRUPTED, OK, REFUSED
from cosmos_distill.cli.parsing import Invocation, parse
from cosmos_distill.cli.recipe_file import load

__all__ = ["FAILED", "INTERRUPTED", "OK", "REFUSED", "Invocation", "load", "main", "parse"]

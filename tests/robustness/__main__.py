"""What the command line survives, tried for real.

python -m tests.robustness --kills 200 [--recipe predict25] [--record FILE] [--work FOLDER]
python -m tests.robustness --inputs [NAME ...]
python -m tests.robustness --tables
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks.options import new_file


def main() -> int:
    """Prints a table; the status is 1 if a run differed or an input was taken wrongly."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=0, help="SIGKILLs, shared evenly by the recipes")
    parser.add_argument("--recipe", choices=("transfer1", "predict25"), help="this one alone")
    parser.add_argument("--record", type=new_file, help="JSON file to write, or to go on with")
    parser.add_argument("--work", type=Path, help="folder for the runs; a temporary one if left out")
    parser.add_argument(
        "--tables", action="store_true", help="put the records' tables into docs/robustness.md"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument(
        "--inputs", nargs="*", metavar="NAME", help="bad inputs: all, or those whose names begin so"
    )
    asked = parser.parse_args()
    if asked.tables:
        from tests.robustness import document

        document.PAGE.write_text(document.page(document.PAGE.read_text()))
    elif not asked.kills and asked.inputs is None:
        parser.error("ask for --kills N, --inputs or --tables")
    with tempfile.TemporaryDirectory() as temporary:
        work = (asked.work or Path(temporary)).absolute()
        work.mkdir(parents=True, exist_ok=True)
        wrong = 0
        if asked.kills:
            wrong += _kills(asked, work)
        if asked.inputs is not None:
            from tests.robustness import inputs

            wrong += inputs.main(asked.inputs, work / "inputs", asked.record)
    return 1 if wrong else 0


def _kills(asked: argparse.Namespace, work: Path) -> int:
    from tests.robustness import kills

    recipes = [asked.recipe] if asked.recipe else list(kills.RECIPES)
    path = asked.record or work / "kills.json"
    for i, recipe in enumerate(recipes):
        share = asked.kills // len(recipes) + (i < asked.kills % len(recipes))
        kills.record(recipe, share, work, path, asked.seed)
    found = json.loads(path.read_text())
    print(kills.table(found))
    return sum(not one["equal"] for mine in found.values() for one in mine["runs"])


if __name__ == "__main__":
    sys.exit(main())

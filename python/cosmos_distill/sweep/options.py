"""Options of ``cosmos-distill sweep``. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cosmos_distill.ranges import Checked, Range


@dataclass(frozen=True)
class SweepOptions(Checked):
    """Run a recipe under many settings and compare the students on held-out clips.

    Runs share the stages that do not differ and go on where they were; settings that are clearly behind are
    left out of later rounds. All other options are the recipe's own, the same for every run.
    """

    vary: tuple[str, ...] = ()
    """OPTION=VALUE,VALUE,... of the recipe, e.g. stages.dmd2.method.student.lr=1e-5,3e-5,1e-4; may be given
    several times, for all combinations. With --random also OPTION=LOW..HIGH, drawn evenly, of positive
    numbers more than a factor of ten apart on a logarithmic scale."""
    seeds: Annotated[int, Range(1, 100)] = 1
    """Training seeds of every setting: the recipe's own and those that follow it."""
    random: Annotated[int, Range(1, 10_000)] | None = None
    """Draw so many settings at random instead of running all combinations."""
    rungs: str = "1"
    """Successive halving: 4,2,1 trains every setting for a quarter of its steps, the better half of them for
    half and the better half of those for all, each from the start."""
    jobs: Annotated[int, Range(1, 1024)] = 1
    """Runs at a time, which share the cores."""
    metric: str = "mmd"
    """What settings are compared by: a metric of the reference's page."""
    who: str = "student"
    """Whose score: a column of the report."""
    out: Path | None = None
    """Folder of the sweep; runs/<recipe file's name>/sweep if left out."""
    dry_run: bool = False
    """Print the settings and what each would run; do nothing."""
    traceback: bool = False
    """Show the Python traceback of an error."""

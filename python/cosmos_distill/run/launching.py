"""``cosmos-distill launch``: the script that starts a recipe on several machines."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cosmos_distill import storage
from cosmos_distill.config import Recipe
from cosmos_distill.errors import Refusal
from cosmos_distill.launch.layout import problems
from cosmos_distill.launch.options import LaunchOptions
from cosmos_distill.launch.scripts import script
from cosmos_distill.run.folder import blocked


def write(recipe: Recipe, options: LaunchOptions, args: Sequence[str], name: str) -> None:
    """Write the script, or print it.

    Args:
        args: What follows ``cosmos-distill`` to run the recipe.
        name: Of the job.

    Raises:
        Refusal: the recipe's layout does not suit so many GPUs, or the file cannot be written.
    """
    ranks = options.nodes * options.gpus_per_node
    if wrong := list(problems(recipe, ranks, args)):
        raise Refusal(
            f"{options.nodes} machines of {options.gpus_per_node} GPUs cannot run this:\n" + "\n".join(wrong)
        )
    text = script(options, args, recipe.parallel, name)
    if options.write is None:
        print(text, end="")
        return
    path = options.write
    if reason := blocked(path.parent):
        raise Refusal(f"--write {path} cannot be written: its folder {reason}: choose another file")
    if not path.parent.is_dir() or path.is_dir():
        raise Refusal(f"--write {path} cannot be written: name a file in a folder that there is")
    if os.path.lexists(path) and not options.overwrite:
        raise Refusal(f"--write {path} exists already: choose another file, or --overwrite")
    storage.publish(path, text)
    start = {"slurm": f"sbatch {path}", "k8s": f"kubectl apply -f {path}"}
    print(start.get(options.via, f"MASTER_ADDR=... bash {path}, on each of {options.nodes} machines"))

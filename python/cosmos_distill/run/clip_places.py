"""Whether clips are where they are said to be, with what belongs to them. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from cosmos_distill.config import Data, Recipe
from cosmos_distill.config.data import OUT_OF_DOMAIN
from cosmos_distill.data.shard_lists import is_pattern, names_shards
from cosmos_distill.members import address
from cosmos_distill.run import control_checks


def problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the places of a recipe's clips, one by one."""
    data = recipe.data
    for part in data.parts():
        yield from _folder(part.data, recipe, "--data.sources" if part.name else "--data.root")
    yield from control_checks.models(recipe)
    for split, place in (("eval", "held_out"), (OUT_OF_DOMAIN, "out_of_domain")):
        if getattr(data, place) is not None:
            for part in data.places(split)[0]:
                yield from _folder(part.data, recipe, f"--data.{place.replace('_', '-')}")
    noisy = [part.name for part in data.parts() if part.data.saved_noise]
    if noisy and not data.saved_noise:
        yield (
            f"--data.sources: {', '.join(noisy)} has saved noise, and others have none: clips of a teacher "
            "are mixed with their like only."
        )


def _folder(data: Data, recipe: Recipe, named: str) -> Iterator[str]:
    """Whether a place of clips is there, with the controls; of shards in a store that comes later."""
    root = data.root
    if root is None:
        if data.source == "folder":
            yield "there are no clips to train on: give the folder that holds videos/ with --data.root."
        elif data.source == "shards":
            yield "there are no clips to train on: give the folder of the shards with --data.root."
    elif data.source == "shards":
        if address(root) is None and not root.exists() and not is_pattern(root):
            yield f"{named} {root}: no such folder, shard or pattern."
    elif not root.is_dir():
        shards = " Shards are read with --data.source shards." if names_shards(root) else ""
        yield f"{named} {root}: no such folder.{shards}"
    elif data.source == "folder" and not (root / "videos").exists() and next(root.glob("**/*.tar"), None):
        yield f"{named} {root} holds no videos/, but shards: read them with --data.source shards."
    yield from control_checks.videos(data, recipe)

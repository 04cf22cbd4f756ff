"""What a recipe has to fulfil to encode clips, or to read encoded ones. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cosmos_distill.config import Data, Encode, Evaluate, Generate, Recipe, Train
from cosmos_distill.data.encoded_files import Encoded, is_encoded
from cosmos_distill.data.errors import DataError
from cosmos_distill.run.sizes import trains_tokenizer


def reads_encoded(data: Data) -> bool:
    """Whether clips have been encoded before."""
    try:
        return data.source == "shards" and data.root is not None and is_encoded(data.root)
    except DataError:  # a store that cannot be asked, which is said when it is opened
        return False


def shaped(data: Data) -> Data:
    """The data with the shapes that its clips were encoded in."""
    if not reads_encoded(data):
        return data
    assert data.root is not None
    try:
        buckets = Encoded(data.root).buckets
    except DataError:  # said when it is opened
        return data
    return replace(data, buckets=None if buckets is None else tuple(buckets))


def problems(recipe: Recipe) -> Iterator[str]:
    """Why clips cannot be encoded, each with what to do about it."""
    data = recipe.data
    if data.sources and any(reads_encoded(part.data) for part in data.parts()):
        yield "--data.sources: encoded clips are not mixed: mix the clips themselves, or train on one."
    if (data.held_out or data.out_of_domain) and reads_encoded(data):
        yield (
            "--data.held-out and --data.out-of-domain: encoded clips have their held-out ones among them: "
            "leave them out."
        )
    names = [name for name, stage in recipe.stages.items() if isinstance(stage, Encode)]
    if not names:
        return
    if data.out_of_domain is not None:
        for name, stage in recipe.stages.items():
            if isinstance(stage, Evaluate) and stage.clips_from is not None:
                yield (
                    f"'{name}' reads the clips of '{stage.clips_from}', and --data.out-of-domain "
                    f"{data.out_of_domain} is not encoded: leave one of the two out."
                )
    for name, stage in recipe.stages.items():
        if isinstance(stage, Generate) and stage.clips_from is not None and data.buckets is not None:
            yield (
                f"'{name}' draws clips of one shape, and '{stage.clips_from}' encodes those to train on in "
                "the shapes of --data.buckets: draw from the clips themselves, or leave the shapes out."
            )
    if not data.own:
        yield (
            f"'{names[0]}' encodes files: the clips of --data.source {data.source} come with a package and "
            "are encoded in no time. Give your own with --data.source folder --data.root DIR."
        )
    elif trains_tokenizer(recipe):
        yield f"'{names[0]}': this recipe trains a tokenizer, on pixels: leave that stage out."
    elif data.saved_noise:
        yield (
            f"'{names[0]}': {data.root} has saved noise, whose clips are pairs: train on them as they are, "
            "or take noise/ away."
        )
    elif reads_encoded(data):
        yield f"'{names[0]}': the clips in {data.root} are encoded already: leave that stage out."


def needs_tokenizer(recipe: Recipe) -> str | None:
    """None where the recipe can do without the tokenizer; else what else could be done, perhaps nothing."""
    if not reads_encoded(recipe.data):
        return ""
    if any(isinstance(stage, Evaluate) for stage in recipe.stages.values()):
        return ", which scores look through (training on encoded clips needs none)"
    if any(isinstance(s, Train) and s.trainer.sample_every > 0 for s in recipe.stages.values()):
        return ", or train on encoded clips without pictures: --trainer.sample-every 0"
    assert recipe.data.root is not None
    try:
        drawn = bool(Encoded(recipe.data.root).said["drawn_control"])
    except DataError:  # said when it is opened
        drawn = False
    return ": the controls of these clips are drawn from pixels" if drawn else None

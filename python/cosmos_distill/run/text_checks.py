"""Whether what the clips are told can be encoded: asked of headers, so that a wrong folder costs nothing.
Torch-free."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from cosmos_distill import text
from cosmos_distill.config import Recipe
from cosmos_distill.data import captions
from cosmos_distill.families import title
from cosmos_distill.run.sizes import denoiser


def problems(recipe: Recipe) -> Iterator[str]:
    """Why captions cannot become what the network reads, each with what to do about it."""
    data, network, folder = recipe.data, denoiser(recipe), recipe.data.text_encoder
    known = None if network is None else network.family.text
    if not data.own:
        if folder is not None:
            yield (
                f"--data.text-encoder {folder}: the clips of --data.source {data.source} have prompts "
                "that need none: leave it out."
            )
        return
    if folder is None:
        own = data.text_folder or "t5_xxl"
        roots = [part.data.root for part in data.parts() if part.data.source == "folder" and part.data.root]
        for root in (root for root in roots if captions.there(root) and not (root / own).is_dir()):
            yield (
                f"--data.root {root} has captions and no embeddings ({own}/): give the folder of "
                f"{'their text encoder' if known is None else known.name} with --data.text-encoder, and they "
                "are encoded once."
            )
        return
    try:
        kind, channels = text.kind_of(folder), text.channels(folder)
        text.files(folder)
    except (OSError, ValueError) as error:
        yield f"--data.text-encoder: {error}."
        return
    if known is not None and known.kind not in (None, kind):
        yield (
            f"--data.text-encoder {folder} is of the kind {kind}, and {title(recipe.network)} reads "
            f"embeddings of {known.name}, of the kind {known.kind}: give its folder."
        )
    elif network is not None and channels != network.text_channels:
        yield (
            f"--data.text-encoder {folder} gives embeddings of {channels:,} channels, and "
            f"{title(recipe.network)} takes {network.text_channels:,}: give the encoder that its teacher was "
            "trained with."
        )
    if importlib.util.find_spec("transformers") is None:
        yield "--data.text-encoder needs transformers: pip install 'cosmos-distill[text]'."

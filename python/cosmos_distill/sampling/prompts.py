"""What ``cosmos-distill sample`` tells the network: prompts and negative prompt, as embeddings from files or
by the text encoder that the user names."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cosmos_distill import text
from cosmos_distill.data import embeddings
from cosmos_distill.data.caption_files import decoded
from cosmos_distill.data.captions import negative_prompt
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.text import HashTextEncoder, load_embedding
from cosmos_distill.errors import Refusal
from cosmos_distill.families import title
from cosmos_distill.files import regular, sha256
from cosmos_distill.models.common.projection import TextProjection
from cosmos_distill.run.networks import device
from cosmos_distill.sampling.exported import Exported, ManySteps

if TYPE_CHECKING:
    from torch import Tensor

    from cosmos_distill.sampling.options import SampleOptions

_LARGEST = 2**24
"""Bytes of a file of prompts."""


@dataclass(frozen=True)
class Told:
    """Prompts and negative prompt as the network takes them."""

    texts: Tensor | None
    """Of clip 0, 1, 2, ..., again from the first after the last, fp32 [P, tokens, channels]; None: the user
    names none."""
    negative: Tensor | None
    """fp32 [tokens, channels]; None: the data's own, or zeros."""


def told(
    exported: Exported, options: SampleOptions, student: Path, own: tuple[Path, ...] | None = None
) -> Told:
    """What the user's options say, encoded; the encoder is out of memory then.

    Args:
        own: The files of the student's weights; None: the one that is its own.

    Raises:
        Refusal: something is missing, cannot be used, or is of another encoder than the student's.
    """
    prompts, against = _prompts(options), _against(exported, options, student)
    if options.text_encoder is not None and not exported.data.own:
        raise Refusal(
            f"--text-encoder {options.text_encoder}: the prompts of {student} need none: leave it out"
        )
    to_encode = [*prompts, *([against] if isinstance(against, str) else [])]
    encode = _encoder(exported, options, student, to_encode)
    tokens, channels = exported.network.text_tokens, exported.network.text_channels
    try:
        texts = [encode(prompt) for prompt in prompts]
        negative = encode(against) if isinstance(against, str) else None
    except (DataError, OSError, ValueError) as error:
        raise Refusal(f"a prompt cannot be encoded: {error}") from error
    finally:
        del encode
        gc.collect()
        if device().type == "cuda":
            torch.cuda.empty_cache()
    if options.prompt_embedding is not None:
        texts = [torch.from_numpy(load_embedding(options.prompt_embedding, tokens, channels))]
    if isinstance(against, Path):
        try:
            negative = torch.from_numpy(load_embedding(against, tokens, channels))
        except DataError as error:
            embedding = options.negative_prompt is None
            raise Refusal(f"--negative-prompt{'-embedding' * embedding}: {error}") from error
    if not texts:
        return Told(None, negative)
    if channels != exported.network.text_dim and not options.data_root:
        # A hundred wide prompts would fill a machine.
        projection = TextProjection(own or (student,))
        nothing = torch.zeros(tokens, channels) if negative is None else negative
        return Told(torch.stack([projection(one) for one in texts]), projection(nothing))
    return Told(torch.stack(texts), negative)


def _prompts(options: SampleOptions) -> list[str]:
    given = (options.prompts, options.prompt, options.prompt_embedding)
    if sum(value is not None for value in given) > 1:
        raise Refusal("--prompts, --prompt and --prompt-embedding exclude each other: give one")
    if options.prompts is None:
        return [] if options.prompt is None else [options.prompt]
    path = options.prompts
    try:
        if regular(path) > _LARGEST:
            raise ValueError(f"{path} is too large for prompts")
        lines = [line.strip() for line in decoded(path.read_bytes(), str(path)).splitlines()]
    except (OSError, ValueError, DataError) as error:
        raise Refusal(f"--prompts: {error}") from error
    if not any(lines):
        raise Refusal(f"--prompts {path} holds no prompt: write one in each line")
    return [line for line in lines if line]


def _against(exported: Exported, options: SampleOptions, student: Path) -> Path | str | None:
    """The negative prompt: an embedding's file, a text, or none.

    Raises:
        Refusal: it is needed and not given, not read at all, or another one than the file's.
    """
    given, wanted = options.negative_prompt_embedding, exported.negative_prompt_sha256
    option, found = "--negative-prompt-embedding", Path(given) if given is not None else None
    against: Path | str | None = found
    if options.negative_prompt is not None:
        if given is not None:
            raise Refusal("--negative-prompt and --negative-prompt-embedding exclude each other: give one")
        try:
            option, against = "--negative-prompt", negative_prompt(options.negative_prompt)
        except DataError as error:
            raise Refusal(f"--negative-prompt: {error}") from error
    guided = isinstance(exported.sampler, ManySteps)
    if against is not None and not guided:
        raise Refusal(
            f"{option} {str(against)[:60]}: {student} is sampled without guidance, which alone "
            "reads one: leave it out"
        )
    if isinstance(against, Path) and wanted:
        try:
            has = sha256(against)
        except (OSError, ValueError) as error:
            raise Refusal(f"{option}: {error}") from error
        if has != wanted:
            raise Refusal(
                f"{option} {against} is another one ({has[:12]}...) than {student} was made with "
                f"({wanted[:12]}...)"
            )
    if against is not None or options.negative_prompt is not None:
        return against
    if isinstance(exported.sampler, ManySteps) and exported.sampler.guidance.as_added().scale:
        if wanted is not None:
            raise Refusal(
                f"{student} is guided away from a negative prompt: give its embedding with "
                "--negative-prompt-embedding"
            )
        return exported.negative_prompt
    return None


def _encoder(
    exported: Exported, options: SampleOptions, student: Path, prompts: Sequence[str]
) -> Callable[[str], Tensor]:
    """How a prompt becomes fp32 [tokens, channels] on the CPU."""
    network, folder = exported.network, options.text_encoder
    if not exported.data.own:
        words = HashTextEncoder(network.text_tokens, network.text_channels)
        return lambda prompt: torch.from_numpy(words(prompt))
    known = network.family.text
    name = "its text encoder" if known is None else known.name
    if folder is None:
        if prompts:
            raise Refusal(
                f"the prompt {prompts[0][:60]!r} has to be encoded: give the folder of {name} with "
                "--text-encoder, or the prompt's embedding with --prompt-embedding"
            )
        return lambda prompt: torch.empty(0)
    try:
        kind = None if known is None else known.kind
        if why := text.unsuited(folder, title(network), name, kind, network.text_channels):
            raise ValueError(why)
        wanted = exported.text_encoder_sha256
        found = embeddings.fingerprint(folder) if wanted else {}
        if changed := [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]:
            raise ValueError(
                f"{folder} is another text encoder than {student} was made with ({', '.join(changed[:3])}): "
                "give the one of its training"
            )
        if not prompts:
            if options.data_root is None:
                raise ValueError(f"{folder} has nothing to encode: give --prompt, or leave it out")
            return lambda prompt: torch.empty(0)
        encoder = text.build(folder, device(), tokens=network.text_tokens)
    except (OSError, ValueError, ImportError) as error:
        raise Refusal(f"--text-encoder: {error}") from error
    return lambda prompt: encoder([prompt])[0].float().cpu()

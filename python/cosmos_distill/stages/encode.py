"""Encode stage: clips, controls and prompts as latents and embeddings, in shards read in their place.

All ranks write: shard after shard, each in turn takes the next one that is missing. A shard holds the clips
that the plan gives it, which is written when the stage begins, so that neither the number of ranks, nor an
interruption, nor clips that are added meanwhile change what is in it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cosmos_distill import __version__
from cosmos_distill.config import EDM, Encode
from cosmos_distill.data.encoded_files import FORMAT, MANIFEST, NEGATIVE, asked_of, shard_name
from cosmos_distill.data.encoding import ShardWriter, is_whole, pixels, prepared, tensors
from cosmos_distill.data.errors import DataError, NothingLeft
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.errors import Refusal
from cosmos_distill.files import finite, printable, read_json, sha256
from cosmos_distill.launch import ranks
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.parallel.environment import launch
from cosmos_distill.run import inputs
from cosmos_distill.run.manifest import Shards, sha256_of_listing
from cosmos_distill.run.networks import open_clips
from cosmos_distill.run.progress import Log, Work, work
from cosmos_distill.run.runner import Run
from cosmos_distill.storage import publish, publish_json

if TYPE_CHECKING:
    from cosmos_distill.data.clip_source import Decoded

PLAN = "plan.json"
FOLDER = "shards"
_ROUND = 4
"""Clips that a rank encodes between two moments at which all may stop together."""
_EVERY = 60.0
"""Seconds between two lines about progress where there is no terminal."""
_SHOWN = 10


def run(name: str, stage: Encode, run: Run, folder: Path) -> Shards:
    """Encode what is missing of the clips of both splits; a whole clip is kept, whatever happens."""
    # Latents are stored as the tokenizer gives them; readers scale them for their own schedule.
    recipe = dataclasses.replace(run.recipe, schedule=EDM(sigma_data=1.0))
    sources = {split: source for split in ("train", "eval") if (source := _open(recipe, split)) is not None}
    out, size = folder / FOLDER, stage.clips_per_shard
    plan = on_rank_zero(lambda: _plan(folder, prepared(out), next(iter(sources.values()))))
    shards = [plan[first : first + size] for first in range(0, len(plan), size)]
    missing = on_rank_zero(
        lambda: [n for n, clips in enumerate(shards) if not is_whole(out, n, n * size, len(clips))]
    )
    shares = [missing[rank :: ranks.world()] for rank in range(ranks.world())]
    lengths = [sum(len(shards[number]) for number in share) for share in shares]
    kept = "whole clips are kept, the same command encodes the rest"
    with work(run.console, name, sum(lengths), run.stop, kept) as bar:
        encoded = _encoded(stage, sources, out, {n: shards[n] for n in shares[launch().rank]}, size)
        said = _Said(run, Log(folder), sum(lengths), bar)
        for _ in range(-(-max(lengths) // _ROUND)):
            for _ in range(_ROUND):
                if next(encoded, None) is None:
                    break
                said.one_more()
            bar.together()
        for _ in encoded:  # the last shard is published behind its last clip
            pass
        bar.together()
    run.details["data"] = {split: source.description() for split, source in sources.items()}
    return on_rank_zero(lambda: _publish(stage, run, out, sources, len(shards)))


def _open(recipe: Any, split: Any) -> FolderSource | None:
    """The clips of one split; None where there are none to hold out.

    Raises:
        Refusal: they are no files of the user's.
    """
    try:
        source = open_clips(recipe, split)
    except DataError:
        if split == "train":
            raise
        return None
    if not isinstance(source, FolderSource):
        raise Refusal(
            f"encode: the clips of {recipe.data.source} are encoded already, or come with a package"
        )
    return source


def _plan(folder: Path, shards: Path, source: FolderSource) -> list[tuple[str, str]]:
    """Clips and their splits in the order of the shards: those of the beginning, whatever came later."""
    path = folder / PLAN
    if path.exists() and any(shards.iterdir()):
        try:
            return [(str(name), str(split)) for name, split in read_json(path)]
        except (OSError, ValueError, TypeError) as error:
            raise Refusal(f"{path} is damaged ({error}): delete {folder} to encode anew") from error
    found = source.splits()
    publish_json(path, [list(item) for item in found.items()], indent=0)
    return list(found.items())


def _encoded(
    stage: Encode,
    sources: dict[str, FolderSource],
    out: Path,
    shards: dict[int, Sequence[tuple[str, str]]],
    size: int,
) -> Iterator[str]:
    """Encode shards; gives the name of every clip when it is on disk. The next clip is decoded meanwhile."""

    def decoded(clip: str, split: str) -> list[Decoded] | DataError:
        try:
            source = sources[split]
            return source.variants(
                clip, _variants(stage, split), drawn=stage.control == "latents" or not source.computes_control
            )
        except NothingLeft as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        for number, clips in shards.items():
            writer = ShardWriter(out, number, number * size, len(clips))
            done = writer.done
            yield from (clip for clip, _ in clips[:done])
            usable = [c for c in clips[done:] if c[1] in sources and sources[c[1]].reason(c[0]) is None]
            ahead = {clip: pool.submit(decoded, clip, split) for clip, split in usable[:1]}
            for clip, split in clips[done:]:
                found: list[Decoded] | DataError
                if clip in ahead:
                    found = ahead.pop(clip).result()
                    following = usable[usable.index((clip, split)) + 1 :][:1]
                    ahead |= {after: pool.submit(decoded, after, of) for after, of in following}
                else:
                    reason = sources[split].reason(clip) if split in sources else None
                    found = DataError(reason or "there is nothing to hold out")
                if isinstance(found, DataError):
                    writer.append({}, {"name": clip, "split": split, "skipped": str(found)})
                else:
                    parts = _parts(stage, sources[split], split, found)
                    windows = [sample.name for sample in found]
                    made_of = sources[split].hashes(clip)
                    writer.append(
                        parts, {"name": clip, "split": split, "windows": windows, "inputs": made_of}
                    )
                yield clip
            writer.publish()


def _variants(stage: Encode, split: str) -> int:
    return stage.variants if split == "train" else stage.held_out_variants


def _parts(stage: Encode, source: FolderSource, split: str, samples: Sequence[Decoded]) -> dict[str, bytes]:
    """The members of one clip, by what stands behind the dot of their names."""
    drawn = stage.control == "drawn" and split == "train" and source.computes_control
    keep = drawn or (stage.pixels == "held_out" and split == "eval")
    parts: dict[str, bytes] = {}
    for begin in range(0, len(samples), stage.batch):
        chunk = samples[begin : begin + stage.batch]
        told = [dataclasses.replace(one, controls=()) for one in chunk] if drawn else chunk
        rows = source.encoded(begin, told).tensors()
        for row, sample in enumerate(chunk):
            number = begin + row
            values = {key: value[row] for key, value in rows.items() if key not in ("text", "negative_text")}
            if stage.precision == "bf16":
                values |= {key: values[key].bfloat16() for key in ("latents", "hint") if key in values}
            parts[f"v{number}.safetensors"] = tensors(values)
            if keep:
                parts[f"v{number}.mkv"] = pixels(sample.video)
            if keep and sample.controls and not drawn:
                control = sample.controls[0].of(sample.video, source.data.control_models)
                parts[f"v{number}.control.mkv"] = pixels(control)
    parts["text.safetensors"] = tensors({"text": _without_end(torch.from_numpy(samples[0].text))})
    return parts


def _without_end(text: torch.Tensor) -> torch.Tensor:
    """An embedding [tokens, channels] without the zeros behind the prompt; one token at least."""
    said = text.ne(0).any(1).nonzero()
    return text[: int(said[-1]) + 1 if len(said) else 1].clone()


class _Said:
    """Progress of all ranks: the bar, a log, and a line now and then where there is no terminal."""

    def __init__(self, run: Run, log: Log, total: int, bar: Work) -> None:
        self._run, self._log, self._total, self._bar = run, log, total, bar
        self._done, self._begin = 0, time.monotonic()
        self._last = self._begin

    def one_more(self) -> None:
        """Count a clip of this rank, and as many of the others."""
        self._done = min(self._total, self._done + ranks.world())
        now = time.monotonic()
        left = (now - self._begin) / self._done * (self._total - self._done)
        self._log.line(clips=self._done, of=self._total, seconds_left=round(left, 1))
        if now - self._last > _EVERY and not self._run.console.is_terminal:
            self._run.console.print(f"{self._done} of {self._total} clips, {left / 60:,.0f} minutes left")
            self._last = now
        self._bar.advance(ranks.world())


def _publish(stage: Encode, run: Run, out: Path, sources: dict[str, FolderSource], count: int) -> Shards:
    """Write what all shards together are; and say what was skipped."""
    source = next(iter(sources.values()))
    publish(out / NEGATIVE, tensors({"text": _without_end(source.negative)}))
    shards: list[dict[str, Any]] = []
    used = source.splits()
    skipped = {name: why for name, why in source.skipped.items() if name not in used}
    left_out, windows = dict(skipped), 0
    for number in range(count):
        index = read_json(out / f"{shard_name(number)}.json")
        clips = index["clips"]
        left_out |= {clip["name"]: clip["skipped"] for clip in clips if "skipped" in clip}
        windows += sum(len(clip["windows"]) for clip in clips if "windows" in clip)
        shards.append({"name": shard_name(number), "clips": len(clips), "sha256": index["sha256"]})
    found, _ = inputs.fingerprints(run.recipe, stage)
    negative = sha256(out / NEGATIVE)
    total = sum(shard["clips"] for shard in shards)
    document = {
        "format": FORMAT,
        "made": asked_of(run.recipe.data, run.recipe.control) | {"cuts": run.recipe.data.cuts},
        "seed": run.recipe.seed,
        "version": __version__,
        "inputs": found,
        "text": source.description().get("text"),
        "latent_shape": list(source.latent_shape),
        "text_tokens": source.text_shape[0],
        "text_channels": source.text_shape[1],
        "drawn_control": stage.control == "drawn" and source.computes_control,
        "windows": windows,
        "skipped": skipped,
        "negative_sha256": negative,
        "shards": shards,
    }
    publish_json(out / MANIFEST, finite(document), indent=1)
    run.details["skipped"] = [f"{name}: {why}" for name, why in left_out.items()]
    run.console.print(f"{total - len(left_out) + len(skipped)} clips, {windows} windows in {out}")
    for clip, why in list(left_out.items())[:_SHOWN]:
        run.console.print(f"skipped {printable(clip)}: {printable(why)}", markup=False, highlight=False)
    if (more := len(left_out) - _SHOWN) > 0:
        run.console.print(f"and {more} more, named in {out.parent / 'manifest.json'}")
    run.console.print(f"train on them with --data.source shards --data.root {out}", soft_wrap=True)
    listing = [f"{NEGATIVE} {negative}", *(f"{shard['name']} {shard['sha256']}" for shard in shards)]
    digest = sha256_of_listing(listing)
    return Shards(out.relative_to(run.out).as_posix(), total, digest)

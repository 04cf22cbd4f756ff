"""Encode stage: clips, controls and prompts as latents and embeddings, in shards read in their place.

All ranks write: shard after shard, each in turn takes the next one that is missing. A shard holds the clips
that the plan gives it, which is written when the stage begins, so that neither the number of ranks, nor an
interruption, nor clips that are added meanwhile change what is in it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cosmos_distill import __version__
from cosmos_distill.config import EDM, Data, Encode, Recipe
from cosmos_distill.data.clips import Split
from cosmos_distill.data.encoded_files import FORMAT, MANIFEST, NEGATIVE, made_for, shape_name, shard_name
from cosmos_distill.data.encoding import ShardWriter, is_whole, pixels, prepared, tensors
from cosmos_distill.data.errors import DataError, NothingLeft
from cosmos_distill.data.folder import FolderSource
from cosmos_distill.data.selection import Item, Selection, shape_in
from cosmos_distill.errors import Refusal
from cosmos_distill.files import finite, printable, read_json, sha256
from cosmos_distill.launch import ranks
from cosmos_distill.parallel.agreement import on_rank_zero
from cosmos_distill.parallel.environment import launch
from cosmos_distill.run import inputs
from cosmos_distill.run.manifest import Shards, sha256_of_listing
from cosmos_distill.run.networks import in_threads, open_clips
from cosmos_distill.run.progress import Log, Work, work
from cosmos_distill.run.runner import Run
from cosmos_distill.storage import publish, publish_json

if TYPE_CHECKING:
    from cosmos_distill.data.clip_source import Decoded
    from cosmos_distill.data.sources import Source

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
    chosen = _selection(recipe.data, sources)
    out, size = folder / FOLDER, stage.clips_per_shard
    plan = on_rank_zero(lambda: _plan(folder, prepared(out), chosen))
    shards = [plan[first : first + size] for first in range(0, len(plan), size)]
    missing = on_rank_zero(
        lambda: [n for n, clips in enumerate(shards) if not is_whole(out, n, n * size, len(clips))]
    )
    shares = [missing[rank :: ranks.world()] for rank in range(ranks.world())]
    lengths = [sum(len(shards[number]) for number in share) for share in shares]
    kept = "whole clips are kept, the same command encodes the rest"
    with work(run.console, name, sum(lengths), run.stop, kept) as bar:
        encoded = _encoded(stage, chosen, out, {n: shards[n] for n in shares[launch().rank]}, size)
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
    return on_rank_zero(lambda: _publish(stage, run, out, chosen, len(shards)))


def _open(recipe: Recipe, split: Split) -> Source | None:
    """The clips of one split, in all of their shapes; None where there are none to hold out."""
    shaped = split == "train" and recipe.data.buckets is not None
    try:
        return open_clips(recipe, split, 1 if shaped else None)
    except DataError:
        if split == "train" or recipe.data.held_out is not None:
            raise
        return None


def _selection(data: Data, sources: Mapping[str, Source]) -> Selection:
    """All clips. Raises Refusal where they are no files of the user's."""
    try:
        found = Selection(data, sources["train"], sources.get("eval"))
    except DataError as error:
        raise Refusal(f"encode: {error}") from error
    if len({source.text_shape for source in found.sources}) > 1:
        raise Refusal(
            "encode: some places of clips have captions, whose embeddings are projected, and others have "
            "embeddings alone, which are not: give all captions, or encode each by itself (--data.root)"
        )
    return found


def _plan(folder: Path, shards: Path, chosen: Selection) -> list[Item]:
    """The clips in the order of the shards: those of the beginning, whatever came later."""
    path = folder / PLAN
    if path.exists() and any(shards.iterdir()):
        try:
            return [Item.of_plain(one) for one in read_json(path)]
        except (OSError, ValueError, TypeError) as error:
            raise Refusal(f"{path} is damaged ({error}): delete {folder} to encode anew") from error
    found = list(chosen.items())
    if len({item.name for item in found}) < len(found):
        raise Refusal("encode: clips of two of --data.sources have one name between them: rename a folder")
    publish_json(path, [item.plain() for item in found], indent=0)
    return found


def _encoded(
    stage: Encode,
    chosen: Selection,
    out: Path,
    shards: dict[int, Sequence[Item]],
    size: int,
) -> Iterator[str]:
    """Encode shards; gives the name of every clip when it is on disk. The next clip is decoded meanwhile."""

    def decoded(item: Item, source: FolderSource) -> list[Decoded] | DataError:
        drawn = stage.control == "latents" or not source.computes_control
        try:
            return source.variants(item.clip, _variants(stage, item.split), drawn=drawn)
        except NothingLeft as error:
            return error

    with ThreadPoolExecutor(1, initializer=in_threads()) as pool:
        for number, items in shards.items():
            writer = ShardWriter(out, number, number * size, len(items))
            done = writer.done
            yield from (item.name for item in items[:done])
            readers = {item: source for item in items[done:] if (source := chosen.source(item)) is not None}
            waiting = iter(readers.items())
            ahead = {item: pool.submit(decoded, item, source) for item, source in islice(waiting, 1)}
            for item in items[done:]:
                found: list[Decoded] | DataError
                if item in ahead:
                    found = ahead.pop(item).result()
                    ahead |= {after: pool.submit(decoded, after, of) for after, of in islice(waiting, 1)}
                else:
                    found = DataError(chosen.reason(item))
                record: dict[str, Any] = {"name": item.name, "split": item.split}
                if item.place:
                    record["place"] = item.place
                if isinstance(found, DataError):
                    writer.append({}, record | {"skipped": str(found)})
                else:
                    source = readers[item]
                    if chosen.several_shapes:
                        record["shape"] = list(shape_in(source.data))
                    record |= {"windows": [one.name for one in found], "inputs": source.hashes(item.clip)}
                    writer.append(_parts(stage, source, item.split, found), record)
                yield item.name
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


def _publish(stage: Encode, run: Run, out: Path, chosen: Selection, count: int) -> Shards:
    """Write what all shards together are; and say what was skipped."""
    source, data = chosen.sources[0], run.recipe.data
    publish(out / NEGATIVE, tensors({"text": _without_end(source.negative)}))
    shards: list[dict[str, Any]] = []
    skipped = chosen.skipped()
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
    texts = [one.description().get("text") or {} for one in chosen.sources]
    document = {
        "format": FORMAT,
        "made": made_for(data, run.recipe.control),
        "seed": run.recipe.seed,
        "version": __version__,
        "inputs": found,
        "text": next((text for text in texts if text.get("encoder")), texts[0]),
        "latent_shape": list(chosen.latent_shape),
        "text_tokens": source.text_shape[0],
        "text_channels": source.text_shape[1],
        "drawn_control": stage.control == "drawn" and source.computes_control,
        "windows": windows,
        "skipped": skipped,
        "negative_sha256": negative,
        "shards": shards,
    }
    if chosen.several_shapes:
        document["latent_shapes"] = {shape_name(s): list(z) for s, z in chosen.shapes().items()}
    if data.sources or data.held_out is not None:
        document["places"] = chosen.places
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

"""Teacher pairs on disk: (noise, teacher clip) with all that the teacher was told, in shards of safetensors.

A shard holds consecutive pairs and is published atomically, so a folder always holds whole shards, which say
what an interrupted generation still has to draw: the rest, and what was damaged or deleted since.
What the pairs depend on (teacher, guidance, steps) is in the manifest of the stage that draws them, which
refuses other settings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from cosmos_distill import tokenizers
from cosmos_distill.arrays.named import digest
from cosmos_distill.config import EDM, Data, TrigFlow
from cosmos_distill.data import keeping
from cosmos_distill.data.batch import Batch
from cosmos_distill.data.conditioning import NEGATIVE
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.keeping import Fault
from cosmos_distill.data.pair_files import shards
from cosmos_distill.files import regular, to_json
from cosmos_distill.randomness import generator
from cosmos_distill.storage import DiskError, publish

REQUIRED = {"noise", "latents", "text"}
"""Tensors that every pair has; whatever else conditions its teacher lies beside them."""
_AGAIN = "delete this file, and the command that drew its pairs draws them again"
CACHE_BYTES = 2 * 2**30
"""Shards kept in memory, at most."""


def _scan(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Whole shards from pair 0 on up to the first gap."""
    found: list[tuple[Path, dict[str, Any]]] = []
    for path, header in shards(folder):
        if header["first"] != (found[-1][1]["first"] + found[-1][1]["count"] if found else 0):
            break
        found.append((path, header))
    return found


def pair_name(pair: int) -> str:
    """What messages call the pair of that number."""
    return f"pair {pair}"


def _stored(value: torch.Tensor) -> torch.Tensor:
    """As it is written: floating point as fp32, whatever the networks compute in."""
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).contiguous()


class PairWriter:
    """Writes the shards that ``folder`` does not have yet, in order.

    Raises DiskError when it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{folder} cannot be made ({error.strerror}): choose another folder") from error
        for leftover in folder.glob(".*.tmp"):  # of a killed run
            leftover.unlink(missing_ok=True)
        self._ends = {h["first"]: h["first"] + h["count"] for _, h in shards(folder)}
        self._done = 0
        self._pass()

    def done(self) -> int:
        """Pairs on disk, in whole shards from pair 0 on."""
        return self._done

    def missing(self, pairs: int, batch: int) -> list[tuple[int, int]]:
        """(first, count) of the shards of ``batch`` pairs that make the folder hold the first ``pairs``."""
        found, end = [], 0
        while end < pairs:
            if end in self._ends:
                end = self._ends[end]
            else:
                found.append((end, min(batch, pairs - end)))
                end += batch
        return found

    def _pass(self) -> None:
        while self._done in self._ends:
            self._done = self._ends[self._done]

    def write(self, batch: Batch) -> Path:
        """Publish ``batch`` as the next shard; its ``first`` must equal :meth:`done`.

        Raises ValueError for a batch without noise or out of order, DataError for a non-finite value,
        DiskError for a disk that is full (no half-written file is left).
        """
        if batch.noise is None:
            raise ValueError("a pair needs the noise that its clip was drawn from (batch.noise is None)")
        if batch.first != self._done:
            raise ValueError(f"expected pairs from {self._done} on, got pairs from {batch.first} on")
        tensors = {name: _stored(value) for name, value in batch.tensors().items()}
        for name, tensor in tensors.items():
            if len(tensor) != len(batch):
                raise ValueError(f"{name} has {len(tensor)} rows, the batch {len(batch)}")
            if not torch.isfinite(tensor).all():
                raise DataError(
                    f"pairs from {batch.first} on: {name} holds NaN or infinity, nothing written: lower the "
                    "guidance with which they are drawn, or mend what they are drawn from"
                )
        for name, value in tensors.items():
            if name.startswith(NEGATIVE) and (value == value[:1]).all():
                tensors[name] = value[:1].clone()  # one row serves all
        path = self.folder / f"pairs-{batch.first:08d}.safetensors"
        metadata = {
            "first": str(batch.first),
            "count": str(len(batch)),
            "sha256": digest(tensors),
            "names": to_json(list(batch.names)),
        }
        publish(path, save(tensors, metadata))
        self._ends[batch.first] = batch.first + len(batch)
        self._pass()
        return path


class PairSource:
    """A :class:`~cosmos_distill.data.sources.Source` over written pairs, shuffled anew in every epoch.

    Each shard's checksum is verified when it is first read. ``pixels`` decodes the stored latents with the
    tokenizer of ``data`` (on ``device``); ``control`` names what the hints are. Raises
    DataError when the folder holds no pairs, or fewer than ``pairs``.
    """

    def __init__(
        self,
        folder: Path,
        data: Data,
        *,
        seed: int,
        control: str | None = None,
        schedule: EDM | TrigFlow | None = None,
        device: torch.device | str = "cpu",
        pairs: int | None = None,
    ) -> None:
        self.folder, self.seed, self.control = folder, seed, control
        self._tokenizer = tokenizers.build(data, device)
        self._sigma_data = (schedule or EDM()).sigma_data
        self._shards = _scan(folder)
        self._starts = [header["first"] for _, header in self._shards]
        found = sum(header["count"] for _, header in self._shards)
        if found == 0 or (pairs is not None and found < pairs):
            raise DataError(f"{folder} holds {found} pairs, not {pairs or 'any'}: run the generate stage")
        self.pairs = found if pairs is None else pairs
        self._cache: OrderedDict[int, dict[str, torch.Tensor]] = OrderedDict()
        self._verified: set[int] = set()
        sample = self._shard(0)
        shape = sample["latents"].shape[1:]
        self.latent_shape = (shape[0], shape[1], shape[2], shape[3])
        self.text_shape = (sample["text"].shape[1], sample["text"].shape[2])
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))
        self._kept = np.arange(self.pairs)
        self._left_out: dict[int, Fault] = {}

    def _shard(self, index: int) -> dict[str, torch.Tensor]:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        path, header = self._shards[index]
        try:
            regular(path)
            tensors = load(path.read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read ({error}): {_AGAIN}") from error
        if index not in self._verified:
            if not set(tensors) >= REQUIRED or digest(tensors) != header["sha256"]:
                raise DataError(f"{path} is corrupt (its checksum differs): {_AGAIN}")
            self._verified.add(index)
        self._cache[index] = tensors
        while len(self._cache) > 1 and sum(self._shards[i][1]["bytes"] for i in self._cache) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return tensors

    def pair(self, index: int) -> int:
        """Which pair on disk sample ``index`` of the stream is."""
        epoch, position = divmod(index, len(self._kept))
        if self._order[0] != epoch:
            order = generator(self.seed, "pairs", epoch).permutation(len(self._kept))
            self._order = epoch, self._kept[order]
        return int(self._order[1][position])

    def shards(self) -> list[tuple[str, int]]:
        """Checksum and number of pairs of every shard, in order."""
        return [(header["sha256"], header["count"]) for _, header in self._shards]

    def latents(self, shard: int) -> torch.Tensor:
        """Clips of all pairs of one shard, at sigma_data scale, [B, C, T, h, w]."""
        return self._shard(shard)["latents"]

    def leave_out(self, faults: Mapping[int, Fault]) -> None:
        """Go without these pairs, by number; called before any is read, with at least one that is left."""
        self._left_out = dict(faults)
        self._kept = np.array([pair for pair in range(self.pairs) if pair not in faults])

    @property
    def skipped(self) -> dict[str, str]:
        """Why pairs are left out, by name."""
        return {pair_name(pair): fault.reason for pair, fault in self._left_out.items()}

    def batch(self, first: int, count: int) -> Batch:
        """Samples first .. first+count-1, as they were written."""
        rows: dict[str, list[torch.Tensor]] = {}
        names: list[str] = []
        for index in range(first, first + count):
            pair = self.pair(index)
            shard = int(np.searchsorted(self._starts, pair, side="right")) - 1
            tensors, row = self._shard(shard), pair - self._starts[shard]
            if rows and rows.keys() != tensors.keys():
                raise DataError(
                    f"{self._shards[shard][0]} holds {', '.join(sorted(tensors))}, and other pairs "
                    f"{', '.join(sorted(rows))}: {_AGAIN}"
                )
            for name, value in tensors.items():
                rows.setdefault(name, []).append(value[row if len(value) > 1 else 0])
            shard_names = self._shards[shard][1]["names"]
            names.append(pair_name(pair) + (f": {shard_names[row]}" if shard_names else ""))
        return Batch.of(first, {name: torch.stack(x) for name, x in rows.items()}, tuple(names))

    def pixels(self, first: int, count: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Teacher clip and control, if there is one, decoded from the latents, uint8 [B, 3, F, H, W] each;
        several controls one after the other along the channels."""
        batch = self.batch(first, count)
        hint = batch.conditioning.hint
        hints = () if hint is None else hint.split(batch.latents.shape[1], dim=1)
        controls = [self.decode(one) for one in hints]
        return self.decode(batch.latents), torch.cat(controls, dim=1) if controls else None

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents at sigma_data scale -> uint8 [B, 3, F, H, W]."""
        return self._tokenizer.decode(latents / self._sigma_data)

    def description(self) -> dict[str, Any]:
        """Number of pairs, and shards by checksum."""
        return {
            "source": "pairs",
            "seed": self.seed,
            "control": self.control,
            "pairs": self.pairs,
            "shards": {path.name: header["sha256"] for path, header in self._shards},
            "left_out": keeping.counted(fault.word for fault in self._left_out.values()),
            "skipped": [f"{name}: {reason}" for name, reason in self.skipped.items()],
        }

"""A group of tensors as a folder of safetensors files, one per rank, through torch.distributed.checkpoint.

Which box of a whole tensor an entry holds stands in the file's header, where that package's
``HuggingFaceStorageWriter`` puts it and its ``HuggingFaceStorageReader`` finds it. Its usual index, a pickle
called ``.metadata``, is neither written nor read. A safetensors file holds one entry per name: further boxes
of a tensor that one rank writes are called ``name#1``, ``name#2``, ...
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from cosmos_distill.arrays import named
from cosmos_distill.files import sha256
from cosmos_distill.storage import DiskError, disk_errors, write_tensors
from cosmos_distill.train.checkpoint.errors import CheckpointError
from cosmos_distill.train.checkpoint.pieces import Block, Piece

_HEADER = "DCP_SHARDING_INFO"
_NEXT = "#"


def save(folder: Path, pieces: Mapping[str, Piece], group: dist.ProcessGroup | None) -> dict[str, str]:
    """Write a group of tensors; waits until it is on disk. Collective.

    Args:
        folder: made if missing, and empty.
        pieces: what this rank writes of them, on the CPU; no box twice over all ranks.
        group: all ranks; None in a world of one.

    Returns:
        On rank 0 the files of all ranks with their sha256, elsewhere nothing.

    Raises:
        DiskError: on every rank, if one of them could not write.
    """
    writer = _Writer(folder)
    try:
        dcp.save(dict(pieces), storage_writer=writer, planner=_SavePlanner(), process_group=group)
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if not isinstance(cause, Exception):
            raise cause from None
        kind = DiskError if isinstance(cause, DiskError) else CheckpointError
        raise kind(str(cause) if group is None else f"rank {rank}: {cause}") from cause
    return writer.digests


class Shards:
    """A folder of shards, to read from on this rank alone.

    Attributes:
        tensors: shape and type of every whole tensor in it, by name.

    Raises:
        CheckpointError: if a file in it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for path in folder.glob("*.safetensors"):
                named.header(path)  # damaged, or no file: the reader below would take what it says for true
            self._metadata = dcp.HuggingFaceStorageReader(str(folder)).read_metadata()
            self._keys: dict[str, list[str]] = {}
            for key in self._metadata.state_dict_metadata:
                self._keys.setdefault(key.partition(_NEXT)[0], []).append(key)
            self.tensors = {name: _frame(self._metadata, keys) for name, keys in self._keys.items()}
        # What a header says of itself may be of any type.
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder} cannot be read: {error}") from error

    @torch.no_grad()
    def load(self, pieces: Mapping[str, Piece]) -> None:
        """Fill the blocks of ``pieces`` in place, reading no more than they need.

        Raises:
            CheckpointError: a tensor is missing, or has another shape or type.
        """
        if missing := sorted(pieces.keys() - self.tensors.keys()):
            raise CheckpointError(
                f"{self.folder} has no {', '.join(missing[:3])}" + ", ..." * (len(missing) > 3)
            )
        reader, planner = dcp.HuggingFaceStorageReader(str(self.folder)), _LoadPlanner(self._keys)
        planner.set_up_planner(dict(pieces), self._metadata)
        reader.set_up_storage_reader(self._metadata, is_coordinator=False)
        plan = reader.prepare_local_plan(planner.create_local_plan())
        reader.read_data(planner.finish_plan(plan), planner).wait()


def _frame(metadata: Metadata, keys: Sequence[str]) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and type of the tensor whose boxes are saved as ``keys``; ValueError when they do not fill it."""
    entries = [_entry(metadata, key) for key in keys]
    shape = tuple(max(sizes) for sizes in zip(*(entry.size for entry in entries), strict=True))
    held = sum(prod(chunk.sizes) for entry in entries for chunk in entry.chunks)
    if held != prod(shape):  # where a box lies is only said: as far away as a terabyte
        name = keys[0].partition(_NEXT)[0]
        raise ValueError(f"{name} is not whole in it ({held} of {prod(shape)} elements): a file is missing")
    return shape, entries[0].properties.dtype


def _entry(metadata: Metadata, key: str) -> TensorStorageMetadata:
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    return entry


def _chunk(block: Block) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(block.offsets), block.value.shape)


class _SavePlanner(dcp.SavePlanner):
    """Writes all that it is given: who writes what has been settled by :func:`staging.writers`."""

    def set_up_planner(
        self, state_dict: dict[str, Piece], storage_meta: Any = None, is_coordinator: bool = False
    ) -> None:
        self._items = {
            f"{name}{_NEXT}{i}" if i else name: (piece, block)
            for name, piece in state_dict.items()
            for i, block in enumerate(piece.blocks)
        }

    def create_local_plan(self) -> SavePlan:
        return SavePlan([_write_item(key, *item) for key, item in self._items.items()])

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        return all_plans, Metadata({})  # the headers say it all

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self._items[write_item.index.fqn][1].value


def _write_item(key: str, piece: Piece, block: Block) -> WriteItem:
    return WriteItem(
        MetadataIndex(key, block.offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            _chunk(block), TensorProperties(block.value.dtype), torch.Size(piece.shape)
        ),
    )


class _Writer(dcp.HuggingFaceStorageWriter):
    """The same files as the base class makes, and their hashes.

    The base class copies all of a file's tensors twice in memory and holds Python's lock for it (0.7 s for
    256 MB on two cores), so that training would stand still; it asks for the file to be synced before Python
    has handed over the last bytes; and its header comes in random order.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.digests: dict[str, str] = {}

    def write_data(self, plan: SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        future: Future[list[WriteResult]] = Future()
        future.set_result([self._write(plan, planner)] if plan.items else [])
        return future

    def _write(self, plan: SavePlan, planner: dcp.SavePlanner) -> WriteResult:
        path = Path(self.path) / f"shard-{plan.storage_data['shard_index']:05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        offsets = {}
        for item in plan.items:
            value = planner.resolve_data(item)
            assert isinstance(value, Tensor) and item.tensor_data is not None
            tensors[item.index.fqn] = value
            offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
        with disk_errors(path):
            write_tensors(tensors, path, offsets, _HEADER)
            return WriteResult(MetadataIndex(path.name), path.stat().st_size, sha256(path))

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.digests = {file.index.fqn: file.storage_data for rank in results for file in rank}


class _LoadPlanner(dcp.LoadPlanner):
    """Fills the blocks of pieces from all entries that overlap them.

    Args:
        keys: the entries of every tensor.
    """

    def __init__(self, keys: Mapping[str, Sequence[str]]) -> None:
        self._keys = keys

    def set_up_planner(
        self, state_dict: dict[str, Piece], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self._pieces = state_dict
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        return LoadPlan([item for name, piece in self._pieces.items() for item in self._items(name, piece)])

    def _items(self, name: str, piece: Piece) -> Iterator[ReadItem]:
        shape, dtype = _frame(self._metadata, self._keys[name])
        chunks = [_chunk(block) for block in piece.blocks]
        types = {block.value.dtype for block in piece.blocks}
        if shape != piece.shape or types - {dtype}:
            wanted = f"{list(piece.shape)} of {', '.join(map(str, types)) or 'any type'}"
            raise CheckpointError(f"{name} is {list(shape)} of {dtype} in it, not {wanted}")
        found = 0
        for key in self._keys[name]:
            for item in create_read_items_for_chunk_list(key, _entry(self._metadata, key), chunks):
                found += prod(item.lengths)
                yield item
        if found != sum(block.value.numel() for block in piece.blocks):
            raise CheckpointError(f"{name} is not whole in it: a file is missing")

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise CheckpointError(f"{read_item.dest_index.fqn} is not a tensor; nothing else is read")

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        name, block = read_item.dest_index.fqn.partition(_NEXT)[0], read_item.dest_index.index
        assert block is not None
        ranges = zip(read_item.dest_offsets, read_item.lengths, strict=True)
        return self._pieces[name].blocks[block].value.detach()[tuple(slice(a, a + n) for a, n in ranges)]

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Nothing left to do: the tensor is a view of the block."""

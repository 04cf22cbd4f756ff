"""Checkpoints of a training stage: written by all ranks in the background, read under any layout.

store                   the checkpoints of a stage on disk: save, newest, which ones stay
pieces                  what a rank holds of a whole tensor
staging  shards  index  which rank writes what, the files of a group of tensors, their checksums
agreement               the ranks that go on only together, and their errors
consolidation           one network of a checkpoint as a single safetensors file
"""

from cosmos_distill.arrays.named import metadata as read_metadata
from cosmos_distill.train.checkpoint.consolidation import consolidate, publish
from cosmos_distill.train.checkpoint.errors import CheckpointError
from cosmos_distill.train.checkpoint.pieces import Block, Piece, flat_piece, piece, whole
from cosmos_distill.train.checkpoint.store import Checkpoint, Store

__all__ = [
    "Block",
    "Checkpoint",
    "CheckpointError",
    "Piece",
    "Store",
    "consolidate",
    "flat_piece",
    "piece",
    "publish",
    "read_metadata",
    "whole",
]

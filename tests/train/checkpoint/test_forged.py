"""Checkpoints that somebody else made: nothing outside of them is opened, nothing is asked for in vain."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cosmos_distill.files import sha256
from cosmos_distill.train.checkpoint import CheckpointError, Store, consolidate, whole
from cosmos_distill.train.checkpoint.shards import Shards
from tests.memory import limited

SHARD = "network_student/shard-00001.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    with Store(tmp_path / "checkpoints", keep=1) as store:
        pieces = {
            "network_student": {"w": whole(torch.ones(4, 3))},
            "ema_student": {"w": whole(torch.ones(4, 3))},
        }
        store.save(7, pieces, {"fingerprint": {"method.name": "KD"}})
    return tmp_path / "checkpoints" / "step_000000007"


def index(checkpoint: Path, files: dict[str, str] | None = None, **entries: Any) -> None:
    """Write the index again, with the checksums that the files have now."""
    path = checkpoint / "index.json"
    said = json.loads(path.read_text()) | entries
    said["files"] = {name: sha256(checkpoint / name) for name in said["files"]} | (files or {})
    path.write_text(json.dumps(said))


@pytest.mark.parametrize(
    "name",
    ["../../secret", "/etc/passwd", "..", "", ".", "network_student/../../secret.safetensors",
     "../a.safetensors", "a/b/c.safetensors", "network_student/shard.pt", "/dev/zero", "state.json/..",
     "x\0/y.safetensors"],
    ids=repr,
)  # fmt: skip
def test_an_index_names_files_of_the_checkpoint_only(checkpoint: Path, name: str) -> None:
    (checkpoint.parent.parent / "secret").write_text("secret")
    index(checkpoint, {name: "0" * 64})
    with pytest.raises(CheckpointError, match=r"index\.json: .* is no file of a checkpoint"):
        consolidate(checkpoint, checkpoint.parent / "out.safetensors")
    with (
        Store(checkpoint.parent, keep=1) as store,
        pytest.raises(CheckpointError, match="is no file of a check"),
    ):
        store.newest()


def test_a_pipe_in_a_checkpoint_does_not_block(checkpoint: Path) -> None:
    (checkpoint / SHARD).unlink()
    os.mkfifo(checkpoint / SHARD)
    with pytest.raises(CheckpointError, match=r"shard-00001\.safetensors is a named pipe"):
        consolidate(checkpoint, checkpoint.parent / "out.safetensors")
    with pytest.raises(CheckpointError, match="is a named pipe"):
        Shards(checkpoint / "network_student")
    (checkpoint / "index.json").unlink()
    os.mkfifo(checkpoint / "index.json")
    with Store(checkpoint.parent, keep=1) as store, pytest.raises(CheckpointError, match="is a named pipe"):
        store.newest()


@pytest.mark.parametrize(
    "said",
    ['{"w": {"saved_offsets": [1099511627776, 0]}}', '{"w": {"saved_offsets": [-4, 0]}}', '{"w": {}}', "{}",
     '{"w": {"saved_offsets": "ab"}}', '{"w": {"saved_offsets": [0.5, 0]}}', '{"w": {"saved_offsets": []}}',
     '{"w": {"saved_offsets": [1, 0]}}', '{"w": 7}', "7", "[]", "no JSON"],
)  # fmt: skip
def test_where_a_box_lies_is_no_reason_to_ask_for_a_terabyte(checkpoint: Path, said: str) -> None:
    """The header says that 12 numbers are a corner of a tensor of any size."""
    save_file(load_file(checkpoint / SHARD), checkpoint / SHARD, {"DCP_SHARDING_INFO": said})
    index(checkpoint)
    with limited(), pytest.raises(CheckpointError, match="network_student cannot be read"):
        consolidate(checkpoint, checkpoint.parent / "out.safetensors", weights="network")


def test_damaged_shards_are_named_before_their_header_is_believed(checkpoint: Path) -> None:
    content = bytearray((checkpoint / SHARD).read_bytes())
    content[:8] = (2**40).to_bytes(8, "little")
    (checkpoint / SHARD).write_bytes(content)
    index(checkpoint)
    with limited(), pytest.raises(CheckpointError, match=r"shard-00001\.safetensors is damaged"):
        consolidate(checkpoint, checkpoint.parent / "out.safetensors")


def test_an_average_of_something_else_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "ema_student" / "shard-00001.safetensors"
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    for tensors in ({"v": torch.ones(4, 3)}, {"w": torch.ones(1, 3)}):
        box = {name: {"saved_offsets": [0, 0]} for name in tensors}
        save_file(tensors, path, said | {"DCP_SHARDING_INFO": json.dumps(box)})
        index(checkpoint)
        with pytest.raises(CheckpointError, match="is the average of nothing"):
            consolidate(checkpoint, checkpoint.parent / "out.safetensors")


@pytest.mark.parametrize("state", ["{}", '{"fingerprint": []}', '{"fingerprint": {}}', "[" * 10**5])
def test_a_state_that_says_nothing_is_named(checkpoint: Path, state: str) -> None:
    (checkpoint / "state.json").write_text(state)
    index(checkpoint)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        consolidate(checkpoint, checkpoint.parent / "out.safetensors")

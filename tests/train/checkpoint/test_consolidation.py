"""Single files: published whole or not at all, and made of a checkpoint's shards."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cosmos_distill.storage import DiskError, publish_tensors
from cosmos_distill.train.checkpoint import CheckpointError, Store, consolidate, read_metadata, whole


def test_published_file_is_old_or_new_never_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    publish_tensors({"w": torch.zeros(3)}, path, {"step": 1, "method": "KD", "weights": "ema"})
    old = path.read_bytes()
    publish_tensors({"w": torch.zeros(3)}, path, {"weights": "ema", "method": "KD", "step": 1})
    assert path.read_bytes() == old  # the same content is the same bytes, so its hash identifies it

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(DiskError, match="disk is full"):
            publish_tensors({"w": torch.ones(3)}, path, {"step": 2})
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["student.safetensors"]
    assert read_metadata(path) == {"step": 1, "method": "KD", "weights": "ema"}


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint of a half-precision student with a buffer, its tensors and their average."""
    network = {"w": torch.randn(4, 3).bfloat16(), "b": torch.randn(3).bfloat16(), "seen": torch.tensor(5)}
    average = {name: torch.randn_like(network[name], dtype=torch.float32) for name in ("w", "b")}
    groups = {"network_student": network, "ema_student": average, "network_critic": {"v": torch.ones(2)}}
    with Store(tmp_path / "checkpoints", keep=1) as store:
        pieces = {name: {n: whole(v) for n, v in tensors.items()} for name, tensors in groups.items()}
        store.save(7, pieces, {"fingerprint": {"method.name": "KD"}})
    return tmp_path / "checkpoints" / "step_000000007", network, average


@pytest.mark.parametrize("weights", ["auto", "ema", "network"])
def test_consolidated_file_is_the_one_that_one_process_would_publish(
    weights: Any, published: Any, tmp_path: Path
) -> None:
    checkpoint, network, average = published
    kind = "student" if weights == "network" else "ema"
    expected = network if weights == "network" else network | {k: v.bfloat16() for k, v in average.items()}
    publish_tensors(expected, tmp_path / "expected", {"step": 7, "method": "KD", "weights": kind})
    found = consolidate(checkpoint, tmp_path / "found", weights=weights)
    assert found.read_bytes() == (tmp_path / "expected").read_bytes()


def test_consolidate_says_what_there_is_and_refuses_damage(published: Any, tmp_path: Path) -> None:
    checkpoint, *_ = published
    out = tmp_path / "out.safetensors"
    assert load_file(consolidate(checkpoint, out, role="critic"))["v"].tolist() == [1, 1]
    out.unlink()
    for where, options, problem in (
        (checkpoint.parent, {}, "step_.*for example .*step_000000007"),
        (tmp_path / "nowhere", {}, "is no checkpoint: give"),
        (checkpoint, {"role": "teacher"}, "no network 'teacher': it holds critic, student"),
        (checkpoint, {"role": "critic", "weights": "ema"}, "no average of 'critic'.*'network'"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            consolidate(where, out, **options)
    os.truncate(checkpoint / "ema_student" / "shard-00001.safetensors", 40)
    with pytest.raises(CheckpointError, match=r"ema_student.*damaged"):
        consolidate(checkpoint, out)
    assert not out.exists()
    assert consolidate(checkpoint, out, weights="network") == out


@pytest.mark.parametrize("weights", ["ema", "network"])
def test_a_type_is_given_to_what_is_a_number_and_averages_are_rounded_once(
    weights: Any, published: Any, tmp_path: Path
) -> None:
    checkpoint, network, average = published
    out = consolidate(checkpoint, tmp_path / "out.safetensors", weights=weights, dtype=torch.float16)
    found = load_file(out)
    for name in ("w", "b"):
        assert torch.equal(found[name], (average if weights == "ema" else network)[name].half())
    assert torch.equal(found["seen"], network["seen"])

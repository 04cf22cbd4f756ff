"""Pairs survive interruption, and never leave half a file."""

from __future__ import annotations

import resource
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cosmos_distill.data.batch import Batch
from cosmos_distill.data.errors import DataError
from cosmos_distill.data.pairs import PairSource, PairWriter
from cosmos_distill.storage import DiskError


def make(first: int, count: int = 4) -> Batch:
    g = torch.Generator().manual_seed(first)
    return Batch.of(
        first,
        {
            "latents": torch.randn(count, 16, 3, 8, 8, generator=g) * 0.5,
            "hint": torch.randn(count, 16, 3, 8, 8, generator=g),
            "text": torch.randn(count, 8, 6, generator=g),
            "negative_text": torch.zeros(count, 8, 6),
            "fps": torch.full((count,), 12.5),
            "padding_mask": torch.zeros(count, 1, 8, 8),
            "noise": torch.randn(count, 16, 3, 8, 8, generator=g),
        },
        tuple(f"clip {first + i}" for i in range(count)),
    )


@pytest.fixture
def folder(tmp_path):
    writer = PairWriter(tmp_path / "pairs")
    for first in range(0, 12, 4):
        writer.write(make(first))
    return tmp_path / "pairs"


@pytest.fixture
def source(folder, mini):
    return PairSource(folder, mini, seed=3)


def test_what_is_read_is_what_was_written(source):
    written = {
        name: torch.cat([make(f).tensors()[name] for f in (0, 4, 8)]) for name in ("noise", "latents", "hint")
    }
    batch = source.batch(2, 7)
    for row in range(7):
        pair = source.pair(2 + row)
        assert batch.names[row] == f"pair {pair}: clip {pair}"
        for name, tensor in written.items():
            assert torch.equal(batch.tensors()[name][row], tensor[pair])
    assert batch.conditioning.negative_text.shape == (7, 8, 6) and source.latent_shape == (16, 3, 8, 8)


def test_every_epoch_is_another_permutation_and_stateless(source, folder, mini):
    epochs = [[source.pair(e * 12 + i) for i in range(12)] for e in range(3)]
    assert all(sorted(e) == list(range(12)) for e in epochs) and epochs[0] != epochs[1] != epochs[2]
    fresh = PairSource(folder, mini, seed=3)
    assert torch.equal(fresh.batch(20, 5).noise, source.batch(17, 9).noise[3:8])
    assert [PairSource(folder, mini, seed=4).pair(i) for i in range(12)] != epochs[0]


def test_pixels_decode_the_stored_latents(source):
    video, control = source.pixels(0, 2)
    assert video.shape == control.shape == (2, 3, 5, 32, 32)


def test_writing_goes_on_where_it_stopped(folder):
    (folder / ".pairs-00000012.safetensors.77.tmp").write_bytes(b"half")
    writer = PairWriter(folder)
    assert writer.done() == 12 and not list(folder.glob(".*.tmp"))
    writer.write(make(12))
    assert PairWriter(folder).done() == 16
    with pytest.raises(ValueError, match="from 16 on, got pairs from 4"):
        writer.write(make(4))


def test_truncated_shard_is_generated_again(folder, caplog):
    path = folder / "pairs-00000008.safetensors"
    whole, again = path.read_bytes(), "damaged"
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert PairWriter(folder).done() == 8
        assert again in caplog.text and path.name in caplog.text
    writer = PairWriter(folder)
    writer.write(make(8))
    assert PairWriter(folder).done() == 12
    assert load_file(path)["noise"].equal(make(8).noise)


def test_shards_of_another_size_replace_the_damaged_one(folder, mini):
    (folder / "pairs-00000004.safetensors").write_bytes(b"")
    writer = PairWriter(folder)
    assert writer.done() == 4
    writer.write(make(4, count=6))
    assert PairWriter(folder).done() == 10  # the old shard of pairs 8..11 no longer counts
    assert PairSource(folder, mini, seed=0).pairs == 10


def test_flipped_bit_is_found(folder, mini):
    path = folder / "pairs-00000004.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"pairs-00000004\.safetensors is corrupt"):
        PairSource(folder, mini, seed=0).batch(0, 12)


def test_too_few_pairs_and_no_pairs(folder, tmp_path, mini):
    with pytest.raises(DataError, match="12 pairs, not 13: run the generate stage"):
        PairSource(folder, mini, seed=0, pairs=13)
    with pytest.raises(DataError, match="holds 0"):
        PairSource(tmp_path / "nothing", mini, seed=0)
    assert isinstance(PairSource(folder, mini, seed=0, pairs=5), PairSource)


def test_bad_batches_are_refused(folder):
    writer = PairWriter(folder)
    with pytest.raises(ValueError, match="needs the noise"):
        writer.write(replace(make(12), noise=None))
    broken = make(12)
    broken.latents[1, 2] = float("nan")
    with pytest.raises(DataError, match="latents holds NaN"):
        writer.write(broken)
    assert writer.done() == 12 and len(list(folder.iterdir())) == 3


def test_full_disk_leaves_no_half_file(folder):
    """A real failed write: the kernel refuses files beyond 64 KiB."""
    writer = PairWriter(folder)
    before = sorted(p.name for p in folder.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(DiskError, match="free some space, and the same command goes on"):
            writer.write(make(12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert sorted(p.name for p in folder.iterdir()) == before
    writer.write(make(12))
    assert writer.done() == 16

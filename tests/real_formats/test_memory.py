"""A teacher is loaded without a second copy in host memory, from whatever form it lies in, and its files are
read from the disk once per node, however many ranks load them at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cosmos_distill import families, models
from cosmos_distill.models.common import weights
from tests.real_formats import networks
from tests.run.commands import ENV, ROOT

BIG = replace(families.preset(networks.PREDICT25), width=512, heads=4, head_dim=128, blocks=6, adaln_rank=64)
"""56 MB in bf16, no tensor of which is more than a thirtieth of it."""
MOST = 1.25
"""Peak of memory that no file stands behind, over the bytes of the network: its own, and a tensor or two."""


RANKS = 3
"""Of a node."""


def anonymous() -> int:
    """Bytes of this process that are no mapped file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def peak(work: Callable[[], object]) -> int:
    """Most of :func:`anonymous` while ``work`` is done, over what it was before."""
    before, most, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            most[0] = max(most[0], anonymous())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        kept = work()
    finally:
        done.set()
        thread.join()
    most[0] = max(most[0], anonymous())
    del kept
    return most[0] - before


def load(place: Path) -> object:
    network = models.build(BIG, dtype=torch.bfloat16, seed=None)
    weights.load_into(network, place)
    return network


def from_disk() -> int:
    """Bytes that this process has had read from a disk; what is in the system's memory already is none."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def read_by(ranks: int, place: Path) -> float:
    """What as many processes read from the disk that load the same files at once, over the bytes of these."""
    files = [place] if place.is_file() else [file for file in place.iterdir() if file.is_file()]
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin, told, children = os.pipe(), os.pipe(), []
    for _ in range(ranks):
        if (child := os.fork()) == 0:
            os.close(begin[1])
            os.read(begin[0], 1)  # ends when the parent lets go
            before = from_disk()
            load(place)
            os.write(told[1], b"%d\n" % (from_disk() - before))
            os._exit(0)
        children.append(child)
    os.close(begin[1])
    os.close(told[1])
    with os.fdopen(told[0]) as lines:
        found = [int(line) for line in lines]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * ranks and len(found) == ranks
    os.close(begin[0])
    return sum(found) / sum(file.stat().st_size for file in files)


def measure(places: list[Path]) -> dict[str, dict[str, float]]:
    """Peaks over the bytes of the network, in a process that has loaded one before, so that libraries are;
    and what was read from the disk over the bytes of the files, by one rank and by several."""
    load(places[0])
    size = 2 * sum(p.numel() for p in models.build(BIG, device="meta", seed=None).parameters())
    assert size > 40e6
    return {
        "peak": {place.name: peak(partial(load, place)) / size for place in places},
        "one rank": {place.name: read_by(1, place) for place in places},
        "a node": {place.name: read_by(RANKS, place) for place in places},
    }


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    network = models.build(BIG, dtype=torch.bfloat16, seed=0)
    return weights.to_official({name: p.detach() for name, p in network.named_parameters()}, BIG.family)


def _shards(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    places = {}
    for number in range(3):
        part = dict(list(state.items())[number::3])
        save_file(part, folder / f"model-{number}.safetensors")
        places |= dict.fromkeys(part, f"model-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _eight_bits(file: Path, state: dict[str, torch.Tensor]) -> None:
    scaled = dict(state)
    for name, value in state.items():
        if value.ndim == 2:
            scaled[name] = value.to(torch.float8_e4m3fn)
            scaled[f"{name}_scale"] = torch.tensor(1.0)
    save_file(scaled, file)


FORMS: dict[str, Callable[[Path, dict[str, torch.Tensor]], object]] = {
    "whole.safetensors": lambda path, state: save_file(state, path),
    "whole.pt": lambda path, state: torch.save(state, path),
    "shards": _shards,
    "eight_bits.safetensors": _eight_bits,
    "distributed": networks.distributed,
}


@pytest.fixture(scope="module")
def measured(
    state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, float]]:
    folder, places = tmp_path_factory.mktemp("large"), []
    for name, write in FORMS.items():
        places.append(folder / name)
        write(places[-1], state)
    # Tensors that are let go are given back at once, so that the next form finds no memory of the one before.
    env = ENV | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.real_formats.test_memory", *map(str, places)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("form", FORMS)
def test_peak_memory_over_the_bytes_of_the_network(form: str, measured: dict[str, dict[str, float]]) -> None:
    assert 0.9 < measured["peak"][form] < MOST, measured


@pytest.mark.parametrize("form", FORMS)
def test_ranks_of_a_node_read_a_file_from_the_disk_once(
    form: str, measured: dict[str, dict[str, float]]
) -> None:
    one, node = measured["one rank"][form], measured["a node"][form]
    assert one == 0 or 0.9 < one < 1.1, measured  # none where temporary files lie in memory
    assert node < 1.1 and (node > 0.9 or one == 0), measured


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(measure([Path(word) for word in sys.argv[1:]])))

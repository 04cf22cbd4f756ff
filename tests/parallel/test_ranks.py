"""What the ranks of a launch do together, without a launcher: reading, drawing, training, ending."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cosmos_distill.train.log import read
from cosmos_distill.train.loop import fit
from tests.parallel import ranks_worker
from tests.train.fakes import ToyMethod, ToySource, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, ranks_worker.__file__, str(folder)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "between.statuses").read_text()) == [0] * 4, done.stderr[-3000:]
    assert json.loads((folder / "training.statuses").read_text()) == [0] * 2, done.stderr[-3000:]
    assert json.loads((folder / "drawing.statuses").read_text()) == [0] * 2, done.stderr[-3000:]
    assert time.monotonic() - begin < 60
    return folder


def found(folder: Path, part: str) -> list[dict[str, Any]]:
    size = ranks_worker.PARTS[part][0]
    return [json.loads((folder / f"{part}-{rank}.json").read_text()) for rank in range(size)]


def test_one_rank_of_a_model_group_reads_for_all(folder: Path) -> None:
    for rank, it in enumerate(found(folder, "between")):
        assert it["data_rank"] == rank // 2 and it["same"]
        assert it["first"] == 10 * (rank // 2) and it["names"][0] == f"sample {it['first']}"
        assert it["hint"] is None and it["noise"] is None and it["without_names"] == []
        assert it["read"] == ([it["first"]] if rank % 2 == 0 else None)


def test_rank_0_describes_what_all_ranks_skipped(folder: Path) -> None:
    first, *others = found(folder, "between")
    skipped = ["clip of rank 0: broken", "clip of rank 2: broken"]
    assert first["description"] == {"source": "counting", "skipped": skipped}
    assert all(it["description"] == {} for it in others)


def test_data_parallel_ranks_draw_different_batches_and_rank_0_gets_them_in_order(folder: Path) -> None:
    first, *others = found(folder, "between")
    assert first["made"] == [[n, [float(n)] * size] for n, size in ((0, 4), (4, 4), (8, 4), (12, 4), (16, 2))]
    assert all(it["made"] == [] for it in others)
    assert [it["drew"] for it in (first, *others)] == [[0, 8, 16]] * 2 + [[4, 12]] * 2
    assert all(it["rounds"] == 3 for it in (first, *others))


def test_rank_0_hands_work_out_to_the_ranks_that_read_and_gets_the_results(folder: Path) -> None:
    first, *others = found(folder, "between")
    assert first["handed out"] == [["a", "A of a"], ["b", "B of b"], ["c", "C of c"]]
    assert all(it["handed out"] == [] for it in others)
    assert [it["worked"] for it in (first, *others)] == [["a", "c"], [], ["b"], []]


def test_ranks_that_hold_a_network_together_draw_what_one_does(folder: Path) -> None:
    first, other = found(folder, "drawing")
    assert [len(part) for part in first["made"]] == [2, 2, 1] and other["made"] == []
    for made, alone in zip(first["made"], first["alone"], strict=True):
        assert made == pytest.approx(alone, rel=1e-5)
    # The last batch is of both, since none can call a network without the other.
    assert (first["calls"], other["calls"]) == ([0, 4], [2, 4])
    assert first["held"] == pytest.approx(0.5, abs=0.05)


def test_rank_0_decides_for_all(folder: Path) -> None:
    first, *others = found(folder, "between")
    assert all(it["shared"] == 0 and it["any"] == [True, False] for it in (first, *others))
    assert first["raised"] == [["Refusal", "not here", False], ["Local", "only here", False]]
    unsent = ["RuntimeError", "Local: only here", True]
    assert all(it["raised"] == [["Refusal", "not here", True], unsent] for it in others)
    assert [it["of the group"] for it in (first, *others)] == [0, 0, 2, 2]
    assert [it["gathered"] for it in (first, *others)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    assert [it["divided"] for it in (first, *others)] == [True, False, True, False]


def test_no_rank_enters_a_collective_while_another_works(folder: Path) -> None:
    for it in found(folder, "between"):
        assert it["waited"] == dict.fromkeys(
            ("on_rank_zero", "all_gather", "gather", "scatter", "any_rank"), True
        )


def test_two_ranks_train_as_one_does(folder: Path, tmp_path: Path) -> None:
    fit(ToyMethod(), ToySource(), trainer(micro_batch=1, log_every=1), tmp_path, seed=7)
    one, two = read(tmp_path / "log.jsonl"), read(folder / "two" / "log.jsonl")
    assert len(one) == len(two) == 9  # and not twice as many: rank 0 alone writes
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(b[key] == pytest.approx(a[key], rel=1e-5) for key in a if key != "wall")
    left, right = found(folder, "training")
    assert left["losses"] == right["losses"]


def test_what_is_not_finite_on_one_rank_is_skipped_on_all(folder: Path) -> None:
    assert [it["skipped"] for it in found(folder, "training")] == [[{"student": 1}, {"student": 3}]] * 2
    bad = [line for line in read(folder / "bad" / "log.jsonl") if "nonfinite" in line]
    assert [(line["step"], line["nonfinite"]) for line in bad] == [(4, "loss/kd")]


def test_a_stop_asked_of_one_rank_stops_all_after_the_same_step(folder: Path) -> None:
    left, right = found(folder, "training")
    assert left["stopped"].startswith("stopped by another rank after 6 of 9 steps")
    assert right["stopped"].startswith("stopped by rank 1's own after 6 of 9 steps")
    assert (folder / "stopped" / "checkpoints" / "step_000000006").is_dir()


def test_the_first_rank_that_fails_speaks_and_ends_the_others(folder: Path) -> None:
    assert json.loads((folder / "leaving.statuses").read_text()) == [7, 7, 1]  # the last hung
    assert (folder / "said-1").read_text() == "rank 1 of 3"
    assert not (folder / "said-0").exists()

"""The real command under torchrun: the smoke recipe, with what one process logs as the reference."""

import socket
from pathlib import Path

import pytest

from cosmos_distill.config import Parallel
from cosmos_distill.launch.options import LaunchOptions
from cosmos_distill.launch.scripts import script
from cosmos_distill.train.log import read
from tests.parallel import faulty
from tests.parallel.launching import end, launch, start, with_stages
from tests.run.commands import RECIPE

TRAINING = ("--trainer.sample-every", "100", "--only", "generate", "kd", "dmd2")


def same_losses(out: Path, finished: Path) -> None:
    for name in ("kd", "dmd2"):
        ours, theirs = read(out / name / "log.jsonl"), read(finished / name / "log.jsonl")
        assert len(ours) == len(theirs) == 4
        for line, expected in zip(ours, theirs, strict=True):
            assert line.keys() == expected.keys()
            for key in line.keys() - {"wall"}:
                assert line[key] == pytest.approx(expected[key], rel=1e-5), (name, line["step"], key)


def test_two_nodes(finished: Path, tmp_path: Path) -> None:
    """Two agents on one machine, started by the script that is written for two machines, data parallel over
    them; every stage but the evaluation."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    words = [str(RECIPE), "--scale", "smoke", "--out", str(tmp_path / "run"), *TRAINING, "export"]
    options = LaunchOptions(nodes=2, gpus_per_node=1, via="torchrun", max_restarts=0)
    (tmp_path / "job.sh").write_text(script(options, words, Parallel(), "two nodes"))
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    nodes = [start(["bash", str(tmp_path / "job.sh")], **place) for _ in range(2)]
    ended = [end(node) for node in nodes]
    assert [status for status, _ in ended] == [0, 0], ended
    assert sorted(said.count("dmd2 complete") for _, said in ended) == [0, 1], ended  # rank 0 speaks for all
    same_losses(tmp_path / "run", finished)
    for shard in ("pairs-00000000", "pairs-00000016"):
        from safetensors.torch import load_file

        ours, theirs = (load_file(folder / "generate" / "pairs" / f"{shard}.safetensors")
                        for folder in (tmp_path / "run", finished))  # fmt: skip
        assert all(ours[key].equal(theirs[key]) for key in theirs)
    assert (tmp_path / "run" / "export" / "student.safetensors").is_file()


def test_stop_and_go_on_elsewhere_under_another_layout(finished: Path, tmp_path: Path) -> None:
    """A signal that one rank gets stops both between two checkpoints; the run folder is moved; two context
    ranks go on from what two tensor-parallel ranks saved."""
    out = with_stages(finished, tmp_path / "run", "generate", "kd")
    program = (faulty.__file__, "dmd2", "12", "1", "SIGTERM")
    status, said = end(start(launch(out, *TRAINING, "--parallel.tensor", "2", program=program)))
    assert status != 0 and "exitcode : 130" in said
    assert said.count("stopped by another rank after 13 of 20 steps") == 1
    assert len(read(out / "dmd2" / "log.jsonl")) == 2
    (tmp_path / "another").mkdir()
    out = out.rename(tmp_path / "another" / "place")
    status, said = end(start(launch(out, *TRAINING, "--parallel.context", "2")))
    assert status == 0, said
    assert "kd already complete" in said and "going on from step 13" in said
    same_losses(out, finished)


def test_a_rank_that_fails_is_named_and_the_restart_goes_on(finished: Path, tmp_path: Path) -> None:
    out = with_stages(finished, tmp_path / "run", "generate", "kd")
    program = (faulty.__file__, "dmd2", "12", "1", "raise")
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1")
    command = launch(out, *TRAINING, "--parallel.pipeline", "2", options=options, program=program)
    status, said = end(start(command))
    assert status == 0, said
    assert said.count("ArithmeticError: the faulty rank's own words") == 1
    assert said.count("failed, rank 1 of 2") == 1 and "failed, rank 0" not in said
    assert "going on from step 10" in said
    same_losses(out, finished)


def test_refusals_are_said_once(tmp_path: Path) -> None:
    """Rank 0 has found it alone, and so have all; the launch ends at once."""
    status, said = end(start(launch(tmp_path / "run", "--parallel.tensor", "4")))
    assert status == 1 and "exitcode : 2" in said
    assert said.count("launch a multiple of 4, or choose sizes whose product divides 2") == 1
    assert said.count("cannot run this") == 1
    assert not (tmp_path / "run").exists()

"""Scripts of ``cosmos-distill launch``: a shell and a parser take them, and signals do what they say."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time

import pytest
import yaml

from cosmos_distill import cli
from cosmos_distill.config import Parallel
from cosmos_distill.launch.options import LaunchOptions
from cosmos_distill.launch.scripts import script, settings
from tests.run.commands import RECIPE

ARGS = ["recipes/a b.py", "--scale", "smoke", "--data", "clips of 'mine'"]
COMMAND = ["-m", "cosmos_distill", *ARGS]


def made(**options):
    return script(LaunchOptions(**options), ARGS, Parallel(tensor=2), "My Recipe")


@pytest.mark.parametrize("via", ["slurm", "torchrun"])
@pytest.mark.parametrize("container", [None, "registry/image:1"])
def test_a_shell_takes_it(via, container):
    text = made(via=via, nodes=4, container=container, account="a", partition="p")
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (container is None) or container in text


def test_slurm_is_asked_for_what_the_options_say():
    lines = made(via="slurm", nodes=4, gpus_per_node=2, hours=1.5, grace=100, partition="p").splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert {"--nodes=4", "--gpus-per-node=2", "--time=01:30:00", "--signal=B:USR1@160", "--requeue",
            "--job-name=my-recipe", "--partition=p"} <= set(asked)  # fmt: skip


def test_kubernetes_takes_it():
    service, job = yaml.safe_load_all(made(via="k8s", nodes=3, gpus_per_node=4, grace=90, container="i:1"))
    assert service["metadata"]["name"] == job["metadata"]["name"] == "my-recipe"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (3, 3)
    pod = job["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 150 and pod["subdomain"] == "my-recipe"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4 and container["image"] == "i:1"
    words = shlex.split(container["args"][0])
    assert words[:2] == ["exec", "torchrun"] and words[-len(COMMAND) :] == COMMAND
    assert words[words.index("--rdzv-endpoint") + 1] == "my-recipe-0.my-recipe:29500"
    assert {v["name"]: v["value"] for v in container["env"]} == settings(Parallel(tensor=2))
    claim = next(v for v in pod["volumes"] if v["name"] == "workspace")["persistentVolumeClaim"]
    assert claim == {"claimName": "workspace"}


WORKER = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$LOGS/words"
trap 'echo stopped >> "$LOGS/events"; exit 130' TERM
echo started >> "$LOGS/events"
for i in $(seq 100); do sleep .05; done
"""


@pytest.mark.parametrize("via", ["slurm", "torchrun"])
def test_a_signal_lets_it_save_and_queues_it_again(via, tmp_path):
    """With stand-ins for what a cluster has: the one that is started waits for SIGTERM."""
    programs = {
        "srun": WORKER, "torchrun": WORKER,
        "scontrol": '#!/usr/bin/env bash\necho "$@" >> "$LOGS/scontrol"\necho node-0\n',
    }  # fmt: skip
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(made(via=via, nodes=2, gpus_per_node=1))
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOGS": str(tmp_path), "MASTER_ADDR": "node-0",
           "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[0-1]"}  # fmt: skip
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=env)
    for _ in range(600):
        if (tmp_path / "events").is_file():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == (0 if via == "slurm" else 75)
    assert (tmp_path / "events").read_text().split() == ["started", "stopped"]
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-len(COMMAND) :] == COMMAND and "--shutdown-timeout" in words
    if via == "slurm":
        assert "requeue 7" in (tmp_path / "scontrol").read_text()
        assert "node-0:29500" in words


def test_command_writes_a_file_and_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    file = tmp_path / "job.sbatch"
    words = ["launch", str(RECIPE), "--nodes", "2", "--gpus-per-node", "1", "--scale", "smoke"]
    assert cli.main([*words, "--write", str(file)]) == cli.OK
    assert f"sbatch {file}" in capsys.readouterr().out and "--nnodes 2" in file.read_text()
    assert cli.main([*words, "--write", str(file)]) == cli.REFUSED
    assert "exists already" in capsys.readouterr().err
    assert cli.main([*words, "--write", str(file), "--overwrite", "--via", "torchrun"]) == cli.OK
    assert "75" in file.read_text()
    assert cli.main([*words, "--parallel.tensor", "8"]) == cli.REFUSED
    assert "2 machines of 1 GPUs cannot run this" in capsys.readouterr().err

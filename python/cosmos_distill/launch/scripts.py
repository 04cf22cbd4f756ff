"""Scripts that start a recipe on several machines and go on with it after a time limit or a preemption.
Torch-free.

A run that is stopped by SIGTERM finishes its step, saves and ends; the same command goes on from there. So a
script has to pass that signal on early enough, wait, and start again. torchrun passes it on to its ranks and
kills those that are still there after ``--shutdown-timeout``, where it has that option.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from collections.abc import Mapping, Sequence

from cosmos_distill.config import Parallel
from cosmos_distill.launch.options import LaunchOptions

PORT = 29500
PROGRAM = ("-m", "cosmos_distill")
_FIRST_WITH_SHUTDOWN = (2, 13)
"""Release of torch whose torchrun takes --shutdown-timeout."""


def settings(parallel: Parallel) -> dict[str, str]:
    """Environment of all ranks: what NCCL and torch should be told."""
    found = {
        "NCCL_DEBUG": "WARN",
        # A rank whose collective fails ends at once, and with it the launch.
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "OMP_NUM_THREADS": "8",
    }
    if parallel.tensor > 1 and parallel.data != "fsdp":
        # Kernels start in the order in which they are issued, so that messages overlap with products.
        found["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    return found


def torchrun(options: LaunchOptions, *, endpoint: str, name: str, node_rank: str | None = None) -> list[str]:
    """The words before the program, some of them variables of a shell."""
    found = [
        "torchrun", "--nnodes", str(options.nodes), "--nproc-per-node", str(options.gpus_per_node),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", name,
        "--max-restarts", str(options.max_restarts),
    ]  # fmt: skip
    if node_rank is not None:
        found += ["--node-rank", node_rank]
    if takes_shutdown_timeout():
        found += ["--shutdown-timeout", str(options.grace)]
    return found


def takes_shutdown_timeout() -> bool:
    """Whether the torchrun that is installed here has that option."""
    numbers = re.findall(r"\d+", importlib.metadata.version("torch"))
    return tuple(map(int, numbers[:2])) >= _FIRST_WITH_SHUTDOWN


def script(options: LaunchOptions, args: Sequence[str], parallel: Parallel, name: str) -> str:
    """The file to write.

    Args:
        args: What follows ``cosmos-distill`` to run the recipe.
        name: Of the job.
    """
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-") or "distil"
    made = {"slurm": _slurm, "torchrun": _torchrun, "k8s": _k8s}[options.via]
    return made(options, list(args), settings(parallel), name)


def _exports(environment: Mapping[str, str]) -> str:
    """What is set already stays."""
    return "\n".join(f'export {key}="${{{key}:-{value}}}"' for key, value in environment.items())


def _lines(words: Sequence[str], indent: str = "    ") -> str:
    """Words of a shell, an option to a line; variables in double quotes are left for the shell."""
    lines: list[str] = []
    for word in words:
        shown = word if word.startswith('"') else shlex.quote(word)
        if lines and (word.startswith("--") or word == "-m"):
            lines.append(shown)
        elif lines:
            lines[-1] += f" {shown}"
        else:
            lines = [shown]
    return f" \\\n{indent}".join(lines)


def _limit(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _slurm(options: LaunchOptions, args: list[str], environment: Mapping[str, str], name: str) -> str:
    words = torchrun(options, endpoint=f'"$MASTER_ADDR:{PORT}"', name='"$SLURM_JOB_ID"')
    container = (
        ["--container-image", options.container, "--container-mounts", '"$PWD:$PWD"', "--container-workdir",
         '"$PWD"'] if options.container else []
    )  # fmt: skip
    note = "" if options.container else (
        "# In a container (pyxis): srun --container-image IMAGE --container-mounts \"$PWD:$PWD\" "
        "--container-workdir \"$PWD\" ...\n"
    )  # fmt: skip
    srun = ["srun", "--kill-on-bad-exit=1", *container]
    more = "".join(
        f"#SBATCH --{key}={value}\n"
        for key, value in (("account", options.account), ("partition", options.partition))
        if value
    )
    return f"""\
#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --nodes={options.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={options.gpus_per_node}
#SBATCH --exclusive
#SBATCH --time={_limit(options.hours)}
#SBATCH --signal=B:USR1@{options.grace + 60}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log
{more}
# Before the time limit Slurm sends this shell SIGUSR1, when the job is preempted SIGTERM: the run then
# finishes its step, saves and ends, and the job is queued again and goes on from there.
set -u

{_exports(environment)}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR

stopping=
stop() {{
    stopping=1
    kill -TERM "$step" 2>/dev/null
}}
trap stop USR1 TERM

{note}{_lines([*srun, *words])} \\
    {_lines([*PROGRAM, *args])} &
step=$!
{_WAIT}
if [ -n "$stopping" ]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
"""


_WAIT = """\
wait "$step"
status=$?
# A signal ends the waiting, not the run.
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    status=$?
done"""


def _torchrun(options: LaunchOptions, args: list[str], environment: Mapping[str, str], name: str) -> str:
    words = torchrun(options, endpoint=f'"$MASTER_ADDR:${{MASTER_PORT:-{PORT}}}"', name=name)
    container = [
        "docker", "run", "--rm", "--gpus", "all", "--network", "host", "--ipc", "host",
        *(word for key in environment for word in ("-e", key)),
        "-v", '"$PWD:$PWD"', "-w", '"$PWD"', options.container,
    ] if options.container else []  # fmt: skip
    return f"""\
#!/usr/bin/env bash
# Start this on each of {options.nodes} machines, with MASTER_ADDR the name of one of them:
#     MASTER_ADDR=node-0 bash {name}.sh
# SIGUSR1 or SIGTERM: the run finishes its step, saves and ends; started again it goes on from there. The
# status is then 75, by which a scheduler knows that it is to be started again.
set -u
: "${{MASTER_ADDR:?the name of the first machine}}"

{_exports(environment)}

stopping=
stop() {{
    stopping=1
    kill -TERM "$step" 2>/dev/null
}}
trap stop USR1 TERM INT

{_lines([*container, *words])} \\
    {_lines([*PROGRAM, *args])} &
step=$!
{_WAIT}
if [ -n "$stopping" ]; then
    exit 75
fi
exit "$status"
"""


def _k8s(options: LaunchOptions, args: list[str], environment: Mapping[str, str], name: str) -> str:
    words = torchrun(options, endpoint=f"{name}-0.{name}:{PORT}", name=name)
    # A rank is the first of its pod's; the pod's number is the machine's.
    command = ["exec", *words, *PROGRAM, *args]
    variables = "".join(
        f"            - {{name: {key}, value: {json.dumps(value)}}}\n" for key, value in environment.items()
    )
    return f"""\
# kubectl apply -f THIS_FILE; the claim holds the working folder: recipe, data, teacher and runs.
# A pod that is preempted or drained is sent SIGTERM: the run finishes its step, saves and ends within
# terminationGracePeriodSeconds; the pod is started again without counting as a failure, and the run goes on.
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: {name}
  ports:
    - {{name: rendezvous, port: {PORT}}}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {name}
spec:
  completionMode: Indexed
  completions: {options.nodes}
  parallelism: {options.nodes}
  backoffLimit: {options.nodes * max(1, options.max_restarts)}
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions:
          - {{type: DisruptionTarget}}
  template:
    spec:
      subdomain: {name}
      restartPolicy: Never
      terminationGracePeriodSeconds: {options.grace + 60}
      containers:
        - name: distil
          image: {json.dumps(options.container or "REPLACE-BY-YOUR-IMAGE")}
          workingDir: /workspace
          command: ["bash", "-c"]
          args:
            - {json.dumps(shlex.join(command))}
          env:
{variables}          resources:
            limits:
              nvidia.com/gpu: {options.gpus_per_node}
          volumeMounts:
            - {{name: workspace, mountPath: /workspace}}
            - {{name: shared-memory, mountPath: /dev/shm}}
      volumes:
        - name: workspace
          persistentVolumeClaim:
            claimName: {json.dumps(options.claim)}
        - name: shared-memory
          emptyDir: {{medium: Memory}}
"""

"""What one rank holds under a layout: run as ``python -m benchmarks.layouts FILE``, which gets the numbers.

A process of its own, since the parent of a fork must not have used OpenMP threads. Every layout forks its
ranks, which train a small network of Transfer1's kind by DMD2 for one step of the student and one of the
critics, in fp32 on gloo.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cosmos_distill import methods, models
from cosmos_distill.config import EDM, Parallel, Trainer
from cosmos_distill.data.batch import Batch
from cosmos_distill.diffusion import build_schedule
from cosmos_distill.methods.dmd2 import DMD2
from cosmos_distill.models.transfer1.config import Transfer1Config
from cosmos_distill.parallel import data, groups
from cosmos_distill.train.loop import fit
from cosmos_distill.train.optim import RoleOptimizer

NETWORK = Transfer1Config(
    width=256, blocks=8, control_blocks=1, heads=8, head_dim=32, adaln_rank=32, text_dim=64, text_tokens=8,
    max_frames=8, max_height=16, max_width=16, hint_widths=(64, 128),
)  # fmt: skip
FRAMES, HEIGHT, WIDTH, SAMPLES = 5, 16, 16, 4  # 320 tokens a sample, four samples a step
LAYOUTS: dict[str, tuple[int, Parallel, str]] = {
    "one rank": (1, Parallel(), "none"),
    "one rank, everything recomputed": (1, Parallel(), "full"),
    "tensor 2": (2, Parallel(tensor=2), "none"),
    "tensor 2, sequence": (2, Parallel(tensor=2, sequence=True), "none"),
    "context 2, Ulysses": (2, Parallel(context=2), "none"),
    "context 2, ring": (2, Parallel(context=2, context_attention="ring"), "none"),
    "pipeline 2": (2, Parallel(pipeline=2), "none"),
    "pipeline 2, interleaved": (2, Parallel(pipeline=2, virtual_pipeline=2), "none"),
    "data 2": (2, Parallel(), "none"),
    "data 2, sharded optimiser": (2, Parallel(data="sharded_optimizer"), "none"),
    "data 2, FSDP": (2, Parallel(data="fsdp"), "none"),
    "tensor 2, sequence x pipeline 2": (4, Parallel(tensor=2, sequence=True, pipeline=2), "none"),
}


@dataclass(frozen=True)
class Held:
    """Bytes of the fullest rank."""

    weights: int
    """Of student, teacher, fake score and discriminator, at rest."""
    optimizer: int
    """Moments, and shares of masters where they are copies."""
    saved: int
    """Most that autograd kept for backward passes at a time, weights left out."""


class Saved:
    """Counts the memory of what autograd keeps, each storage once. Weights are not counted: they are there
    in any case, or, under FSDP, given back and gathered again."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.users: dict[int, int] = {}

    def hooks(self) -> Any:
        """A context in which everything saved is counted."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.value)

    def _pack(self, value: Tensor) -> _Kept:
        return _Kept(self, value)


class _Kept:
    def __init__(self, count: Saved, value: Tensor) -> None:
        storage = value.untyped_storage()
        # Detached, or a node would keep its own output and with it itself.
        self.value, self._count, self._key = value.detach(), count, storage.data_ptr()
        base = value if value._base is None else value._base
        self._size = 0 if isinstance(base, nn.Parameter) else storage.nbytes()
        users = count.users.get(self._key, 0)
        count.users[self._key] = users + 1
        if not users:
            count.now += self._size
            count.most = max(count.most, count.now)

    def __del__(self) -> None:
        users = self._count.users[self._key] = self._count.users[self._key] - 1
        if not users:
            self._count.now -= self._size


class Clips:
    """Random samples, each the same in whatever batch it comes."""

    def batch(self, first: int, count: int) -> Batch:
        def draw(name: int, *shape: int) -> Tensor:
            generators = [torch.Generator().manual_seed(8 * i + name) for i in range(first, first + count)]
            return torch.stack([torch.randn(shape, generator=g) for g in generators])

        clip = (16, FRAMES, HEIGHT, WIDTH)
        return Batch.of(
            first,
            {
                "latents": draw(0, *clip),
                "text": draw(1, NETWORK.text_tokens, NETWORK.text_dim),
                "negative_text": torch.zeros(count, NETWORK.text_tokens, NETWORK.text_dim),
                "hint": draw(2, *clip),
                "fps": torch.full((count,), 24.0),
                "padding_mask": torch.zeros(count, 1, HEIGHT, WIDTH),
            },
            tuple(map(str, range(first, first + count))),
        )


def measure(parallel: Parallel, recompute: Any) -> Held:
    """Train two steps and count. Collective."""
    groups.initialize(parallel)

    def networks(role: str) -> nn.Module:
        network = models.build(NETWORK, seed=0)
        network.activation_checkpointing = recompute
        data.shard(network, parallel)
        return network

    method = methods.build(DMD2(student_update_freq=2, head_width=32), networks, build_schedule(EDM()))
    saved, optimizers = Saved(), []
    made = RoleOptimizer.__init__

    def noted(self: RoleOptimizer, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        optimizers.append(self)

    RoleOptimizer.__init__ = noted  # type: ignore[method-assign]
    trainer = Trainer(
        max_steps=2, global_batch=SAMPLES, micro_batch=1, precision="fp32",
        activation_checkpointing=recompute,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, saved.hooks():
        weights = sum(_bytes(role) for role in method.roles.values())
        fit(method, Clips(), trainer, Path(_shared(folder)), seed=0)
        dist.barrier()
    states = [value for o in optimizers for state in o._adamw.state.values() for value in state.values()]
    copies = [o.masters[name] for o in optimizers for name in o.share.copies]
    return Held(weights, sum(v.nbytes for v in states + copies), saved.most)


def _shared(folder: str) -> str:
    """Rank 0's folder, which all ranks write their checkpoints to."""
    found = [folder]
    dist.broadcast_object_list(found)
    return found[0]


def _bytes(network: nn.Module) -> int:
    """Of the parameters as this rank has them between two passes."""
    return sum(_own(p).nbytes for p in network.parameters())


def _own(parameter: nn.Parameter) -> Tensor:
    """The memory itself, of an FSDP network's parameter this rank's share."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _rank(rank: int, ranks: int, parallel: Parallel, recompute: str, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    held = measure(parallel, recompute)
    everyone: list[Any] = [None] * ranks
    dist.all_gather_object(everyone, asdict(held))
    if rank == 0:
        most = {name: max(one[name] for one in everyone) for name in everyone[0]}
        Path(folder, "held.json").write_text(json.dumps(most), encoding="utf-8")
    dist.barrier()
    os._exit(0)


def main(out: Path) -> None:
    """Measure every layout and write {name: numbers}."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    found = {}
    for name, (ranks, parallel, recompute) in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            mp.start_processes(
                _rank, args=(ranks, parallel, recompute, folder), nprocs=ranks, start_method="fork"
            )
            found[name] = json.loads(Path(folder, "held.json").read_text(encoding="utf-8"))
        print(name, found[name], flush=True)
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

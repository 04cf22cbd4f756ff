"""What changes while a stage trains, and how it goes to disk and comes back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cosmos_distill.config import Trainer
from cosmos_distill.methods.base import Method
from cosmos_distill.parallel.agreement import is_rank_zero
from cosmos_distill.parallel.groups import layout as layout_in_force
from cosmos_distill.train.checkpoint import Checkpoint, CheckpointError, Piece, whole
from cosmos_distill.train.ema import EMA, constant, power
from cosmos_distill.train.fingerprint import ResumeError, fingerprint, require_same
from cosmos_distill.train.guard import NonFinite
from cosmos_distill.train.log import Window
from cosmos_distill.train.optim import RoleOptimizer, network_pieces


class TrainState:
    """Optimisers, average, counters and random state around a method's networks.

    Attributes:
        step: optimiser steps done. The next one reads samples ``step * global_batch`` and up, so the
            position in the data needs no state of its own.
        optimizers: one per trainable role, the student among them.
        ema: average of the student, or None.
        wall: seconds of training, earlier processes included.
    """

    def __init__(self, method: Method, trainer: Trainer, seed: int) -> None:
        self.method = method
        self.trainer = trainer
        self.step = 0
        self.wall = 0.0
        self.window = Window()
        self.guard = NonFinite(trainer.max_nonfinite)
        self.optimizers = {
            role: RoleOptimizer(method.roles[role], method.optim(role), trainer.max_steps)
            for role in method.trainable
        }
        self.ema: EMA | None = None
        if trainer.averages:
            decay = (
                constant(trainer.ema_decay)
                if trainer.ema_decay is not None
                else power(trainer.ema_power or 0)
            )
            self.ema = EMA(self.optimizers["student"].masters, decay)
        self.fingerprint = fingerprint(
            method.config, [method.optim(role) for role in method.trainable], trainer, seed
        )
        self._buffers = [
            buffer for role in method.trainable for buffer in _persistent_buffers(method.roles[role])
        ]
        torch.manual_seed(seed)
        self.mark()

    def mark(self) -> None:
        """Remember what a forward pass may change beside gradients: random state and buffers (batch norm)."""
        self._rng = random_state()
        self._marked = [buffer.clone() for buffer in self._buffers]

    def roll_back(self) -> None:
        """Undo the forward passes since :meth:`mark`: an abandoned step leaves nothing behind."""
        set_random_state(self._rng)
        for buffer, value in zip(self._buffers, self._marked, strict=True):
            buffer.copy_(value)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def checkpoint_bytes(self) -> int:
        """Of a checkpoint, moments that are not there yet among them, however many ranks write it."""
        layout, total = layout_in_force(), 0
        for role, optimizer in self.optimizers.items():
            share = optimizer.share
            average = 4 if role == "student" and self.ema is not None else 0
            for name, weight in share.weights.items():
                master = 4 if name in share.copies else 0
                each = weight.element_size() + master + 2 * share.masters[name].element_size() + average
                total += each * math.prod(share.spans[name].shape)
        return total * layout.tensor * layout.pipeline

    def groups(self) -> dict[str, dict[str, Piece]]:
        """What this rank holds of the checkpoint's tensors, by group. Frozen roles are not in it: they are
        inputs of the stage. The random state is rank 0's: it is the same on all."""
        groups: dict[str, dict[str, Piece]] = {"random": _wholes(random_state()) if is_rank_zero() else {}}
        for role, optimizer in self.optimizers.items():
            groups[f"network_{role}"] = network_pieces(self.method.roles[role])
            groups[f"optimizer_{role}"] = optimizer.pieces()
        if self.ema is not None:
            groups["ema_student"] = self.optimizers["student"].pieces_of(self.ema.average)
        return groups

    def numbers(self) -> dict[str, Any]:
        """Everything else for the checkpoint."""
        return {
            "step": self.step,
            "wall": self.wall,
            "skipped": self.guard.total,
            "nonfinite": self.guard.state(),
            "window": self.window.state(),
            "ema_updates": self.ema.updates if self.ema is not None else 0,
            "fingerprint": self.fingerprint,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, bit for bit.

        Raises:
            ResumeError: if it was made with other hyper-parameters or lies beyond the end of this stage.
            CheckpointError: if its tensors do not fit the networks.
        """
        state = checkpoint.state
        require_same(state["fingerprint"], self.fingerprint)
        if state["step"] > self.trainer.max_steps:
            raise ResumeError(
                f"{checkpoint.path} is at step {state['step']}, beyond max_steps {self.trainer.max_steps}: "
                "raise max_steps, or choose another output folder to start anew"
            )
        try:
            for role, optimizer in self.optimizers.items():
                checkpoint.load(f"network_{role}", network_pieces(self.method.roles[role]))
                # State that is not there yet, since a parameter had no step, is not in the checkpoint either.
                saved = checkpoint.names(f"optimizer_{role}")
                pieces = optimizer.pieces(allocate=True)
                checkpoint.load(
                    f"optimizer_{role}", {name: piece for name, piece in pieces.items() if name in saved}
                )
                optimizer.after_load(saved)
            if self.ema is not None:
                average = self.optimizers["student"].pieces_of(self.ema.average)
                checkpoint.load("ema_student", average)
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(
                f"{checkpoint.path} does not fit the networks ({error}). "
                "Choose another output folder, or go back to the version that wrote it"
            ) from error
        self.step = state["step"]
        self.wall = state["wall"]
        if self.ema is not None:
            self.ema.updates = state["ema_updates"]
        # Checkpoints written before steps were counted by role have their total alone.
        self.guard.restore(state["skipped"], state.get("nonfinite", {}))
        self.window = Window(**state["window"])
        random = random_state()
        saved = checkpoint.names("random")  # what ran on a GPU may go on without
        checkpoint.load("random", _wholes({n: v for n, v in random.items() if n in saved}), partial=True)
        set_random_state(random)
        self.mark()

    def close(self) -> None:
        """Give the networks back without hooks and gradients."""
        for optimizer in self.optimizers.values():
            optimizer.close()


def random_state() -> dict[str, Tensor]:
    """State of torch's generators: CPU, and the current GPU where one is in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Put :func:`random_state` back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _persistent_buffers(network: torch.nn.Module) -> list[Tensor]:
    saved = network.state_dict(keep_vars=True)
    return [buffer for name, buffer in network.named_buffers() if name in saved]


def _wholes(tensors: dict[str, Tensor]) -> dict[str, Piece]:
    return {name: whole(value) for name, value in tensors.items()}

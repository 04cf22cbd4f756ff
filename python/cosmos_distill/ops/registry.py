"""Which backend's kernels an operator runs.

Left alone, the first backend in the operator's list that can serve the tensors does; when a faster one
had to be passed over for a reason worth knowing (the compiled module is missing, say), that is said once.
A choice made explicitly, by an operator's ``backend=`` argument or by the environment variable
``COSMOS_DISTILL_BACKEND``, is kept or refused with :class:`BackendUnavailable`, never replaced. The
variable holds one name, or several in order of preference: ``COSMOS_DISTILL_BACKEND=cpu,sdpa``.

The kernels of a backend are a module of their own in the operator's folder, imported when first needed.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .library import kernels

VARIABLE = "COSMOS_DISTILL_BACKEND"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


class BackendFallback(UserWarning):
    """A faster backend exists for this device but could not be used."""


@dataclass(frozen=True)
class Backend:
    """What the kernels of one backend can serve (None: everything)."""

    name: str
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None

    def refuses(self, device: str, dtype: torch.dtype | None) -> str | None:
        """Why tensors of this kind cannot be served, or None."""
        if self.devices is not None and device not in self.devices:
            return f"it serves {', '.join(self.devices)} tensors, not {device}"
        if self.dtypes is not None and dtype not in self.dtypes:
            names = ", ".join(str(d) for d in self.dtypes)
            return f"it serves {names}, not {'mixed dtypes' if dtype is None else dtype}"
        return None


REFERENCE = Backend("reference")
NARROW = (torch.float32, torch.bfloat16, torch.float16)
CPU = Backend("cpu", ("cpu",), NARROW)

OPERATORS: dict[str, tuple[str, tuple[Backend, ...]]] = {
    "adaln_modulate": ("adaln", (CPU, REFERENCE)),
    "gated_residual_adaln": ("adaln", (CPU, REFERENCE)),
    "qk_norm_rope": ("qknorm", (CPU, REFERENCE)),
    "attention": ("attn", (Backend("sdpa"), REFERENCE)),
    "attention_lse": ("attn", (Backend("sdpa", ("cpu",), NARROW), REFERENCE)),
    "renoise": ("dm_loss", (CPU, REFERENCE)),
    "vsd_loss": ("dm_loss", (CPU, REFERENCE)),
    "fake_score_loss": ("dm_loss", (CPU, REFERENCE)),
    "adamw_ema": ("adamw", (Backend("cpu", ("cpu",), (torch.float32,)), REFERENCE)),
    "generator_loss": ("gan_loss", (REFERENCE,)),
    "discriminator_loss": ("gan_loss", (REFERENCE,)),
}
"""Operator -> its folder, and its backends, the preferred one first."""

# Looking a backend up must cost next to nothing: small networks call thousands of operators a second.
_picked: dict[tuple[str, str | None, str, torch.dtype | None], str] = {}
_said: set[str] = set()


def pick(operator: str, asked: str | None, *tensors: Tensor) -> str:
    """The name of the backend to run ``operator`` on these tensors, all on the device of the first.

    Raises:
        BackendUnavailable: the backend named by the argument or by COSMOS_DISTILL_BACKEND cannot serve them.
        ValueError: there is no backend of that name.
    """
    first = tensors[0]
    dtype: torch.dtype | None = first.dtype
    for tensor in tensors:
        if tensor.dtype != dtype:
            dtype = None
    if torch.compiler.is_compiling():
        return _pick_while_tracing(operator, asked, first.device.type, dtype)
    key = (operator, asked or os.environ.get(VARIABLE) or None, first.device.type, dtype)
    found = _picked.get(key)
    if found is None:
        found = _picked[key] = _choose(*key)
    return found


@torch._dynamo.assume_constant_result  # reads the environment and imports modules: not for a graph
def _pick_while_tracing(operator: str, asked: str | None, device: str, dtype: torch.dtype | None) -> str:
    return _choose(operator, asked or os.environ.get(VARIABLE) or None, device, dtype)


def _choose(operator: str, asked: str | None, device: str, dtype: torch.dtype | None) -> str:
    folder, candidates = OPERATORS[operator]
    reasons: list[str] = []
    if asked is not None:
        candidates = _named(operator, asked, reasons)
    for candidate in candidates:
        reason = candidate.refuses(device, dtype)
        if reason is None:
            try:
                kernels(folder, candidate.name)
            except ImportError as error:
                reason = f"its compiled module is missing ({error}): install the package with a C++ compiler"
            else:
                if asked is None:
                    _say(operator, candidate.name, device, reasons)
                return candidate.name
        # Only a backend meant for this device is worth mentioning.
        if asked is not None or candidate.devices is None or device in candidate.devices:
            reasons.append(f"{candidate.name}: {reason}")
    raise BackendUnavailable(
        f"{operator} has no backend {asked!r} for these tensors. " + ". ".join(reasons) + ". "
        f"Unset {VARIABLE} and pass no backend to let one be picked."
    )


def _named(operator: str, asked: str, reasons: list[str]) -> tuple[Backend, ...]:
    known = {backend.name for _, group in OPERATORS.values() for backend in group}
    here = {backend.name: backend for backend in OPERATORS[operator][1]}
    wanted = [name.strip() for name in asked.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"backend {name!r} is unknown: choose among {', '.join(sorted(known))}")
        if name not in here:
            reasons.append(f"{name}: {operator} has no such implementation, only {', '.join(here)}")
    return tuple(here[name] for name in wanted if name in here)


def _say(operator: str, taken: str, device: str, reasons: list[str]) -> None:
    for reason in reasons:
        # One missing module concerns many operators: name the reason, not each of them.
        if reason not in _said:
            _said.add(reason)
            warnings.warn(
                f"{operator} on {device} falls back to {taken!r}. {reason}", BackendFallback, stacklevel=5
            )

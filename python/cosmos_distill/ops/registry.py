"""Which implementation of an operator runs.

Left alone, the first implementation in the operator's list that can serve the tensors does; when a
faster one had to be passed over for a reason worth knowing (the compiled module is missing, say), that
is said once. A choice made explicitly, by an operator's ``backend=`` argument or by the environment
variable ``COSMOS_DISTILL_BACKEND``, is kept or refused with :class:`BackendUnavailable`, never replaced.
The variable holds one name, or several in order of preference: ``COSMOS_DISTILL_BACKEND=cpu,sdpa``.

Every implementation is a function in a module of its own, imported when first needed.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VARIABLE = "COSMOS_DISTILL_BACKEND"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


class BackendFallback(UserWarning):
    """A faster backend exists for this device but could not be used."""


@dataclass(frozen=True)
class Implementation:
    """One implementation of one operator, and what it can serve (None: everything)."""

    backend: str
    module: str
    function: str
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    raw_pointers: bool = False
    """Reads the tensor's memory itself, so it can serve no tensor subclass."""

    def refuses(self, device: str, dtype: torch.dtype | None, plain: bool) -> str | None:
        """Why tensors of this kind cannot be served, or None."""
        if self.devices is not None and device not in self.devices:
            return f"it serves {', '.join(self.devices)} tensors, not {device}"
        if self.dtypes is not None and dtype not in self.dtypes:
            names = ", ".join(str(d) for d in self.dtypes)
            return f"it serves {names}, not {'mixed dtypes' if dtype is None else dtype}"
        if self.raw_pointers and not plain:
            return "it serves plain tensors, not tensor subclasses"
        return None

    def load(self) -> Callable[..., Any]:
        """The function. Raises ImportError when what it is compiled from is missing."""
        function: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return function


def _reference(folder: str, function: str) -> tuple[Implementation, ...]:
    package = __name__.rpartition(".")[0] + "." + folder
    return (Implementation("reference", f"{package}.reference", function),)


def _fused(folder: str, function: str) -> tuple[Implementation, ...]:
    package = __name__.rpartition(".")[0] + "." + folder
    return (
        Implementation("cpu", f"{package}.cpu", function, ("cpu",), (torch.float32,), raw_pointers=True),
        Implementation("reference", f"{package}.reference", function),
    )


def _attention(with_lse: bool) -> tuple[Implementation, ...]:
    package = __name__.rpartition(".")[0] + ".attn"
    if with_lse:
        return (Implementation("reference", f"{package}.reference", "attention_lse"),)
    return (
        Implementation("sdpa", f"{package}.sdpa", "attention"),
        Implementation("reference", f"{package}.reference", "attention"),
    )


OPERATORS: dict[str, tuple[Implementation, ...]] = {
    "adaln_modulate": _fused("adaln", "adaln_modulate"),
    "gated_residual_adaln": _fused("adaln", "gated_residual_adaln"),
    "qk_norm_rope": _fused("qknorm", "qk_norm_rope"),
    "attention": _attention(with_lse=False),
    "attention_lse": _attention(with_lse=True),
    "renoise": _reference("dm_loss", "renoise"),
    "vsd_loss": _reference("dm_loss", "vsd_loss"),
    "fake_score_loss": _reference("dm_loss", "fake_score_loss"),
    "generator_loss": _reference("gan_loss", "generator_loss"),
    "discriminator_loss": _reference("gan_loss", "discriminator_loss"),
}
"""Operator -> its implementations, the preferred one first."""

_PLAIN = frozenset({Tensor, torch.nn.Parameter})
# Looking an implementation up must cost next to nothing: small networks call thousands of operators a second.
_chosen: dict[tuple[str, str | None, str, torch.dtype | None, bool], Callable[..., Any]] = {}
_said: set[str] = set()
_traceable: dict[str, dict[str, Callable[..., Any]]] = {}


def resolve(operator: str, backend: str | None, *tensors: Tensor) -> Callable[..., Any]:
    """The implementation of ``operator`` to call on these tensors (the first one is on their device).

    Raises:
        BackendUnavailable: the backend named by the argument or by COSMOS_DISTILL_BACKEND cannot serve them.
        ValueError: there is no backend of that name.
    """
    asked = backend or os.environ.get(VARIABLE) or None
    if torch.compiler.is_compiling():
        return _choose_while_tracing(operator, asked)
    first = tensors[0]
    dtype: torch.dtype | None = first.dtype
    plain = True
    for tensor in tensors:
        if tensor.dtype != dtype:
            dtype = None
        if type(tensor) not in _PLAIN:
            plain = False
    key = (operator, asked, first.device.type, dtype, plain)
    found = _chosen.get(key)
    if found is None:
        found = _chosen[key] = _choose(*key)
    return found


def _choose(
    operator: str, asked: str | None, device: str, dtype: torch.dtype | None, plain: bool
) -> Callable[..., Any]:
    candidates = OPERATORS[operator]
    reasons: list[str] = []
    if asked is not None:
        candidates = _named(operator, asked, reasons)
    for candidate in candidates:
        reason = candidate.refuses(device, dtype, plain)
        if reason is None:
            try:
                function = candidate.load()
            except ImportError as error:
                reason = f"its compiled module is missing ({error}): install the package with a C++ compiler"
            else:
                if asked is None:
                    _say(operator, candidate, device, reasons)
                return function
        # Only a backend meant for this device is worth mentioning.
        if asked is not None or candidate.devices is None or device in candidate.devices:
            reasons.append(f"{candidate.backend}: {reason}")
    raise BackendUnavailable(
        f"{operator} has no backend {asked!r} for these tensors. " + ". ".join(reasons) + ". "
        f"Unset {VARIABLE} and pass no backend to let one be picked."
    )


def traceable(operator: str, backend: str, function: Callable[..., Any]) -> None:
    """Offer an implementation made of torch operators to torch.compile, which cannot trace the import that
    an ordinary choice may need. Of several, the one offered first is preferred."""
    _traceable.setdefault(operator, {})[backend] = function


def _choose_while_tracing(operator: str, asked: str | None) -> Callable[..., Any]:
    offered = _traceable[operator]
    for name in offered if asked is None else asked.split(","):
        if name.strip() in offered:
            return offered[name.strip()]
    raise BackendUnavailable(f"{operator} has no backend {asked!r} under torch.compile, only {list(offered)}")


def _named(operator: str, asked: str, reasons: list[str]) -> tuple[Implementation, ...]:
    known = {name.backend for group in OPERATORS.values() for name in group}
    here = {candidate.backend: candidate for candidate in OPERATORS[operator]}
    wanted = [name.strip() for name in asked.split(",")]
    for name in wanted:
        if name not in known:
            raise ValueError(f"backend {name!r} is unknown: choose among {', '.join(sorted(known))}")
        if name not in here:
            reasons.append(f"{name}: {operator} has no such implementation, only {', '.join(here)}")
    return tuple(here[name] for name in wanted if name in here)


def _say(operator: str, taken: Implementation, device: str, reasons: list[str]) -> None:
    for reason in reasons:
        # One missing module concerns many operators: name the reason, not each of them.
        if reason not in _said:
            _said.add(reason)
            warnings.warn(
                f"{operator} on {device} falls back to {taken.backend!r}. {reason}",
                BackendFallback,
                stacklevel=5,
            )

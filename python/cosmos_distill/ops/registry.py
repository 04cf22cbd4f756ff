"""Which backend's kernels an operator runs.

Left alone, the first backend in the operator's list that can serve the tensors does; when one before it had
to be passed over for a reason worth knowing (the compiled module is missing, say), that is said once for each
operator and reason. The order is that of speed as measured on the CPU, and as expected on GPUs, where nothing
was timed. A choice made explicitly, by an operator's ``backend=`` argument or by the environment variable
``COSMOS_DISTILL_BACKEND``, is kept or refused with :class:`BackendUnavailable`, never replaced. The variable
holds one name, or several in order of preference: ``COSMOS_DISTILL_BACKEND=cpu,sdpa``.

The kernels of a backend are a module of their own in the operator's folder, imported when first needed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

from .library import Operator, derivatives, import_every_operator, introduce_to_dtensor, kernel, kernels

VARIABLE = "COSMOS_DISTILL_BACKEND"


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


class HeadTooLarge(BackendUnavailable, ValueError):
    """It could, were the heads of the tensors smaller."""


class BackendFallback(UserWarning):
    """A backend preferred on this device could not be used."""


@dataclass(frozen=True)
class Backend:
    """What the kernels of one backend can serve (None: everything)."""

    name: str
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    largest_head: int | None = None
    least_capability: tuple[int, int] | None = None
    """Of a GPU."""
    missing: str = "its compiled module is missing ({error}): install the package with a C++ compiler"
    """What an ImportError means and what to do about it."""
    emulated: tuple[str, ...] = ()
    """Further devices, for tests: served where the backend was asked for by name."""
    hint: str = ""
    """Said where it was asked to serve the CPU."""
    plain: bool = True
    """Whether it serves calls that want nothing in particular, too, without being asked for by name."""
    has: tuple[str, ...] = ()
    """Of what not every backend of an operator has, in words: that which this one does."""

    def refuses(
        self,
        device: str,
        gpu: tuple[int, int] | None,
        dtype: torch.dtype | None,
        head: int,
        wanted: tuple[str, ...],
        asked: bool,
    ) -> str | None:
        """Why tensors of this kind cannot be served, or None; ``gpu`` is a GPU's compute capability."""
        planned = asked and device == "meta"  # nothing is run: a name says what to plan for
        if (
            self.devices is not None
            and not planned
            and device not in self.devices + (self.emulated if asked else ())
        ):
            hint = self.hint if device == "cpu" else ""
            return f"it serves {', '.join(self.devices)} tensors, not {device}{hint}"
        if self.least_capability is not None and gpu is not None and gpu < self.least_capability:
            least, has = (".".join(map(str, capability)) for capability in (self.least_capability, gpu))
            return f"it serves GPUs of compute capability {least} and later, not {has}"
        if self.dtypes is not None and dtype not in self.dtypes:
            names = ", ".join(str(d) for d in self.dtypes)
            return f"it serves {names}, not {'mixed dtypes' if dtype is None else dtype}"
        if self.name != REFERENCE.name and (lacks := next((w for w in wanted if w not in self.has), None)):
            return f"it has no {lacks}"
        if not (self.plain or wanted or asked):
            return "it serves calls with masks, windows or soft caps"
        return self.too_small_for(head)

    def too_small_for(self, head: int) -> str | None:
        """Why such heads cannot be served, or None."""
        if self.largest_head is None or head <= self.largest_head:
            return None
        return f"it serves heads of up to {self.largest_head} channels, but q has head size {head}"


REFERENCE = Backend("reference")
NARROW = (torch.float32, torch.bfloat16, torch.float16)
CPU = Backend("cpu", ("cpu",), NARROW)
# bf16 in hardware. What is compiled for A100, H100 and B200 runs on later GPUs from its PTX (CMakeLists.txt).
AMPERE = (8, 0)
CUDA = Backend("cuda", ("cuda",), NARROW, least_capability=AMPERE, missing="{error}")
TRITON = Backend(
    "triton",
    ("cuda",),
    NARROW,
    least_capability=AMPERE,
    missing="it cannot be imported ({error}): pip install triton",
    emulated=("cpu",) if os.environ.get("TRITON_INTERPRET") == "1" else (),
    hint=" (its interpreter does: start Python with TRITON_INTERPRET=1)",
)
FUSED = (CUDA, TRITON, CPU, REFERENCE)
SDPA = Backend("sdpa")
"""torch's own scaled_dot_product_attention."""
TILED = Backend("tiled", dtypes=NARROW)
"""Plain torch, a piece of the work at a time: where the reference would not fit into memory."""
FLEX = Backend("flex", ("cuda",), NARROW, emulated=("cpu",), plain=False)
"""torch's flex_attention, compiled; on a CPU, for tests, as plain torch without gradient."""
NAMES = tuple(sorted(one.name for one in (REFERENCE, CPU, CUDA, TRITON, SDPA, TILED, FLEX)))

OPERATORS: dict[str, tuple[str, tuple[Backend, ...]]] = {}
"""Operator -> its folder, and its backends, the preferred one first: of the folders that are imported."""


def serve(folder: str, **operators: tuple[Backend, ...]) -> None:
    """Name the backends of a folder's public operators, the preferred one first."""
    for operator, backends in operators.items():
        OPERATORS[operator] = folder, backends


# Looking a backend up must cost next to nothing: small networks call thousands of operators a second.
_picked: dict[tuple[str, str | None, torch.device, torch.dtype | None, int, tuple[str, ...]], str] = {}
_said: set[tuple[str, str]] = set()


def pick(
    operator: str,
    asked: str | None,
    *tensors: Tensor,
    head: int = 0,
    wanted: tuple[str, ...] = (),
    mixed: bool = False,
    learned: Sequence[Tensor | None] = (),
) -> str:
    """The name of the backend to run ``operator`` on these tensors, all on the device of the first.

    Args:
        operator: a key of OPERATORS.
        asked: names of backends, or None.
        tensors: what the kernels read.
        head: channels of a head, where there are heads.
        wanted: in words, what is asked of a backend that not every one has (:attr:`Backend.has`); the
            reference has all.
        learned: tensors that the results may be differentiated by. Where that is done in forward mode or by
            torch.func, those who have no such derivative are passed over, unless they are asked for by name.
        mixed: results are of dtypes that no kernel has for these tensors.

    Raises:
        BackendUnavailable: the backend named by the argument or by COSMOS_DISTILL_BACKEND cannot serve them;
            HeadTooLarge, a ValueError as well, where that is for the head size.
        ValueError: there is no backend of that name.
    """
    if learned and asked is None and VARIABLE not in os.environ:
        wanted = (*wanted, *derivatives(*learned))
    first = tensors[0]
    dtype: torch.dtype | None = None if mixed else first.dtype
    for tensor in tensors:
        if tensor.dtype != dtype:
            dtype = None
    if torch.compiler.is_compiling():
        # A head of symbolic size becomes the number it is: kernels, too, are compiled for one.
        return _pick_while_tracing(operator, asked, first.device, dtype, index(head), wanted)
    key = (operator, asked or os.environ.get(VARIABLE) or None, first.device, dtype, head, wanted)
    found = _picked.get(key)
    if found is None:
        found = _picked[key] = _choose(*key)
    return found


@contextmanager
def insisting(asked: str | None) -> Iterator[None]:
    """Within, COSMOS_DISTILL_BACKEND holds ``asked``, in the whole process; None leaves it as it is."""
    before = os.environ.get(VARIABLE)
    if asked is not None:
        os.environ[VARIABLE] = asked
    try:
        yield
    finally:
        if asked is not None:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def _pick_while_tracing(
    operator: str,
    asked: str | None,
    device: torch.device,
    dtype: torch.dtype | None,
    head: int,
    wanted: tuple[str, ...],
) -> str:
    introduce_to_dtensor()
    return _choose(operator, asked or os.environ.get(VARIABLE) or None, device, dtype, head, wanted)


# Reads the environment and imports modules: not for a graph, in which the answer is a constant. This is
# torch.compiler.assume_constant_result without the second and a half that importing the compiler takes.
_pick_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel_for_heads(folder: str, operator: str, function: str, q: int) -> Operator:
    """A :func:`.library.kernel` that refuses heads larger than its backend serves, with HeadTooLarge: what is
    registered may be called where no :func:`pick` has been.

    Args:
        folder: see :func:`.library.kernel`.
        operator: a key of OPERATORS when the kernel is called.
        function: see :func:`.library.kernel`.
        q: the position of the argument with the heads.
    """
    run = kernel(folder, function)

    def refuse_or_run(*args: Any) -> Any:
        for backend in OPERATORS[operator][1]:
            if backend.name == args[-1] and (reason := backend.too_small_for(args[q].shape[-1])):
                raise HeadTooLarge(f"{backend.name}: {reason}")
        return run(*args)

    return refuse_or_run


def _capability(device: torch.device) -> tuple[int, int] | None:
    """None of what is no GPU, and of one that a graph is only traced for."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability(device)


def _choose(
    operator: str,
    asked: str | None,
    on: torch.device,
    dtype: torch.dtype | None,
    head: int,
    wanted: tuple[str, ...] = (),
) -> str:
    if operator not in OPERATORS:  # its folder has not been imported yet
        import_every_operator()
    folder, candidates = OPERATORS[operator]
    device, gpu = on.type, _capability(on)
    reasons: list[str] = []
    large = False
    if asked is not None:
        candidates = _named(operator, asked, reasons)
    for candidate in candidates:
        reason = candidate.refuses(device, gpu, dtype, head, wanted, asked is not None)
        if reason is None:
            try:
                if device != "meta":
                    kernels(folder, candidate.name)
            except ImportError as error:
                reason = candidate.missing.format(error=error)
            else:
                if asked is None:
                    _say(operator, candidate.name, device, reasons)
                return candidate.name
        elif reason == candidate.too_small_for(head):
            large = True
        # Only a backend meant for this device and call is worth mentioning.
        meant = candidate.plain or bool(wanted)
        if asked is not None or (meant and (candidate.devices is None or device in candidate.devices)):
            reasons.append(f"{candidate.name}: {reason}")
    raise (HeadTooLarge if large else BackendUnavailable)(
        f"{operator} has no backend {asked!r} for these tensors. " + ". ".join(reasons) + ". "
        f"Unset {VARIABLE} and pass no backend to let one be picked."
    )


def _named(operator: str, asked: str, reasons: list[str]) -> tuple[Backend, ...]:
    if not isinstance(asked, str):
        raise ValueError(f"backend must be the name of one or None, not {type(asked).__name__}")
    here = {backend.name: backend for backend in OPERATORS[operator][1]}
    wanted = [name.strip() for name in asked.split(",")]
    for name in wanted:
        if name not in NAMES:
            raise ValueError(f"backend {name!r} is unknown: choose among {', '.join(NAMES)}")
        if name not in here:
            reasons.append(f"{name}: {operator} has no such implementation, only {', '.join(here)}")
    return tuple(here[name] for name in wanted if name in here)


def _say(operator: str, taken: str, device: str, reasons: list[str]) -> None:
    for reason in reasons:
        if (operator, reason) not in _said:
            _said.add((operator, reason))
            warnings.warn(
                f"{operator} on {device} falls back to {taken!r}. {reason}", BackendFallback, stacklevel=5
            )

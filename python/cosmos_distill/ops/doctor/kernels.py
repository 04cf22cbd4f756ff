"""Which backend serves what, and whether its kernels are right."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..library import import_every_operator
from .cases import Case, cases, draw
from .clock import Clock
from .machine import device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def serving(section: dict[str, Any], clock: Clock) -> None:
    """A row for each operator and dtype: who serves it where nobody is named, and why the others do not."""
    import_every_operator()
    on = device()
    for operator, (_, backends) in registry.OPERATORS.items():
        for name, dtype in (*DTYPES.items(), ("fp64", torch.float64)):
            x = draw(1, 4, 2, 64).to(on, dtype)
            why = {}
            for backend in backends:
                if not _meant_for(backend, on):
                    why[backend.name] = f"it serves {', '.join(backend.devices or ())} tensors, not {on.type}"
                    continue
                try:
                    registry.pick(operator, backend.name, x, head=64)
                except registry.BackendUnavailable as error:
                    why[backend.name] = _reason(str(error), backend.name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", registry.BackendFallback)
                taken = registry.pick(operator, None, x, head=64)
            lacking = "; ".join(f"{backend}: {reason}" for backend, reason in why.items())
            section["rows"].append(
                {"operator": operator, "dtype": name, "served by": taken, "not by": lacking or "-"}
            )


def _meant_for(backend: registry.Backend, on: torch.device) -> bool:
    """Not for tests alone."""
    return backend.devices is None or on.type in backend.devices


def _reason(message: str, backend: str) -> str:
    """What is said of a backend in a refusal."""
    return message.partition(f"{backend}: ")[2].partition(f". Unset {registry.VARIABLE}")[0] or message


def _results(case: Case, dtype: torch.dtype, backend: str, on: torch.device) -> list[Tensor]:
    """Outputs and gradients of the tensors as they are once narrowed to ``dtype``; ``exact`` is fp64."""
    chosen = case.narrowed or (True,) * len(case.tensors)
    exact = backend == "exact"
    leaves = []
    for x, narrowed in zip(case.tensors, chosen, strict=True):
        one = x.to(dtype) if narrowed else x
        leaves.append((one.double() if exact else one).to(on).requires_grad_())

    def placed(x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(placed(one) for one in x)
        # Constants are rounded as well, so that all see the same numbers.
        return x.to(dtype).to(torch.float64 if exact else torch.float32).to(on)

    constants = {name: placed(x) for name, x in case.options.items()}
    made = case.run(*leaves, **constants, backend="reference" if exact else backend)
    outputs = made if isinstance(made, tuple) else (made,)
    slopes = [draw(*o.shape, seed=5).to(torch.bfloat16).to(o) for o in outputs]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, slopes)]


def error_as_share(case: Case, dtype: torch.dtype, backend: str, on: torch.device) -> tuple[float, float]:
    """The worst error of a result against fp64, as a share of what is allowed, and that error by itself.
    Allowed is four times the error of plain torch in the same dtype, and eight units of ``dtype`` in the last
    place of the largest number: twice what tests allow of larger tensors, for luck must call nobody wrong.
    """
    exact, plain, ours = (_results(case, dtype, one, on) for one in ("exact", "reference", backend))
    worst, error = 0.0, 0.0
    for want, theirs, got in zip(exact, plain, ours, strict=True):
        if not got.numel():
            continue
        off = float((got.double() - want).abs().max())
        unit = torch.finfo(dtype).eps * float(want.abs().max())
        allowed = 4 * float((theirs.double() - want).abs().max()) + 8 * unit
        share = off / allowed if allowed else float(off > 0)
        if not share <= worst:  # NaN as well
            worst, error = share, off
    return worst, error


def compared(section: dict[str, Any], clock: Clock, chosen: Sequence[Case] | None = None) -> None:
    """A row for each operator, backend and dtype: how many shapes are right."""
    import_every_operator()
    on = device()
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for case in cases() if chosen is None else chosen:
        for backend in registry.OPERATORS[case.operator][1]:
            if backend.name == "reference" or not _meant_for(backend, on):
                continue
            for name, dtype in DTYPES.items():
                clock.need()
                first = case.tensors[0].to(on, dtype if case.narrowed is None else torch.float32)
                head = case.tensors[0].shape[-1] if case.heads else 0
                try:
                    registry.pick(case.operator, backend.name, first, head=head)
                except registry.BackendUnavailable:
                    continue
                key = case.operator, backend.name, name
                if key not in rows:
                    rows[key] = {
                        "operator": case.operator,
                        "backend": backend.name,
                        "dtype": name,
                        "state": "right",
                        "shapes": 0,
                        "worst": 0.0,
                    }
                    section["rows"].append(rows[key])
                row = rows[key]
                row["shapes"] += 1
                try:
                    share, error = error_as_share(case, dtype, backend.name, on)
                except Exception as failure:
                    row["state"] = "wrong"
                    said = f"{case.operator} {backend.name} {name}, {case.name}: {failure}"
                    section["notes"].append(said[:300])
                    continue
                row["worst"] = max(row["worst"], round(share, 3)) if share == share else share
                if not share <= 1:
                    row["state"] = "wrong"
                    section["notes"].append(
                        f"{case.operator} {backend.name} {name}, {case.name}: off by {error:.3g}, "
                        f"{share:.2f} times what is allowed"
                    )
    section["notes"].append(
        "worst: the largest error as a share of what is allowed, four times plain torch's and eight units in "
        "the last place"
    )

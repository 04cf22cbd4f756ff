"""Triton kernels ahead of time: what would be launched on a GPU, compiled on a machine without one.

Each operator's ``triton.py`` has ``aot_cases() -> list[AotCase]``: all kernels it launches at the shapes of
the published networks. A case is derived from a recorded launch, never written down by hand, so it cannot
differ from what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .launch import Launch, record

ARCHITECTURES = (80, 90, 100)
"""Compute capabilities times ten: A100, H100/H200, B200."""
TOKENS = 56_320
"""Of a 720p clip of 16 latent frames: 16 x 44 x 80."""
DTYPES = ((torch.bfloat16, "bf16"), (torch.float32, "fp32"), (torch.float16, "fp16"))
"""What kernels are compiled for, with the name in a label; the most used one first."""

_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


@dataclass(frozen=True)
class AotCase:
    """One kernel in one configuration."""

    operator: str
    """As in the registry, with ``_backward`` for its gradient."""
    label: str
    """Network, shape and dtype: ``7B 720p D=4096 bf16``."""
    kernel: Any
    """Made by ``triton.jit``."""
    signature: dict[str, str]
    """Argument -> Triton's type, ``constexpr`` for constants."""
    constexprs: dict[str, Any]
    aligned: tuple[str, ...]
    """Arguments that are multiples of 16: pointers in bytes, integers."""
    grid: tuple[int, ...]
    num_warps: int
    num_stages: int
    archs: tuple[int, ...]
    """Architectures that this configuration is launched on."""
    must_contain: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Architecture -> opcodes (their beginnings) that its machine code must have."""
    alike: bool = False
    """Whether a case in bf16 differs from it in conversions and addresses only."""

    def source(self) -> Any:
        """For ``triton.compile``."""
        from triton.compiler import ASTSource

        names = self.kernel.arg_names
        attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in self.aligned}
        return ASTSource(self.kernel, self.signature, self.constexprs, attributes)

    def compile(self, arch: int) -> Any:
        """The kernel compiled for an architecture: ``.asm`` has ``ptx`` and ``cubin``, among others."""
        import triton
        from triton.backends.compiler import GPUTarget

        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        return triton.compile(self.source(), target=GPUTarget("cuda", arch, 32), options=options)


def cases(operator: str, label: str, function: Callable[..., Any], *arguments: Any) -> list[AotCase]:
    """The kernels that a call launches, on all :data:`ARCHITECTURES`. Those in fp16 are taken for
    :attr:`AotCase.alike`: the caller knows which of them multiply matrices.

    Args:
        operator: see :class:`AotCase`.
        label: see :class:`AotCase`.
        function: of a ``triton.py``.
        arguments: its tensors are on the ``meta`` device.
    """
    found: list[AotCase] = []
    for arch in ARCHITECTURES:
        with record(arch) as launches:
            function(*arguments)
        for case in (_case(operator, label, arch, one) for one in launches):
            for i, other in enumerate(found):
                if replace(case, archs=other.archs) == other:
                    if arch not in other.archs:
                        found[i] = replace(other, archs=(*other.archs, arch))
                    break
            else:
                found.append(case)
    return found


def _case(operator: str, label: str, arch: int, one: Launch) -> AotCase:
    constants = {p.name for p in one.kernel.params if p.is_constexpr}
    signature, constexprs, aligned = {}, {}, []
    for name in one.kernel.arg_names:
        value = one.arguments[name]
        # As Triton specialises: None and 1 are compiled in, multiples of 16 are known as such.
        if name in constants or value is None or (type(value) is int and value == 1):
            signature[name], constexprs[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.append(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                aligned.append(name)
    return AotCase(
        operator,
        label,
        one.kernel,
        signature,
        constexprs,
        tuple(aligned),
        one.grid,
        one.num_warps,
        one.num_stages,
        (arch,),
        alike="*fp16" in signature.values(),
    )

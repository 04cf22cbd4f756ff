from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.nvcc import ARCHS
from cosmos_distill import ops
from cosmos_distill.ops import attn, qknorm, registry  # noqa: F401  # registers their operators
from cosmos_distill.ops.registry import BackendFallback, BackendUnavailable, HeadTooLarge


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that has chosen nothing yet and said nothing yet."""
    monkeypatch.setattr(registry, "_picked", {})
    monkeypatch.setattr(registry, "_said", set())
    monkeypatch.delenv(registry.VARIABLE, raising=False)


@pytest.fixture
def missing_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package had been installed without a compiler."""
    load = registry.kernels

    def kernels(folder: str, backend: str) -> ModuleType:
        if backend == "cpu":
            raise ImportError("no module named _C")
        return load(folder, backend)

    monkeypatch.setattr(registry, "kernels", kernels)


def call(backend: str | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    x, m = torch.zeros(1, 2, 4, dtype=dtype), torch.zeros(1, 4, dtype=dtype)
    return ops.adaln_modulate(x, m, m, backend=backend)


@pytest.mark.compiled
def test_cpu_comes_first_on_the_cpu_and_only_there():
    x = torch.zeros(1, 2, 4)
    assert registry.pick("adaln_modulate", None, x) == "cpu"
    assert registry.pick("adaln_modulate", None, x.to("meta")) == "reference"


@pytest.mark.compiled
def test_falls_back_and_says_so_once_for_other_dtypes():
    with pytest.warns(BackendFallback, match="serves .*torch.bfloat16.*, not torch.float64"):
        call(dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(dtype=torch.float64)


def test_falls_back_and_says_so_once_without_the_compiled_module(missing_module: None):
    with pytest.warns(BackendFallback, match="compiled module is missing"):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    q, w = torch.zeros(1, 2, 1, 4), torch.ones(4)
    with pytest.warns(BackendFallback, match="qk_norm_rope on cpu falls back to 'reference'"):
        ops.qk_norm_rope(q, q, w, w)  # another operator, which is slow as well


def test_an_explicit_choice_is_never_replaced(missing_module: None, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BackendUnavailable, match="compiled module is missing"):
        call("cpu")
    monkeypatch.setenv(registry.VARIABLE, "cpu")
    with pytest.raises(BackendUnavailable, match="compiled module is missing"):
        call()
    with pytest.raises(BackendUnavailable, match="attention has no such implementation"):
        ops.attention(*[torch.zeros(1, 2, 1, 4)] * 3)
    assert call("reference").shape == (1, 2, 4)  # the argument outranks the variable


@pytest.mark.compiled
def test_an_explicit_choice_that_cannot_serve_raises():
    with pytest.raises(BackendUnavailable, match=r"serves .*, not torch\.float64"):
        call("cpu", torch.float64)


def test_the_variable_may_hold_an_order_of_preference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(registry.VARIABLE, "sdpa, reference")
    q = torch.zeros(1, 2, 1, 4)
    assert registry.pick("attention", None, q, q, q) == "sdpa"
    assert registry.pick("adaln_modulate", None, q) == "reference"


@pytest.mark.parametrize(
    ("operator", "passed_over", "largest"), [("attention_lse", "triton", 128), ("qk_norm_rope", "cuda", 2048)]
)
def test_heads_too_large_for_a_backend(
    operator: str, passed_over: str, largest: int, monkeypatch: pytest.MonkeyPatch
):
    """On a GPU that a machine without one can only be told about: every backend can be imported."""
    monkeypatch.setattr(registry, "kernels", lambda folder, backend: None)

    def choose(asked: str | None, head: int) -> str:
        return registry._choose(operator, asked, torch.device("cuda", 0), torch.bfloat16, head)

    assert choose(None, largest) == passed_over
    with pytest.warns(BackendFallback, match=f"{passed_over}: it serves heads of up to {largest} channels"):
        taken = choose(None, largest + 8)
    assert taken == {"attention_lse": "tiled", "qk_norm_rope": "triton"}[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(None, largest + 8)
    with pytest.raises(ValueError, match=f"q has head size {largest + 8}"):
        choose(passed_over, largest + 8)
    assert choose(f"{passed_over}, reference", largest + 8) == "reference"


def test_a_large_head_is_blamed_only_for_what_it_does():
    q, gpu = torch.zeros(1, 2, 1, 256), torch.device("cuda", 0)
    with pytest.raises(BackendUnavailable, match="it serves cuda tensors, not cpu") as raised:
        ops.attention(q, q, q, backend="cuda")
    assert type(raised.value) is BackendUnavailable
    with pytest.raises(BackendUnavailable, match=r"it serves .*, not torch\.float64") as raised:
        registry._choose("attention", "cuda", gpu, torch.float64, 256)
    assert type(raised.value) is BackendUnavailable
    # Of two reasons one is the head's: were it smaller, that backend could.
    with pytest.raises(HeadTooLarge, match=r"not torch\.float32.* but q has head size 256"):
        registry._choose("attention", "cuda, triton", gpu, torch.float32, 256)


@pytest.mark.compiled
@pytest.mark.parametrize("form", ["tables", "angles"])
def test_learned_tables_are_served_by_what_differentiates_them(form: str, monkeypatch: pytest.MonkeyPatch):
    q, w, table = torch.ones(1, 2, 1, 4), torch.ones(4), torch.ones(2, 4)
    angles = tuple(torch.ones(n, c) for n, c in ((2, 1), (1, 1), (1, 0)))
    tables = {"angles": angles} if form == "angles" else {"cos": table, "sin": table.clone()}
    learned = angles[0] if form == "angles" else table

    def call(backend: str | None = None) -> Tensor:
        return ops.qk_norm_rope(q, q, w, w, **tables, backend=backend)[0]

    fixed = call("cpu")
    learned.requires_grad_()
    with pytest.warns(BackendFallback, match="'reference'. cpu: it has no gradient of rotary tables"):
        assert torch.autograd.grad(call().sum(), learned)[0].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    for given, variable in (("cpu", ""), (None, "cpu")):
        monkeypatch.setenv(registry.VARIABLE, variable)
        with pytest.raises(BackendUnavailable, match="no gradient of rotary tables"):
            call(given)
        with torch.no_grad():
            assert torch.equal(call(given), fixed)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of them, of capability 7.5, 8.0 and 12.0, which every backend can be imported for."""
    capabilities = [(7, 5), (8, 0), (12, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    monkeypatch.setattr(registry, "kernels", lambda folder, backend: None)


def on_gpu(index: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """What a choice is made by, of a tensor on a GPU that is not there."""
    stand_in: Any = SimpleNamespace(device=torch.device("cuda", index), dtype=dtype)
    return stand_in


@pytest.mark.parametrize("operator", ["adaln_modulate", "qk_norm_rope", "attention_lse", "vsd_loss"])
def test_gpus_older_than_the_kernels_fall_back_and_say_so_once(operator: str, gpus: None):
    refused = "it serves GPUs of compute capability 8.0 and later, not 7.5"
    with pytest.warns(BackendFallback) as said:
        plain = "tiled" if operator == "attention_lse" else "reference"
        assert registry.pick(operator, None, on_gpu(0)) == plain
    assert {str(one.message).split(". ", 1)[1] for one in said} == {
        f"{backend}: {refused}" for backend in ("cuda", "triton")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.pick(operator, None, on_gpu(0, torch.float16))
        # The GPU beside it is another one.
        assert registry.pick(operator, None, on_gpu(1)) in ("cuda", "triton")
        assert registry.pick(operator, None, on_gpu(2)) in ("cuda", "triton")
    for backend in ("cuda", "triton"):
        with pytest.raises(BackendUnavailable, match=f"{backend}: {refused}"):
            registry.pick(operator, backend, on_gpu(0))
        assert registry.pick(operator, backend, on_gpu(2)) == backend


def test_the_compiled_kernels_are_for_the_least_capability_and_leave_ptx_for_later_gpus():
    """CMake leaves PTX of an architecture unless its name ends in "-real"."""
    text = (Path(__file__).parents[2] / "CMakeLists.txt").read_text(encoding="utf-8")
    (archs,) = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]+)\)", text)
    assert archs.split() == [str(arch) for arch in ARCHS]
    assert registry.CUDA.least_capability == divmod(min(ARCHS), 10)


def test_a_misspelt_backend_is_named():
    with pytest.raises(ValueError, match="'cup' is unknown: choose among"):
        call("cup")


def test_compiled_graphs_contain_no_raw_pointers():
    with torch.random.fork_rng():
        x, m = torch.randn(1, 3, 8), torch.randn(1, 8)
    compiled = torch.compile(ops.adaln_modulate, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, m, m), ops.adaln_modulate(x, m, m))


def test_importing_the_operators_imports_neither_torch_nor_the_trainer():
    code = (
        "import sys; from cosmos_distill import ops; assert 'torch' not in sys.modules; ops.adaln_modulate; "
        "assert 'torch' in sys.modules; print([m for m in ('megatron', 'tyro', 'rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_takes_a_backend_is_what_is_said_to():
    """Of the operators in the package's table: all but those named below it."""
    table, rest = (ops.__doc__ or "").rsplit("====\n", 1)
    named = [set(re.findall(r"``(\w+)``", text)) for text in (table, rest)]
    taking = {name for name in named[0] if "backend" in inspect.signature(getattr(ops, name)).parameters}
    assert taking == named[0] - named[1]


def test_every_public_operator_is_reachable():
    for name in ("adaln_modulate", "gated_residual_adaln", "qk_norm_rope", "attention"):
        assert callable(getattr(ops, name)) and name in dir(ops)
    with pytest.raises(AttributeError, match="no attribute 'adaln_modulates'"):
        _ = ops.adaln_modulates


def test_a_choice_holds_within_its_block_only(monkeypatch: pytest.MonkeyPatch):
    x = torch.zeros(1, 2, 4)

    def picked() -> str:
        return registry.pick("attention", None, x)

    with pytest.raises(RuntimeError, match="inside"), registry.insisting("reference"):
        assert picked() == "reference"
        with registry.insisting(None):
            assert picked() == "reference"
        raise RuntimeError("inside")
    assert picked() == "sdpa" and registry.VARIABLE not in os.environ
    monkeypatch.setenv(registry.VARIABLE, "reference")
    with registry.insisting("sdpa"):
        assert picked() == "sdpa"
    assert picked() == "reference"


@pytest.mark.parametrize(
    ("name", "backend", "largest"),
    [("attention", "triton", 128), ("attention", "cuda", 128), ("qk_norm_rope", "cuda", 2048)],
)
def test_heads_too_large_are_refused_where_no_public_function_did(name: str, backend: str, largest: int):
    """Of those who call the registered operator, as a compiled graph does."""
    x, weight, row = torch.zeros(1, 2, 1, largest + 8), torch.zeros(largest + 8), torch.zeros(1, 2, 1)
    lse = row.transpose(1, 2)
    calls = {
        "attention": ((x, x, x, 1.0), (x, None, x, x, x, x, lse, 1.0, 0b111)),
        "qk_norm_rope": (
            (x, x, weight, weight, None, None, [], False, 1e-6),
            (x, x, x, x, weight, weight, row, row, None, None, [], False, 0b1111),
        ),
    }[name]
    for suffix, arguments in zip(("", "_backward"), calls, strict=True):
        operator = getattr(torch.ops.cosmos_distill, name + suffix)
        with pytest.raises(ValueError, match=f"{backend}: .*up to {largest} channels, but q has head size"):
            operator(*arguments, backend)


def test_backends_of_an_operator_are_known_before_its_first_use():
    code = (
        "import torch; from cosmos_distill.ops import registry\n"
        "print(registry.pick('adaln_modulate', 'reference', torch.zeros(1, 2, 4)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "reference", run.stderr

"""Every Triton kernel compiles for A100, H100 and B200 and stays within what they have, without having one.

Every configuration is compiled for H100, odd lengths, heads of 64, 5120 channels, fp32 and fp16 among them;
for the other two those that multiply matrices, which each architecture has instructions of its own for, and
one of each other kernel, whose code is the same but for addresses. Kernels must also hold the instructions
they were written for. ``make bench`` compiles everything for all three.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from benchmarks.gpu.devices import DEVICES
from benchmarks.gpu.gates import complaints
from benchmarks.gpu.resources import Resources, is_fp64, parse
from benchmarks.gpu.triton_aot import MODULES, Failure, compile_kernels, to_compile

needs_triton = pytest.mark.needs("triton")


WHOLE = (90,)
"""Architectures for which every configuration is compiled."""


@pytest.fixture(scope="module")
def planted() -> list[Resources | Failure]:
    return compile_kernels(["tests.ops.gpu.planted"], whole=())


@pytest.fixture(scope="module")
def kernels() -> list[Resources | Failure]:
    return compile_kernels(whole=WHOLE)


@needs_triton
def test_every_kernel_compiles_within_the_limits(kernels: list[Resources | Failure]) -> None:
    wrong = [f"{one.label}: {one.error}" for one in kernels if isinstance(one, Failure)]
    for one in kernels:
        if isinstance(one, Resources):
            wrong += [f"{one.label}: {complaint}" for complaint in complaints(one)]
    assert not wrong, "\n".join(wrong)


@needs_triton
def test_every_operator_has_kernels_for_every_architecture(kernels: list[Resources | Failure]) -> None:
    archs: dict[str, set[int]] = {}
    for one in kernels:
        assert isinstance(one, Resources), one
        archs.setdefault(one.operator, set()).add(one.arch)
    assert len(archs) >= len(MODULES)
    assert all(found == set(DEVICES) for found in archs.values()), archs


@needs_triton
@pytest.mark.parametrize("arch", DEVICES)
def test_configurations_far_from_the_main_one_are_compiled(
    kernels: list[Resources | Failure], arch: int
) -> None:
    found = " ".join(one.config for one in kernels if isinstance(one, Resources) and one.arch == arch)
    wanted = {"fp32", "fp16", "one token less", "head size 64", "BATCH_AXIS=0"}
    if arch in WHOLE:
        wanted |= {"D=5120", "lse unused", "INTERLEAVED=True"}
    assert {text for text in wanted if text in found} == wanted


@needs_triton
@pytest.mark.parametrize("arch", DEVICES)
def test_what_is_compiled_in_fp16(kernels: list[Resources | Failure], arch: int) -> None:
    def names(dtype: str) -> set[str]:
        mine = (one for one in kernels if isinstance(one, Resources) and one.arch == arch)
        return {one.kernel for one in mine if f" {dtype}" in one.config}

    products = {"attention_forward", "attention_dkdv", "attention_dq"}
    # Partial sums are fp32 whatever was summed.
    assert names("fp16") == (names("bf16") - {"sum_partials"} if arch in WHOLE else products)


@needs_triton
@pytest.mark.parametrize(
    ("operator", "arch", "said"),
    [
        ("double_constant", 90, "64-bit floats"),
        ("spilling", 90, "spills"),
        ("shared", 80, "shared memory"),
        ("shared", 90, "shared memory"),
        ("shared", 100, "shared memory"),
        ("absent", 90, "lacks the instructions it was written for: HGMMA"),
        ("attention_planted", 90, "Ampere's matrix instructions"),
    ],
)
def test_planted_kernels_are_refused_for_their_one_fault(
    planted: list[Resources | Failure], operator: str, arch: int, said: str
) -> None:
    (one,) = (k for k in planted if isinstance(k, Resources) and (k.operator, k.arch) == (operator, arch))
    (complaint,) = complaints(one)
    assert said in complaint


@needs_triton
@pytest.mark.parametrize("operator", ["clean", "matrix"])
def test_planted_kernels_without_fault_pass(planted: list[Resources | Failure], operator: str) -> None:
    good = [k for k in planted if isinstance(k, Resources) and k.operator == operator]
    assert {k.arch for k in good} == set(DEVICES)
    assert [complaints(k) for k in good] == [[], [], []]
    assert all(k.config.startswith("planted, BLOCK=1024") for k in good) or operator == "matrix"


@needs_triton
def test_results_keep_the_order_of_the_cases(planted: list[Resources | Failure]) -> None:
    found = [one.operator if isinstance(one, Resources) else "unknown_name" for one in planted]
    assert list(dict.fromkeys(found)) == [
        "clean",
        "double_constant",
        "spilling",
        "shared",
        "absent",
        "attention_planted",
        "matrix",
        "unknown_name",
    ]
    assert [one.arch for one in planted[:3] if isinstance(one, Resources)] == list(DEVICES)


def test_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first case of each operator's kernel, or all of them; what gives the same machine code once."""

    def case(
        operator: str, code: str, warps: int = 4, alike: bool = False, matrix: bool = False
    ) -> SimpleNamespace:
        kernel, source = SimpleNamespace(__name__="kernel"), SimpleNamespace(hash=lambda: code)
        return SimpleNamespace(
            operator=operator,
            kernel=kernel,
            archs=(80, 90),
            source=lambda: source,
            num_warps=warps,
            num_stages=2,
            alike=alike,
            must_contain={80: ("HMMA",)} if matrix else {},
        )

    first, wider, other, same = case("a", "x"), case("a", "x", warps=8), case("a", "y"), case("b", "x")
    fp16, product = case("c", "z", alike=True), case("a", "p", matrix=True)
    cases = [first, wider, other, same, fp16]
    monkeypatch.setitem(sys.modules, "cases", SimpleNamespace(aot_cases=lambda: cases))  # type: ignore[arg-type]
    main = [(one, arch) for one in (first, same) for arch in (80, 90)]
    every = [(one, arch) for one in (first, wider, other) for arch in (80, 90)]
    assert list(to_compile(["cases"], whole=(), alike=())) == main
    assert list(to_compile(["cases"], whole=(80, 90), alike=())) == every
    assert list(to_compile(["cases"], whole=(80, 90), alike=(90,))) == [*every, (fp16, 90)]
    cases.append(product)  # of its own instructions on one of the two
    assert list(to_compile(["cases"], whole=(), alike=())) == [*main, (product, 80)]
    cases.remove(product)
    mixed = [(first, 80), (first, 90), (wider, 90), (other, 90), (same, 80)]
    assert list(to_compile(["cases"], whole=(90,), alike=())) == mixed


@needs_triton
def test_a_kernel_that_does_not_compile_is_named(planted: list[Resources | Failure]) -> None:
    (failure,) = (one for one in planted if isinstance(one, Failure))
    assert "unknown_name" in failure.label and "nowhere" in failure.error


def launched(**changes: int) -> Resources:
    figures = {"threads": 128, "registers": 64, "stack": 0, "shared": 0} | changes
    return Resources(operator="o", kernel="k", config="c", arch=90, **figures)


def test_limits_are_inclusive() -> None:
    assert complaints(launched(stack=16, shared=227 * 1024, threads=256, registers=255)) == []
    assert "spills" in complaints(launched(stack=24))[0]
    assert "shared memory" in complaints(launched(shared=227 * 1024 + 1))[0]
    assert "cannot be launched" in complaints(launched(threads=512, registers=129))[0]


def test_a_release_known_to_spill_more_is_held_to_what_it_spills() -> None:
    figures = {"operator": "attention_backward", "kernel": "attention_dkdv", "arch": 90}
    older = replace(launched(stack=80), compiler="Triton 3.6", **figures)
    assert complaints(older) == []
    assert "at most 80" in complaints(replace(older, stack=88))[0]
    for other in ({"compiler": "Triton 3.7"}, {"arch": 100}, {"kernel": "attention_dq"}):
        assert "at most 16" in complaints(replace(older, **other))[0]


@pytest.mark.parametrize("opcode", ["DFMA", "DSETP.GT.AND", "F2F.F64.F32", "MUFU.RCP64H", "DMMA.8x8x4"])
def test_fp64_is_recognised(opcode: str) -> None:
    assert is_fp64(opcode)


@pytest.mark.parametrize(
    "opcode", ["FFMA", "DEPBAR.LE", "LDG.E.64", "HGMMA.64x64x16.F32.BF16", "IMAD.WIDE.U32"]
)
def test_other_instructions_are_not_fp64(opcode: str) -> None:
    assert not is_fp64(opcode)


def test_reports_of_the_tools_are_read_whole_or_refused() -> None:
    usage = "Function k:\n  REG:40 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:568 TEXTURE:0\n"
    listing = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/              @UP1 STG.E.64 desc[UR4][R2.64], R4 ;
        /*0030*/                   STL [R1], R4 ;
        /*0040*/                   EXIT ;
"""
    report = parse(usage, listing)
    assert (report.registers, report.stack, report.shared) == (40, 8, 1024)
    assert report.opcodes.total() == 5 and report.count("STL") == 1 and report.access_bits == 128
    with pytest.raises(ValueError, match="one kernel"):
        parse(usage + usage, listing)
    with pytest.raises(ValueError, match="no instruction"):
        parse(usage, "nvdisasm: unknown architecture")

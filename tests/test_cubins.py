"""Every kernel variant compiles to a cubin for every architecture, and its machine code keeps to the budget.

128-bit loads and stores for every array, no spills, no float64 in float32 kernels, at most 64 registers, no contraction.
NVRTC and the disassembler need no GPU. How a cubin is read is in shim.sass.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

import gpuopt
from gpuopt import rules
from gpuopt.compiler import nvrtc, to_cuda
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import Program
from gpuopt.compiler.names import safe
from gpuopt.errors import CompileError
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES
from gpuopt.launch.table import CHUNK, THREADS
from gpuopt.source import program
from shim.sass import DOUBLE, LOCAL, disassemble, machine, prefetch, tool
from shim.variants import EVERYTHING, VARIANT_LABELS, VARIANTS, lively, richest

pytestmark = pytest.mark.once
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
REGISTERS = {4: 64, 3: 80, 2: 128}  # a thread's, at so many blocks a multiprocessor

EVERYWHERE = {
    f"{name}-{dtype}-{arch}": (program(name, param_dtype=dtype, **richest(name)), arch)
    for name, dtype, arch in product(rules.NAMES, PARAMETER_DTYPES, ARCHITECTURES)
}
VARIED = {
    f"{label}-float32": program(name, **hyper) for label, (name, hyper) in zip(VARIANT_LABELS, VARIANTS, strict=True)
}
for name in rules.NAMES:
    VARIED[f"{name}-mixed"] = program(name, param_dtype="float32", grad_dtype="bfloat16", **richest(name))
    for dtype in ("float32", "bfloat16", "float64"):
        hyper = richest(name) | EVERYTHING
        VARIED[f"{name}-all-{dtype}"] = program(name, param_dtype=dtype, mask=True, grad_scale=2.0, **hyper)
    for dtype in ("float32", "bfloat16") if rules.get(name).states else ():
        for label, hyper in (("", lively(name)), ("-all", richest(name) | EVERYTHING)):
            made = program(name, param_dtype=dtype, state_format="bfloat16", mask=bool(label), **hyper)
            VARIED[f"{name}-state16-{dtype}{label}"] = made
for dtype in PARAMETER_DTYPES:
    VARIED[f"adamw-mask-{dtype}"] = program("adamw", param_dtype=dtype, mask=True)
SUMS = sorted({*product(PARAMETER_DTYPES, ["sm_90"]), *product(["float32"], ARCHITECTURES)})
KERNELS = EVERYWHERE | {f"{label}-sm_90": (made, "sm_90") for label, made in VARIED.items()}


@pytest.fixture(scope="module", autouse=True)
def compilers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """NVRTC and the disassembler at work on all chosen kernels, with an empty cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUOPT_CACHE", "0")
        for item in request.session.items:
            kernel = getattr(item, "callspec", None) and item.callspec.params.get("kernel")
            if kernel:
                prefetch(to_cuda.update_source(kernel[0]), kernel[1])
        yield


def wide_accesses(made: Program, written: bool) -> int:
    """128-bit accesses that one turn of the packed loop needs: every role but a mask of single bytes."""
    roles = [r for r in made.roles if r.written or not written]
    return sum(made.lanes * STORAGES[r.storage].itemsize // 16 for r in roles if r.storage != "bool")


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
def test_budget(kernel: tuple[Program, str]) -> None:
    made, arch = kernel
    found = machine(to_cuda.update_source(made), arch)
    assert found.registers <= REGISTERS[to_cuda.blocks_per_sm(made)]
    assert found.stack == found.local == 0 and not found.found(LOCAL)
    assert found.count(r"LDG\..*128") >= wide_accesses(made, False)
    assert found.count(r"STG\..*128") >= wide_accesses(made, True)
    if made.compute == "float32":
        assert not found.found(DOUBLE)


def test_only_float64_and_heavy_kernels_get_more_than_64_registers() -> None:
    """Heavy: more arrays, scalars and words of random bits than to_cuda.MANY, or such words alone; see blocks_per_sm."""
    for made, _ in KERNELS.values():
        heavy = len(made.roles) + len(made.row) + made.streams > to_cuda.MANY[made.lanes]
        reasons = (made.compute == "float64") + heavy + bool(made.streams)
        assert 4 - reasons <= to_cuda.blocks_per_sm(made) <= 4 - bool(reasons)


@pytest.mark.parametrize(("dtype", "arch"), SUMS)
def test_sums(dtype: str, arch: str) -> None:
    found = machine(to_cuda.sums_source(dtype, STORAGES[dtype].compute), arch)
    assert found.count(r"LDG\..*128") >= 1 and found.count(r"BAR\.") >= 1
    assert found.stack == found.local == 0 and found.registers <= 64
    ahead = found.run(r"LDG\..*128", r"[FD](ADD|MUL)\b")  # before anything is measured
    assert ahead >= min(8, CHUNK * STORAGES[dtype].itemsize // (16 * THREADS)), ahead


@pytest.mark.parametrize("name", rules.NAMES)
def test_prepare_computes_in_float64(name: str) -> None:
    made = program(name, max_grad_norm=1.0, **richest(name))
    found = machine(to_cuda.prepare_source(made, row_inputs(made)), "sm_90")
    assert found.count("DMUL") and found.count("DADD") and found.count(r"BAR\.")


# ------------------------------------------------------------------------------------------------ contraction


@gpuopt.rule()
def plain(p, g, *, lr):
    """No division, so that the compiler has no reason of its own for an FMA."""
    p = p - lr * g
    return p


def contracting(source: str, arch: str) -> bytes:
    """As compile_cubin, but free to fuse products and sums."""
    from cuda.core import Program as CudaProgram
    from cuda.core import ProgramOptions

    options = ProgramOptions(arch=arch, **nvrtc.OPTIONS | {"fma": True})
    return bytes(CudaProgram(source, "c++", options=options).compile("cubin").code)


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
@pytest.mark.parametrize(("dtype", "letter"), [("float32", "F"), ("bfloat16", "F"), ("float64", "D")])
def test_products_and_sums_are_not_fused(dtype: str, letter: str, arch: str) -> None:
    source = to_cuda.update_source(program(plain, param_dtype=dtype))
    found, fused = machine(source, arch), disassemble(contracting(source, arch))
    assert found.count(f"{letter}MUL") and found.count(f"{letter}ADD")
    assert not found.found(f"{letter}FMA") and not found.found(r"F(ADD|MUL)\..*FTZ")
    assert fused.found(f"{letter}FMA"), "the check cannot see an FMA"


@pytest.mark.parametrize("dtype", PARAMETER_DTYPES)
@pytest.mark.parametrize("name", ["gd", "sgd", "dgd", "lion"])
def test_rules_without_division_have_no_fma(name: str, dtype: str) -> None:
    found = machine(to_cuda.update_source(program(name, param_dtype=dtype, **richest(name))), "sm_90")
    assert not found.found("[FD]FMA")


# ------------------------------------------------------------------------------------------------ the check itself


def test_a_spill_would_be_seen() -> None:
    made = program("adamw", param_dtype="bfloat16", **richest("adamw"))
    source = to_cuda.update_source(made)
    source = source.replace(f"(THREADS, {to_cuda.blocks_per_sm(made)})", "(THREADS, 8)")
    found = machine(source, "sm_90")
    assert found.registers <= 32 and found.stack > 0 and found.found(LOCAL)


def test_float64_arithmetic_would_be_seen() -> None:
    source = to_cuda.update_source(program(plain))
    wide = source.replace(f"row[0] * {safe('g')}", f"double(row[0]) * {safe('g')}")
    assert wide != source
    assert machine(wide, "sm_90").found(DOUBLE) >= {"DMUL", "DADD"}
    assert not machine(source, "sm_90").found(DOUBLE)


@pytest.mark.parametrize("dtype", PARAMETER_DTYPES)
def test_element_by_element_access_would_be_seen(dtype: str) -> None:
    """Without packs just those wide accesses are gone that the arrays need (the table is read by wide ones too)."""
    made = program("adamw", param_dtype=dtype, mask=True)
    source = to_cuda.update_source(made)
    single = source.replace("update_at<U, N>(at, first + i, s);", ";")
    assert single != source
    packed, alone = machine(source, "sm_90"), machine(single, "sm_90")
    assert alone.count(r"STG\..*128") == 0 and packed.count(r"STG\..*128") == wide_accesses(made, True)
    assert packed.count(r"LDG\..*128") - alone.count(r"LDG\..*128") == wide_accesses(made, False)


def test_a_mistake_names_the_line_of_the_rule() -> None:
    source = to_cuda.update_source(program(plain)).replace(f"row[0] * {safe('g')}", "row[0] * nothing")
    with pytest.raises(CompileError, match=rf'{Path(__file__).name}.*\(?{plain.tree.body[0].line}\)?.*"?nothing'):
        nvrtc.compile_cubin(source, "sm_90")


@pytest.mark.parametrize("part", ["update", "sums", "prepare"])
def test_nvcc_takes_the_source_as_it_is(part: str, tmp_path: Path) -> None:
    file = tmp_path / "kernel.cu"
    file.write_text(gpuopt.kernel_source("adamw", part=part, max_grad_norm=1.0))
    command = [str(tool("nvcc")), "-cubin", "-arch=sm_90", "-x", "cu", str(file), "-o", str(tmp_path / "k.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = disassemble((tmp_path / "k.cubin").read_bytes())
    assert found.count(r"LDG\..*128") >= (part != "prepare") and found.stack == 0

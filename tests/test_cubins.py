"""Every kernel variant compiles to a cubin for every architecture, and its machine code keeps to the budget.

128-bit loads and stores for every array, no spills, no float64 in float32 kernels, at most 64 registers, no contraction.
NVRTC and the disassembler need no GPU. How a cubin is read is in shim.sass.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import gpuopt
from covering import marked, one
from gpuopt import rules
from gpuopt.compiler import nvrtc, to_cuda, to_cuda_sums
from gpuopt.compiler.host import row_inputs
from gpuopt.compiler.lower import gradient_sums
from gpuopt.compiler.names import safe
from gpuopt.compiler.parts import Layout, Pass, PerMatrix, PerTensor
from gpuopt.compiler.program import Program
from gpuopt.errors import CompileError
from gpuopt.formats import OF_PARAMETERS
from gpuopt.formats.dtypes import PARAMETER_DTYPES, STORAGES
from gpuopt.launch.table import BLOCK_COLUMNS, BLOCK_ROWS, CHUNK, SHARED_BYTES, THREADS, WARP
from gpuopt.source import program
from launches import PREPARED
from shim.sass import DOUBLE, LOCAL, disassemble, machine, prefetch, tool
from shim.variants import EVERYTHING, VARIANT_LABELS, VARIANTS, lively, richest
from summing_rules import HYPER, RULES

pytestmark = pytest.mark.once
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")
REGISTERS = {4: 64, 3: 80, 2: 128}  # a thread's, at so many blocks a multiprocessor


def check_walk(made: Program) -> None:
    """The update of a program keeps to its registers, to single precision and to packed accesses."""
    found = machine(to_cuda.update_source(made), "sm_90")
    assert found.registers <= REGISTERS[to_cuda.blocks_per_sm(made)]
    assert found.stack == found.local == 0 and not found.found(LOCAL) and not found.found(DOUBLE)
    least = (4, 2) if made.in_blocks else (wide_accesses(made, False), wide_accesses(made, True))
    assert found.count(r"LDG\..*128") >= least[0] and found.count(r"STG\..*128") >= least[1]


def last(name: str, **options: Any) -> Program:
    """The program of a rule, or the last of its stages where it multiplies matrices."""
    return program(name, **options).parts[-1]


def some_of(name: str) -> list[tuple[str, str]]:
    """The dtypes and architectures of a rule's richest kernel in the ordinary suite."""
    pairs = [*product(PARAMETER_DTYPES, ARCHITECTURES)]
    turn = 7 * rules.NAMES.index(name)  # no divisor of their number: neighbours together meet all of them
    return pairs if name == "adamw" else [pairs[k % len(pairs)] for k in (turn, turn + 11)]


EVERYWHERE = {
    f"{name}-{dtype}-{arch}": (last(name, param_dtype=dtype, **richest(name)), arch)
    for name, dtype, arch in product(rules.NAMES, PARAMETER_DTYPES, ARCHITECTURES)
}
VARIED = {
    f"{label}-float32": last(name, **hyper) for label, (name, hyper) in zip(VARIANT_LABELS, VARIANTS, strict=True)
}
for name in rules.NAMES:
    VARIED[f"{name}-mixed"] = last(name, param_dtype="float32", grad_dtype="bfloat16", **richest(name))
    for dtype in ("float32", "bfloat16", "float64"):
        hyper = richest(name) | EVERYTHING
        VARIED[f"{name}-all-{dtype}"] = last(name, param_dtype=dtype, mask=True, grad_scale=2.0, **hyper)
    for dtype in ("float32", "bfloat16") if rules.get(name).states else ():
        for label, hyper in (("", lively(name)), ("-all", richest(name) | EVERYTHING)):
            made = last(name, param_dtype=dtype, state_format="bfloat16", mask=bool(label), **hyper)
            VARIED[f"{name}-state16-{dtype}{label}"] = made
for dtype in PARAMETER_DTYPES:
    VARIED[f"adamw-mask-{dtype}"] = last("adamw", param_dtype=dtype, mask=True)
    VARIED[f"adamw-bounds-{dtype}"] = last("adamw", param_dtype=dtype, mask=True, bounds=True)
for kept in OF_PARAMETERS:
    for name, state_format in (("adamw", "float32"), ("adamw", "bfloat16"), ("lion", "bfloat16"), ("sgd", "float32")):
        for dtype in ("bfloat16", "float16"):
            kinds = {"param_dtype": dtype, "param_format": kept, "state_format": state_format}
            VARIED[f"{name}-{kept}-{state_format}-{dtype}"] = last(name, **kinds, **lively(name))
DECAYING = {"mask": True, "weight_decay_mode": "cautious", **EVERYTHING}
VARIED |= {f"adamw-cautious-{d}": last("adamw", param_dtype=d, **DECAYING) for d in ("float32", "bfloat16", "float64")}
# What stands before a product of matrices.
VARIED |= {
    f"{name}-before-{dtype}": made.parts[0]
    for name, dtype in product(rules.NAMES, ("float32", "bfloat16"))
    if (made := program(name, param_dtype=dtype, **richest(name))).stages
}
# Of each rule its richest kernel, which has all arrays and scalars that a variant of it has: one with fewer flags needs no more
# registers and no other accesses. On every architecture in every dtype that of AdamW alone, of others on some. Options beside it
# and formats not in every dtype: what is stored has the same width in float16 and bfloat16.
ORDINARY = {f"{name}-{d}-{a}" for name in rules.NAMES for d, a in some_of(name)}
ORDINARY |= {f"adamw-{k}-sm_90" for k in ("mask-float32", "mask-bfloat16", "bounds-float64", "bounds-float16")}
ORDINARY |= {f"{k}-sm_90" for k in VARIED if k.split("-")[1] in OF_PARAMETERS and k.endswith("-bfloat16")}
for (
    name
) in rules.NAMES:  # besides: one set of options, one kind of rounded states, and one dtype before products of matrices
    for begin in ((f"{name}-all-", f"{name}-mixed"), f"{name}-state16-", f"{name}-before-"):
        ORDINARY |= {f"{label}-sm_90" for label in one(name, [k for k in VARIED if k.startswith(begin)])}
# Rules that sum: those of the library in one dtype on one architecture each, and those that have every kind of sum between them.
SUMMING = {
    f"{name}-{dtype}-{arch}": (made, arch)
    for name, dtype, arch in product(rules.NAMES, PARAMETER_DTYPES, ARCHITECTURES)
    if (made := EVERYWHERE[f"{name}-{dtype}-{arch}"][0]).cuts
}
OF_SUMS = [
    label
    for name in rules.NAMES
    for dtype, arch in one(name, list(product(PARAMETER_DTYPES, ARCHITECTURES)))
    if (label := f"{name}-{dtype}-{arch}") in SUMMING
]
for name, rule in RULES.items():
    for (dtype, grad), arch in product([*((d, d) for d in PARAMETER_DTYPES), ("float32", "bfloat16")], ARCHITECTURES):
        made = program(rule, param_dtype=dtype, grad_dtype=grad, **HYPER[name])
        SUMMING[f"{name}-{dtype}{'' if grad == dtype else '-' + grad}-{arch}"] = made, arch
OF_SUMS += [f"trusting-{d}" for d in ("float32-sm_90", "bfloat16-sm_80", "float64-sm_75")]
OF_SUMS += [f"lined-{d}" for d in ("float32-sm_90", "float16-sm_80", "float32-bfloat16-sm_120", "float64-sm_75")]
OF_SUMS += [f"distant-{d}" for d in ("float32-sm_120", "float32-bfloat16-sm_90", "float64-sm_100")]
SUMS = sorted({*product(PARAMETER_DTYPES, ["sm_90"]), *product(["float32"], ARCHITECTURES)})
KERNELS = EVERYWHERE | {f"{label}-sm_90": (made, "sm_90") for label, made in VARIED.items()}


@pytest.fixture(scope="module", autouse=True)
def compilers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """NVRTC and the disassembler at work on all chosen kernels, with an empty cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPUOPT_CACHE", "0")
        for item in request.session.items:
            given = getattr(item, "callspec", None) and item.callspec.params
            if given and "kernel" in given:
                prefetch(to_cuda.update_source(given["kernel"][0]), given["kernel"][1])
            if given and "summing" in given:
                for source in passes_before(given["summing"][0]):
                    prefetch(source, given["summing"][1])
        yield


def passes_before(made: Program) -> list[str]:
    """The units of all that comes before the update."""
    between = {PerTensor: to_cuda_sums.per_tensor_source, PerMatrix: to_cuda_sums.per_matrix_source}
    return [
        to_cuda_sums.reduce_source(made.layout_of(step), step) if isinstance(step, Pass) else between[type(step)](step)
        for step in made.schedule
    ]


def wide_accesses(made: Program, written: bool) -> int:
    """128-bit accesses that one turn of the packed loop needs: every role that is read or written but a mask of single bytes."""
    roles = [made.roles[k] for k in (made.update.writes if written else made.update.reads)]
    return sum(made.lanes * STORAGES[r.storage].itemsize // 16 for r in roles if r.storage != "bool")


@pytest.mark.parametrize("kernel", marked(KERNELS, ORDINARY))
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
    """Heavy: more arrays, scalars and words of random bits than to_cuda.MANY, such words alone, or numbers of rows; see
    blocks_per_sm.
    """
    for made, _ in KERNELS.values():
        numbers = len(made.row) + len(made.update.values)
        heavy = len(made.roles) + numbers + made.streams > to_cuda.MANY[made.lanes]
        reasons = (made.compute == "float64") + heavy + bool(made.streams) + bool(made.update.vectors)
        assert max(2, 4 - reasons) <= to_cuda.blocks_per_sm(made) <= 4 - bool(reasons)


def check_reduce(layout: Layout, cut: Pass, arch: str) -> None:
    """A pass that sums: 128-bit accesses to all that it reads and stores, as many loads on their way as one lane has, no spill."""
    found = machine(to_cuda_sums.reduce_source(layout, cut), arch)
    assert found.count(r"BAR\.") >= 1 and found.stack == found.local == 0 and not found.found(LOCAL)
    assert found.registers <= 65536 // (THREADS * to_cuda_sums.reduce_blocks(layout, cut))
    sizes = [STORAGES[layout.roles[k].storage].itemsize for k in cut.reads]
    pack = sum(layout.lanes * size // 16 or 1 for size in sizes)  # loads of a pack of every array
    steps = BLOCK_COLUMNS // (WARP * layout.lanes) if cut.along else CHUNK // (THREADS * layout.lanes)
    assert found.count(r"LDG\..*128") >= sum(layout.lanes * size // 16 for size in sizes)
    stored = [STORAGES[layout.roles[k].storage].itemsize for k in cut.writes]
    assert found.count(r"STG\..*128") >= sum(layout.lanes * size // 16 for size in stored)
    ahead = found.run(r"LDG\..*128", r"[FD](ADD|MUL)\b")  # before anything is measured
    assert ahead >= pack * min(steps, cut.ahead), ahead
    if layout.compute == "float32":  # partials are float64: converted once a chunk, never computed with
        assert found.found(DOUBLE) <= {"F2F.F64.F32"}
        assert found.count(DOUBLE) <= 2 * len(cut.sums) or cut.along  # whose loop over columns is unrolled


@pytest.mark.parametrize(("dtype", "arch"), SUMS)
def test_sums(dtype: str, arch: str) -> None:
    check_reduce(*gradient_sums(dtype, STORAGES[dtype].compute), arch)


@pytest.mark.parametrize("summing", marked(SUMMING, OF_SUMS))
def test_passes_before_the_update(summing: tuple[Program, str]) -> None:
    """Of rules that sum. What is done once a tensor is float64 and a block's work: as many registers as there are, but no spill."""
    made, arch = summing
    for step, source in zip(made.schedule, passes_before(made), strict=True):
        if isinstance(step, Pass):
            check_reduce(made.layout_of(step), step, arch)
        found = machine(source, arch)
        # Once a matrix, two addresses may be put aside while the function is called that divides or takes roots in float64.
        assert found.stack <= (16 if isinstance(step, PerMatrix) else 0) and (found.stack or not found.found(LOCAL))
        assert found.registers <= 65536 // THREADS


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sums_over_all_tensors(arch: str) -> None:
    found = machine(to_cuda_sums.all_tensors_source(), arch)
    assert found.stack == found.local == 0 and found.registers <= 65536 // THREADS
    assert found.count("DADD") and found.count(r"BAR\.") >= 4


@pytest.mark.parametrize("name", PREPARED)
def test_prepare_computes_in_float64(name: str) -> None:
    made = last(name, **{"max_grad_norm": 1.0, **richest(name)})
    found = machine(to_cuda.prepare_source(made, row_inputs(made)), "sm_90")
    assert found.count("DMUL") and found.count("DADD") and not found.count(r"BAR\.")  # no lane waits for another


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
    found = machine(to_cuda.update_source(last(name, param_dtype=dtype, **richest(name))), "sm_90")
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
    single = source.replace("update_at<U, N>(at, slots, first + i, s);", ";")
    assert single != source
    packed, alone = machine(source, "sm_90"), machine(single, "sm_90")
    assert alone.count(r"STG\..*128") == 0 and packed.count(r"STG\..*128") == wide_accesses(made, True)
    assert packed.count(r"LDG\..*128") - alone.count(r"LDG\..*128") == wide_accesses(made, False)


def test_a_mistake_names_the_line_of_the_rule() -> None:
    source = to_cuda.update_source(program(plain)).replace(f"row[0] * {safe('g')}", "row[0] * nothing")
    with pytest.raises(CompileError, match=rf'{Path(__file__).name}.*\(?{plain.tree.body[0].line}\)?.*"?nothing'):
        nvrtc.compile_cubin(source, "sm_90")


@pytest.mark.parametrize("part", ["update", "sums", "prepare", "all_tensors"])
def test_nvcc_takes_the_source_as_it_is(part: str, tmp_path: Path) -> None:
    file = tmp_path / "kernel.cu"
    file.write_text(gpuopt.kernel_source("adamw", part=part, max_grad_norm=1.0))
    command = [str(tool("nvcc")), "-cubin", "-arch=sm_90", "-x", "cu", str(file), "-o", str(tmp_path / "k.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = disassemble((tmp_path / "k.cubin").read_bytes())
    assert found.count(r"LDG\..*128") >= (part in ("update", "sums")) and found.stack == 0


def test_sums_of_rows_fit_into_shared_memory() -> None:
    """Of every rule with every option: that a kernel declares too much is said by the last step of compiling it alone."""
    batches: dict[str, set[int]] = {"float32": set(), "float64": set()}
    for label, made in (*VARIED.items(), *((label, made) for label, (made, _) in EVERYWHERE.items())):
        for cut in (cut for cut in made.cuts if cut.along):
            size = STORAGES[made.compute].itemsize
            batch = cut.batch(size)
            assert cut.sums.count("row_sum") * batch * (WARP + 1) * size <= SHARED_BYTES, label
            assert batch % (THREADS // WARP) == 0 and BLOCK_ROWS % batch == 0, label
            batches[made.compute].add(batch)
    assert batches == {"float32": {64}, "float64": {32, 64}}  # AdamP has four of them

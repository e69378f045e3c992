"""One PTX statement: decoded when its module is loaded, done for many threads at once.

Only what gpuopt's kernels (and the few of CuPy's and Numba's that its tests use) contain is known; anything else raises
NotImplementedError when it is loaded, so that nothing is ever guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from driver import arithmetic
from driver.arithmetic import BINARY, BOOL, COMPARE, JOIN, OR_NAN, TYPES, UNARY, Array, DType, dtype
from driver.memory import UNSIGNED, Fault
from driver.warps import MODES, TOGETHER

if TYPE_CHECKING:
    from driver.launch import Launch, Threads
    from driver.module import Kernel

U16, U32, U64 = np.dtype(np.uint16), np.dtype(np.uint32), np.dtype(np.uint64)
CONTROL = {"bra", "ret", "exit", "bar", "barrier", "shfl"}
ROUNDINGS = {"rn", *arithmetic.WHOLE}
SPACES = ("global", "shared", "param")
# What an instruction may say besides its types. `.approx` and `.sat` are not here: none may occur.
COMMON = {"rn", "uni", *SPACES, "lo", "hi", "wide", "to", "sync", "volatile", "relaxed", "weak", "nc", "aligned", "ftz"}
SPECIFIC = {"ld": {"v2", "v4"}, "st": {"v2", "v4"}, "setp": {*COMPARE, *JOIN}, "cvt": {*ROUNDINGS}}
SPECIFIC |= {"min": {"NaN"}, "max": {"NaN"}, "shfl": {*MODES}, "bar": {"warp"}}
NUMBER = re.compile(r"(?P<float>0[fF](?P<single>[0-9a-fA-F]{8})|0[dD](?P<double>[0-9a-fA-F]{16}))|(?P<whole>-?\w+?)U?$")
COMPUTES = ("mov", "cvt", "fma", "mad")
UNWRITTEN_HALF = 0xA5A5A5A5A5A5A5A5


def operands(text: str) -> list[Any]:
    """`%r1, {%f1, %f2}, [%rd1+4]` -> a list; braces make a list of their own."""
    found = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", text)
    return [[x.strip() for x in f[1:-1].split(",")] if f[0] == "{" else f for f in found]


class Instruction:
    """`do(launch, threads)` does it for these threads (None: all of them), unless it is `control`, which the launch does.

    guard: the predicate that decides for which, and whether it is negated. of_warp: the launch does it when whole warps are there.
    """

    def __init__(self, kernel: Kernel, statement: str) -> None:
        m = re.match(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)$", statement, re.S)
        if m is None:
            raise NotImplementedError(f"PTX: {statement}")
        self.kernel, self.text = kernel, " ".join(statement.split())
        self.guard = (m[2], bool(m[1])) if m[2] else None
        self.operands = operands(m[4])
        self.op: str = m[3].partition(".")[0]
        rest = m[3].split(".")[1:]
        self.types = [t for t in rest if t in TYPES]
        self.words = [w for w in rest if w not in TYPES]
        self.control = self.op in CONTROL
        self.of_warp = self.op == "shfl" or "warp" in self.words
        self.flush = "ftz" in self.words
        self.constants: dict[tuple[str, DType], Array] = {}
        self.do = self._function()
        bits = self.types[:1] == ["bf16"] and self.op != "cvt"  # whole numbers in NumPy
        if bits or set(self.words) - COMMON - SPECIFIC.get(self.op, set()):
            raise NotImplementedError(f"PTX: {self.text}")

    def _function(self) -> Callable[[Launch, Threads], None]:
        tables = ((BINARY, self.binary), (UNARY, self.unary), (TOGETHER, self.together))
        found = getattr(self, f"do_{self.op}", None) or next((do for table, do in tables if self.op in table), None)
        if found is None and not self.control:
            raise NotImplementedError(f"PTX: {self.text}")
        function: Callable[[Launch, Threads], None] = found or self._control
        computes = self.op in BINARY or self.op in UNARY or self.op in COMPUTES
        return self._ahead(function) if computes and isinstance(self.operands[0], str) else function

    def _ahead(self, function: Callable[[Launch, Threads], None]) -> Callable[[Launch, Threads], None]:
        """The same, which does nothing where a register has never been written: compilers compute what no thread will use, of what
        a branch that none took would have written. The result is unwritten then too, and who stores or chooses it is caught.
        """
        read = [name for name in self.operands[1:] if isinstance(name, str) and name in self.kernel.registers]

        def do(launch: Launch, threads: Threads) -> None:
            if all(name in launch.registers for name in read):
                function(launch, threads)

        return do

    def together(self, launch: Launch, threads: Threads) -> None:
        TOGETHER[self.op](self, launch, threads)

    def _control(self, launch: Launch, threads: Threads) -> None:
        raise NotImplementedError(f"PTX: {self.text}")

    def __repr__(self) -> str:
        return self.text

    # ---- operands

    def read(self, launch: Launch, operand: str, kind: DType, threads: Threads) -> Array:
        """The operand's values with this type; one element where it is a constant."""
        values = self._raw(launch, operand, kind, threads)
        return arithmetic.flushed(values) if self.flush else values

    def _raw(self, launch: Launch, operand: str, kind: DType, threads: Threads) -> Array:
        if operand in self.kernel.registers:
            values = launch.registers.get(operand)
            if values is None:
                raise Fault(f"{self}: {operand} was never written")
            values = values if threads is None else values[threads]
            if values.dtype == kind:
                return values
            if values.dtype == bool or kind.itemsize == values.dtype.itemsize:
                return values.view(kind)
            if kind.itemsize < values.dtype.itemsize and kind.kind != "f":  # the low bits of a wider register
                return values.astype(f"u{kind.itemsize}").view(kind)
            raise NotImplementedError(f"{self}: a register of another width")
        if operand[0] == "%":
            return np.ascontiguousarray(launch.special(operand, threads)).astype(f"u{kind.itemsize}").view(kind)
        found = self.constants.get((operand, kind))
        if found is None:
            found = self.constants[(operand, kind)] = self._constant(operand, kind)
        return found

    def _constant(self, operand: str, kind: DType) -> Array:
        for space in (self.kernel.shared, self.kernel.params):
            if operand in space:
                return np.array([space[operand][0]], f"u{kind.itemsize}")
        m = NUMBER.fullmatch(operand)
        if m is None:
            raise NotImplementedError(f"{self}: {operand}")
        if m["float"]:
            return np.array([int(m["single"] or m["double"], 16)], U32 if m["single"] else U64).view(kind)
        value = int(m["whole"], 0)
        if kind == BOOL:
            return np.array([value != 0])
        return np.array([value & ((1 << 8 * kind.itemsize) - 1)], f"u{kind.itemsize}").view(kind)

    def write(self, launch: Launch, register: str, values: Array, threads: Threads) -> None:
        """values as they are, widened to the register (by sign where they are signed)."""
        kind = self.kernel.registers[register]
        values = arithmetic.flushed(values) if self.flush else values
        if values.dtype != bool and values.dtype.itemsize < kind.itemsize and values.dtype.kind != "f":
            values = values.astype(f"{values.dtype.kind}{kind.itemsize}")
        if values.dtype.itemsize != kind.itemsize or (values.dtype == bool) != (kind == BOOL):
            raise NotImplementedError(f"{self}: {values.dtype} into {register}")
        values = values if values.dtype == kind else values.view(kind)
        if threads is None:
            launch.registers[register] = np.array(np.broadcast_to(values, launch.count))
            return
        target = launch.registers.get(register)
        if target is None:
            target = launch.registers[register] = np.zeros(launch.count, kind)
        target[threads] = values

    def address(self, launch: Launch, operand: str, threads: Threads) -> Array:
        """The addresses that `[%rd1+4]` stands for, one for each thread."""
        m = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if m is None:
            raise NotImplementedError(f"{self}: {operand}")
        base = self._raw(launch, m[1], self.kernel.registers.get(m[1], U64), threads).astype(np.uint64)
        moved = base + np.uint64(int(m[2] or "0", 0) % (1 << 64))
        return np.broadcast_to(moved, launch.count if threads is None else len(threads))

    def space(self) -> str:
        """Where a load or a store goes; generic addresses are global ones."""
        return next((w for w in self.words if w in SPACES), "global")

    # ---- arithmetic

    def binary(self, launch: Launch, threads: Threads) -> None:
        kind = dtype(self.types[0])
        one, other = self.operands[1:]
        b = self.read(launch, other, kind, threads)
        if self.types[1:]:  # add.f32.bf16 and the like: the first operand is widened
            half = self._raw(launch, one, U16, threads)
            wide = half.astype(np.uint32) << np.uint32(16)
            a = half.view(np.float16).astype(kind) if self.types[1] == "f16" else wide.view(np.float32)
        else:
            a = self.read(launch, one, kind, threads)
        function = (OR_NAN if "NaN" in self.words else BINARY)[self.op]
        if self.op == "mul" and kind.kind != "f":
            if "wide" in self.words:
                double = np.dtype(f"{kind.kind}{2 * kind.itemsize}")
                a, b = a.astype(double), b.astype(double)
            elif "hi" in self.words:
                function = arithmetic.high
            elif "lo" not in self.words:
                raise NotImplementedError(repr(self))
        if kind.kind == "f" and self.op == "div" and "rn" not in self.words:
            raise NotImplementedError(f"{self}: not rounded to nearest")
        self.write(launch, self.operands[0], function(a, b), threads)

    def unary(self, launch: Launch, threads: Threads) -> None:
        if self.op in ("sqrt", "rcp") and "rn" not in self.words:
            raise NotImplementedError(f"{self}: not rounded to nearest")
        a = self.read(launch, self.operands[1], dtype(self.types[0]), threads)
        self.write(launch, self.operands[0], UNARY[self.op](a), threads)

    def do_shl(self, launch: Launch, threads: Threads) -> None:
        a = self.read(launch, self.operands[1], dtype(self.types[0]), threads)
        n = self.read(launch, self.operands[2], U32, threads)
        self.write(launch, self.operands[0], arithmetic.shift(self.op == "shl", a, n), threads)

    do_shr = do_shl

    def do_fma(self, launch: Launch, threads: Threads) -> None:
        a, b, c = (self.read(launch, x, dtype(self.types[0]), threads) for x in self.operands[1:])
        self.write(launch, self.operands[0], arithmetic.fma(a, b, c), threads)

    def do_mad(self, launch: Launch, threads: Threads) -> None:
        kind = dtype(self.types[0])
        a, b, c = (self.read(launch, x, kind, threads) for x in self.operands[1:])
        if kind.kind == "f" or "lo" not in self.words:
            raise NotImplementedError(repr(self))
        self.write(launch, self.operands[0], a * b + c, threads)

    def do_bfi(self, launch: Launch, threads: Threads) -> None:
        kind = dtype(self.types[0])
        a, b = (self.read(launch, x, kind, threads) for x in self.operands[1:3])
        position, length = (int(x) for x in self.operands[3:])
        mask = kind.type(((1 << length) - 1) << position & ((1 << 8 * kind.itemsize) - 1))
        self.write(launch, self.operands[0], (b & ~mask) | ((a << kind.type(position)) & mask), threads)

    def do_prmt(self, launch: Launch, threads: Threads) -> None:
        given = [self.read(launch, x, U32, threads).astype(np.uint64) for x in self.operands[1:]]
        self.write(launch, self.operands[0], arithmetic.permuted(*given), threads)

    # ---- choices, conversions, moves

    def do_setp(self, launch: Launch, threads: Threads) -> None:
        kind = dtype(self.types[0])
        a, b = (self.read(launch, x, kind, threads) for x in self.operands[1:3])
        compare, *join = [w for w in self.words if w != "ftz"]
        value = COMPARE[compare](a, b)
        if join:
            value = JOIN[join[0]](value, self.read(launch, self.operands[3], BOOL, threads))
        self.write(launch, self.operands[0], value, threads)

    def do_selp(self, launch: Launch, threads: Threads) -> None:
        kind = dtype(self.types[0])
        chosen = self.read(launch, self.operands[3], BOOL, threads)
        wanted = [bool(np.any(chosen)), not np.all(chosen)]  # one that no thread takes need not have been written
        a, b = (
            self.read(launch, x, kind, threads) if of_any else kind.type(0)
            for x, of_any in zip(self.operands[1:3], wanted, strict=True)
        )
        self.write(launch, self.operands[0], np.where(chosen, a, b), threads)

    def do_slct(self, launch: Launch, threads: Threads) -> None:
        kind, decides = (dtype(t) for t in self.types)
        a, b = (self._raw(launch, x, kind, threads) for x in self.operands[1:3])
        chosen = self.read(launch, self.operands[3], decides, threads) >= 0
        self.write(launch, self.operands[0], np.where(chosen, a, b), threads)

    def do_mov(self, launch: Launch, threads: Threads) -> None:
        target, source = self.operands
        if isinstance(source, list):
            self.write(launch, target, self._packed(launch, source, threads), threads)
        elif isinstance(target, list):
            whole = np.ascontiguousarray(self.read(launch, source, dtype(self.types[0]), threads))
            parts = whole.view(f"u{whole.itemsize // len(target)}").reshape(-1, len(target))
            for k, register in enumerate(target):
                if register != "_":
                    self.write(launch, register, np.ascontiguousarray(parts[:, k]), threads)
        else:
            self.write(launch, target, self.read(launch, source, dtype(self.types[0]), threads), threads)

    def _packed(self, launch: Launch, source: list[str], threads: Threads) -> Array:
        """Several registers as one number, the first of them lowest."""
        kinds = [self.kernel.registers[s] for s in source]
        for register, kind in zip(source, kinds, strict=True):
            # A half that is never looked at need not have been written.
            launch.registers.setdefault(register, np.full(launch.count, UNWRITTEN_HALF, np.uint64).astype(kind))
        unsigned = [np.dtype(f"u{kind.itemsize}") for kind in kinds]
        parts = [self.read(launch, s, kind, threads) for s, kind in zip(source, unsigned, strict=True)]
        joined = np.stack(np.broadcast_arrays(*parts), axis=1).copy()
        return joined.view(f"u{int(self.types[0][1:]) // 8}").reshape(-1)

    def do_cvta(self, launch: Launch, threads: Threads) -> None:
        """Global addresses are generic addresses; no other space occurs."""
        if "global" not in self.words:
            raise NotImplementedError(repr(self))
        self.write(launch, self.operands[0], self.read(launch, self.operands[1], U64, threads), threads)

    def do_cvt(self, launch: Launch, threads: Threads) -> None:
        to, source = self.types
        kind, target = np.dtype(np.float16) if source == "f16" else dtype(source), dtype(to)
        x = self.read(launch, self.operands[1], kind, threads)
        if source == "bf16":
            kind, x = np.dtype(np.float32), (x.astype(np.uint32) << np.uint32(16)).view(np.float32)
        rounding = [w for w in self.words if w in ROUNDINGS]
        floating = to in ("f16", "f32", "f64", "bf16")
        if floating and rounding != ["rn"] and (kind.kind != "f" or target.itemsize < kind.itemsize or to == "bf16"):
            raise NotImplementedError(f"{self}: not rounded to nearest")
        if floating and rounding and rounding != ["rn"]:  # cvt.rni.f32.f32 and its like
            x = arithmetic.WHOLE[rounding[0]](x)
        if to == "bf16":
            result = arithmetic.rounded_to_bf16(x)
        elif to == "f16":
            result = np.where(x != x, np.uint16(arithmetic.NAN16), x.astype(np.float16).view(np.uint16))
        elif floating:
            result = arithmetic.canonical(x.astype(target))
        elif kind.kind == "f":
            result = arithmetic.to_whole(arithmetic.WHOLE[rounding[0]](x), target)
        else:
            result = x.astype(target)  # whole to whole: extended by the sign of the source, or cut
        self.write(launch, self.operands[0], result, threads)

    # ---- memory

    def do_ld(self, launch: Launch, threads: Threads) -> None:
        kind, targets, space = dtype(self.types[0]), self.operands[0], self.space()
        targets = targets if isinstance(targets, list) else [targets]
        address = self.address(launch, self.operands[1], threads)
        launch.touch(space, address, kind.itemsize * len(targets), False, threads, self)
        for k, register in enumerate(targets):
            raw = launch.fetch(space, address + np.uint64(k * kind.itemsize), kind.itemsize, threads)
            self.write(launch, register, raw.view(kind), threads)

    def do_st(self, launch: Launch, threads: Threads) -> None:
        kind, sources, space = dtype(self.types[0]), self.operands[1], self.space()
        sources = sources if isinstance(sources, list) else [sources]
        address = self.address(launch, self.operands[0], threads)
        launch.touch(space, address, kind.itemsize * len(sources), True, threads, self)
        for k, source in enumerate(sources):
            values = self.read(launch, source, kind, threads).view(UNSIGNED[kind.itemsize])
            at = address + np.uint64(k * kind.itemsize)
            launch.put(space, at, kind.itemsize, threads, np.broadcast_to(values, len(address)))

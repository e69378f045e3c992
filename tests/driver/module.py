"""The text of a PTX module -> its kernels: parameters, registers, shared memory, basic blocks of instructions.

    kernels = load(text)

Called by the driver when a module is loaded; a launch runs what is made here. Knows nothing of memory or threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from driver.arithmetic import DType, dtype
from driver.instructions import Instruction
from driver.memory import Fault

Places = dict[str, tuple[int, int]]  # name -> (offset, bytes)


def load(text: str, foreign: bool = False) -> dict[str, Kernel]:
    """The kernels of a module, by name. foreign: of another library, whose roundings are its own affair."""
    text = re.sub(r"//[^\n]*", "", text)
    shared = re.findall(r"\.shared \.align (\d+) \.b8 ([\w$]+)\[(\d+)\];", text)
    places, size = placed((name, int(count), int(align)) for align, name, count in shared)
    entry = r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{(.*?)\n\}"
    made = {}
    for name, params, directives, body in re.findall(entry, text, re.S):
        made[name] = Kernel(name, params, directives, body, places, -(-size // 16) * 16)
        if not foreign:
            made[name].refuse_fusible()
    return made


def placed(sizes: Iterable[tuple[str, int, int]]) -> tuple[Places, int]:
    """Each (name, bytes, alignment) one behind the other; and where they end."""
    places: Places = {}
    position = 0
    for name, size, align in sizes:
        position = -(-position // align) * align
        places[name] = (position, size)
        position += size
    return places, position


class Kernel:
    """One .entry. params, shared: name -> (offset, bytes), in order; threads: the most that a block may have."""

    def __init__(self, name: str, params: str, directives: str, body: str, shared: Places, shared_bytes: int) -> None:
        self.name, self.shared, self.shared_bytes = name, shared, shared_bytes
        self.registers: dict[str, DType] = {}
        self.labels: dict[str, int] = {}
        params = re.sub(r"\.ptr\s*(\.\w+\s*(?=\.align))?(\.align \d+)?", "", params)
        found = re.findall(r"\.param\s+(?:\.align (\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", params)
        self.params, self.param_bytes = placed(
            (n, dtype(kind).itemsize * int(count or 1), int(align or dtype(kind).itemsize))
            for align, kind, n, count in found
        )
        most = re.search(r"\.maxntid\s+(\d+)", directives)
        self.threads = int(most[1]) if most else 1024
        self.blocks = self._blocks(body)

    def _blocks(self, body: str) -> list[list[Instruction]]:
        """Basic blocks in the order of the text; labels and what follows a branch or a barrier begin one."""
        blocks: list[list[Instruction]] = [[]]
        body = re.sub(r"(?m)^\s*\.shared[^;]*;", "", body)
        # A scope of its own, `{ .reg .b32 %temp; mov.b64 {%temp, %r1}, %rd1; }`: nothing else has a register of that name.
        body = re.sub(r"\{\s*(\.reg[^;]*;\s*mov[^;]*;)\s*\}", r"\1", body)
        body = re.sub(r"\{\s*(cvt[^;{}]*;)\s*\}", r"\1", body)  # as CuPy's casts of float16 have it
        for statement in re.findall(r"\.reg[^;]*;|[$\w]+:|[^;:]+;", body):
            statement = statement.strip().rstrip(";").strip()
            if not statement or statement.startswith((".pragma", ".loc")):
                continue
            if statement.startswith(".reg"):
                self._declare(statement)
            elif statement.endswith(":"):
                if blocks[-1]:
                    blocks.append([])
                self.labels[statement[:-1]] = len(blocks) - 1
            else:
                blocks[-1].append(Instruction(self, statement))
                if blocks[-1][-1].control:
                    blocks.append([])
        return blocks

    def _declare(self, statement: str) -> None:
        """`.reg .b32 %r<5>`: the registers %r0 to %r4."""
        _, kind, names = statement.split(None, 2)
        for name in names.split(","):
            m = re.fullmatch(r"\s*(%\w+?)(?:<(\d+)>)?\s*", name)
            if m is None:
                raise NotImplementedError(f"PTX: {statement}")
            numbers = [str(k) for k in range(int(m[2]))] if m[2] else [""]
            self.registers |= {m[1] + k: dtype(kind[1:]) for k in numbers}

    def refuse_fusible(self) -> None:
        """A product and a sum of which neither names a rounding: ptxas makes one fma of them, which rounds once. So does one that
        is there already.
        """
        every = [i for block in self.blocks for i in block]
        plain = [i for i in every if i.types and i.types[0] in ("f32", "f64") and "rn" not in i.words]
        products = {i.operands[0]: i for i in plain if i.op == "mul"}
        for i in every:
            if i.op == "fma" and i.types[0] in ("f32", "f64"):
                raise Fault(f"{self.name}: `{i}` rounds a product and a sum once")
            if i.op in ("mov", "neg") and isinstance(i.operands[1], str) and i.operands[1] in products:
                products[i.operands[0]] = products[i.operands[1]]
        for i in plain:
            found = next((x for x in i.operands[1:] if x in products), None)
            if i.op in ("add", "sub") and found:
                raise Fault(f"{self.name}: ptxas may fuse `{products[found]}` and `{i}`: neither says .rn")

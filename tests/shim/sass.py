"""What a GPU would run: cubins from NVRTC, disassembled, and what can be read off them. No GPU and no driver needed.

Called by tests/test_cubins.py. Each kernel is compiled and read once in a run of pytest (see shim.shared). Knows instruction
names, not rules.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from heapq import heappop, heappush
from pathlib import Path

import nvidia

from gpuopt.compiler import nvrtc
from shim.shared import folder, once

# Its address, the predicate that it depends on, its name with all suffixes, and its operands.
INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)([^;\n]*)", re.MULTILINE
)
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)")
WIDE = re.compile(r"^(LDG|STG)\..*\b128\b")
LOCAL = re.compile(r"^(LDL|STL)\b")
# What a float32 kernel must not do: arithmetic in float64, or a conversion to or from it.
DOUBLE = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)\b|(F2F|F2I|I2F|FRND|MUFU)\..*(F64|64H))")


def tool(name: str) -> Path:
    """A program of the CUDA toolkit: from the wheels of the extra `test`, else from the PATH."""
    for place in nvidia.__path__:
        for found in Path(place).glob(f"*/bin/{name}"):
            return found
    if found := shutil.which(name):
        return Path(found)
    raise FileNotFoundError(f"{name} is neither in a wheel nor on the PATH; pip install nvidia-cuda-{name}")


@dataclass(frozen=True)
class Machine:
    """One kernel as machine code: its instructions one behind the other, how many are on the shortest way through it, and what it
    takes.
    """

    order: tuple[str, ...]
    shortest: int
    registers: int
    stack: int
    local: int

    @cached_property
    def instructions(self) -> Counter[str]:
        """How often each stands there."""
        return Counter(self.order)

    def run(self, pattern: str, between: str) -> int:
        """The most instructions of a pattern one behind the other, with none that matches `between` among them."""
        now = most = 0
        for name in self.order:
            now = 0 if re.match(between, name) else now + bool(re.match(pattern, name))
            most = max(most, now)
        return most

    def count(self, pattern: str | re.Pattern[str]) -> int:
        """Instructions whose name with all suffixes matches."""
        return sum(n for name, n in self.instructions.items() if re.match(pattern, name))

    def found(self, pattern: str | re.Pattern[str]) -> set[str]:
        """The names that match."""
        return {name for name in self.instructions if re.match(pattern, name)}


def disassemble(cubin: bytes) -> Machine:
    """Read the only kernel of a cubin."""
    program = tool("cuobjdump")
    path = f"{program.parent}{os.pathsep}{tool('nvdisasm').parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "-sass", "-res-usage", file.name]
        environment = {**os.environ, "PATH": path}
        text = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    usage = USAGE.search(text)
    assert usage, text[:1000]
    found = INSTRUCTION.findall(text)
    return Machine(tuple(name for _, _, name, _ in found), shortest(found, 0), *map(int, usage.groups()))


def shortest(found: list[tuple[str, str, str, str]], start: int) -> int:
    """The fewest instructions from one to an end of the kernel, or of the function that it begins: what is executed where no
    division and no root takes its slow path, and no branch what only some need.
    """
    places = {int(address, 16): k for k, (address, *_) in enumerate(found)}
    ways, seen = [(0, start)], {-1}
    while ways:
        taken, k = heappop(ways)
        if k == len(found):
            return taken
        if k in seen:
            continue
        seen.add(k)
        _, guard, name, operands = found[k]
        kind, taken = name.split(".")[0], taken + (name != "NOP")
        target = places[int(operands.split()[-1], 16)] if kind in ("BRA", "CALL") else -1
        if kind in ("EXIT", "RET"):
            heappush(ways, (taken, len(found)))
        elif kind == "BRA":
            heappush(ways, (taken, target))
        elif kind == "CALL":
            taken += shortest(found, target)
        maybe = guard or re.search(r"\bU?P\d|\bURZ\b", operands)
        if kind not in ("BRA", "EXIT", "RET") or maybe:
            heappush(ways, (taken, k + 1))
    raise AssertionError("no way leads to an end")


def read_once(source: str, arch: str) -> Machine:
    """The machine code of a translation unit, as some process of this run of the tests made and read it."""
    name = hashlib.sha256(f"{arch}\n{source}".encode()).hexdigest()

    def make(place: Path) -> None:
        found = disassemble(nvrtc.compile_cubin(source, arch))
        place.write_text(json.dumps([found.order, found.shortest, found.registers, found.stack, found.local]))

    order, *numbers = json.loads(once(folder() / f"{name}.sass", make).read_text())
    return Machine(tuple(order), *numbers)


@cache
def pool() -> ThreadPoolExecutor:
    """As many at a time as there are cores."""
    return ThreadPoolExecutor(os.cpu_count())


_machines: dict[tuple[str, str], Future[Machine]] = {}


def prefetch(source: str, arch: str) -> Future[Machine]:
    """Start compiling for an architecture such as "sm_90", unless that was done before."""
    if (source, arch) not in _machines:
        _machines[source, arch] = pool().submit(read_once, source, arch)
    return _machines[source, arch]


def machine(source: str, arch: str) -> Machine:
    """The machine code of a translation unit with one kernel."""
    return prefetch(source, arch).result()

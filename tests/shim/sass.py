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
from pathlib import Path

import nvidia

from gpuopt.compiler import nvrtc
from shim.shared import folder, once

INSTRUCTION = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Za-z0-9_]+)*)", re.MULTILINE
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
    """One kernel as machine code: its instructions one behind the other, and what it takes."""

    order: tuple[str, ...]
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
    return Machine(tuple(INSTRUCTION.findall(text)), *map(int, usage.groups()))


def read_once(source: str, arch: str) -> Machine:
    """The machine code of a translation unit, as some process of this run of the tests made and read it."""
    name = hashlib.sha256(f"{arch}\n{source}".encode()).hexdigest()

    def make(place: Path) -> None:
        found = disassemble(nvrtc.compile_cubin(source, arch))
        place.write_text(json.dumps([found.order, found.registers, found.stack, found.local]))

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

"""The driver: who answers each call, and the library `libcuda.so.1` through which it is called.

    driver = install()      # before anything loads a CUDA driver; from then on every library finds one device

Faults are kept in `driver.fault` (the first one) besides being answered as a launch that failed, since a caller may ignore that.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

from driver.answers import ALIASES, ALLOCATES, CONSTANTS, CONTEXT, DEVICES, RELEASES, WAITS, real_name
from driver.code import Code
from driver.memory import Fault
from driver.words import LAUNCH_FAILED, OUT_OF_MEMORY, SUCCESS, Words, put

SOURCE = Path(__file__).with_name("libcuda.c")
ERROR = ctypes.create_string_buffer(b"see the FAULT printed above")
WORDS = 12  # arguments that libcuda.c hands on


class Driver(Code):
    """One method for each entry point that does something. calls: the names of all calls; asked: entry points that were looked
    for and are not there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.lock, self.busy = threading.RLock(), False
        self.later: list[tuple[str, Words]] = []  # calls that came while another one was answered
        self.asked: set[str] = set()
        self.fault: BaseException | None = None
        self.kept: tuple[Any, ...] = ()  # what C code points at

    def answer(self, name: str, words: Words) -> int:
        """Do one call, alone; its status. What Python's collector releases in the middle of a kernel is released behind it."""
        with self.lock:
            self.calls.append(name)
            if self.busy and real_name(name) in RELEASES:
                self.later.append((name, words))
                return SUCCESS
            outermost, self.busy = not self.busy, True
            status = self._answer(name, words)
            self.busy = not outermost
            while outermost and self.later:
                self.answer(*self.later.pop(0))
            return status

    def _answer(self, name: str, words: Words) -> int:
        real = real_name(name)
        try:
            if real in WAITS and self.captured():
                raise Fault(f"{name} while a stream is captured")
            if real in ALLOCATES and self.capture_forbids():
                raise Fault(f"{name} while a stream is captured, by a thread whose capture mode is not relaxed")
            if real in CONSTANTS:
                for index, value, size in CONSTANTS[real]:
                    if words[index]:
                        put(words[index], value, size)
                return SUCCESS
            result: int | None = getattr(self, real)(words)
            return SUCCESS if result is None else result
        except MemoryError:
            return OUT_OF_MEMORY
        except BaseException as error:  # nothing may pass through C code
            self.fault = self.fault or error
            if isinstance(error, Fault):
                print(f"FAULT {error}", file=sys.stderr, flush=True)
            else:
                traceback.print_exc()
            return LAUNCH_FAILED

    def finish(self) -> BaseException | None:
        """Do all work that is left; the first fault since the last time, if there was one."""
        for device in range(DEVICES):
            self.contexts.append(CONTEXT + device)
            self.answer("cuCtxSynchronize", [0] * WORDS)
            while any(stream.queue for stream in self.streams(device)):
                self.answer("cuCtxSynchronize", [0] * WORDS)  # a fault ends a call, not the work behind it
            self.contexts.pop()
        fault, self.fault = self.fault, None
        return fault

    def knows(self, name: str) -> bool:
        """Whether there is such an entry point."""
        found = real_name(name) in CONSTANTS or hasattr(self, real_name(name))
        if not found:
            self.asked.add(name)
        return found

    def cuGetErrorString(self, a: Words) -> None:
        put(a[1], ctypes.addressof(ERROR))


def entries() -> list[str]:
    """The names of all entry points of the driver, with their versions."""
    names = {*dir(Driver), *CONSTANTS, *ALIASES}
    return [n + version for n in sorted(names) if n.startswith("cu") and n[2:3].isupper() for version in ("", "_v2")]


def install() -> Driver:
    """Compile libcuda.so.1, load it, and answer its calls from now on."""
    folder = Path(tempfile.mkdtemp(prefix="stand-in-"))
    (folder / "entries.h").write_text("".join(f"ENTRY({n})\n" for n in entries()))
    library = folder / "libcuda.so.1"
    flags = ["-shared", "-fPIC", "-O1", "-w", f"-I{folder}", "-Wl,-soname,libcuda.so.1"]
    command = [os.environ.get("CC", "cc"), *flags, str(SOURCE), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))  # from now on "libcuda.so.1" is this one, wherever it is opened
    shutil.rmtree(folder)
    driver = Driver()
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64))(
        lambda name, words: driver.answer(name.decode(), words[:WORDS])
    )
    known = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)(lambda name: driver.knows(name.decode()))
    loaded.stand_in_install(call, known)
    driver.kept = (loaded, call, known)
    atexit.register(lambda: loaded.stand_in_install(None, None))
    return driver

"""The disk cache of compiled kernels: safe directory, verified entries, atomic writes, eight processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuopt.compiler import cache, numba_cpu, nvrtc
from gpuopt.errors import CompileError
from repository import ROOT

SOURCE = 'extern "C" __global__ void k(float* p) { p[threadIdx.x] *= 2.0f; }'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "kernels"
    monkeypatch.setenv("GPUOPT_CACHE_DIR", str(path))
    monkeypatch.delenv("GPUOPT_CACHE", raising=False)
    cache._warned.clear()
    return path


def test_second_compile_is_read_from_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = nvrtc.compile_cubin(SOURCE, "sm_90")
    assert first[:4] == b"\x7fELF"
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(nvrtc, "_program_types", lambda: pytest.fail("compiled again"))
    assert nvrtc.compile_cubin(SOURCE, "sm_90") == first


def test_key_depends_on_source_options_and_architecture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvrtc.compile_cubin(SOURCE, "sm_90")
    nvrtc.compile_cubin(SOURCE, "sm_80")
    nvrtc.compile_cubin(SOURCE + " ", "sm_90")
    monkeypatch.setitem(nvrtc.OPTIONS, "fma", True)
    nvrtc.compile_cubin(SOURCE, "sm_90")
    assert len(list(folder.glob("*.cubin"))) == 4
    assert cache.key("ab", "c") != cache.key("a", "bc")


@pytest.mark.parametrize("damage", ("flip", "truncate", "empty", "plant"))
def test_damaged_entry_is_compiled_again(folder: Path, damage: str) -> None:
    good = nvrtc.compile_cubin(SOURCE, "sm_90")
    (entry,) = folder.glob("*.cubin")
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes(
        {"flip": bytes(data), "truncate": entry.read_bytes()[:-7], "empty": b"", "plant": b"\x7fELF"}[damage]
    )
    assert nvrtc.compile_cubin(SOURCE, "sm_90") == good
    assert cache.read(entry.stem) == good


@pytest.mark.parametrize("mode", (0o770, 0o707, 0o755))
def test_directory_open_to_others_is_refused(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.warns(RuntimeWarning, match="expected 700"):
        nvrtc.compile_cubin(SOURCE, "sm_90")
    assert not list(folder.iterdir())


def test_link_and_file_are_refused(folder: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    folder.symlink_to(real)
    with pytest.warns(RuntimeWarning, match="not a directory"):
        assert cache.directory() is None


def test_cache_can_be_switched_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_CACHE", "0")
    nvrtc.compile_cubin(SOURCE, "sm_90")
    assert not folder.exists()


def test_full_disk_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        assert nvrtc.compile_cubin(SOURCE, "sm_90")
    assert not list(folder.iterdir())


def test_compile_error_holds_the_log(folder: Path) -> None:
    with pytest.raises(CompileError, match="undefined_name"):
        nvrtc.compile_cubin("__global__ void k() { undefined_name = 1; }", "sm_90")


def test_eight_processes_on_an_empty_cache(folder: Path) -> None:
    """All of them compile or read the same kernel at once, and one entry remains."""
    code = f"from gpuopt.compiler.nvrtc import compile_cubin; print(len(compile_cubin({SOURCE!r}, 'sm_90')))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0] * 8, outputs
    assert len({out for out, _ in outputs}) == 1
    assert [p.suffix for p in folder.iterdir()] == [".cubin"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvrtc.compile_cubin(SOURCE, "sm_90")


@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_999"])
def test_a_gpu_newer_than_nvrtc_gets_text_of_the_newest_it_knows(
    arch: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuda.core asks a driver before it gives PTX, so that it is stood in for here; the driver translates what it is given."""
    asked = []

    class Program:
        def __init__(self, source: str, kind: str, options: Any) -> None:
            asked.append(options)

        def compile(self, form: str) -> Any:
            asked.append(form)
            return SimpleNamespace(code=b".target")

    monkeypatch.setattr(nvrtc, "_program_types", lambda: (Program, lambda arch, **_: arch))
    code = nvrtc.compile_cubin(f"// {arch}", arch)
    later = arch == "sm_999"
    assert asked == [f"sm_{nvrtc.newest()}" if later else arch, "ptx" if later else "cubin"]
    assert code == (b".target\0" if later else b".target") == nvrtc.compile_cubin(f"// {arch}", arch)
    assert len(asked) == 2 and nvrtc.newest() >= 120


# ---------------------------------------------------------------------------------------------------- machine code of the CPU

STEPS = """
import hashlib, sys
import numpy as np
import gpuopt
from gpuopt.compiler import numba_cpu

if sys.argv[1] == "loaded":
    numba_cpu._compiled = lambda *given: sys.exit("compiled again")
found = hashlib.sha256()
for options in ({}, {"state_format": "bfloat16"}, {"max_grad_norm": 1.0, "skip_nonfinite": True}):
    params = [np.linspace(-1, 1, n, dtype=np.float32) for n in (5, 300_000)]  # the second one wakes all threads
    opt = gpuopt.AdamW(params, lr=0.1, backend="numba", **options)
    for step in range(3):
        opt.step([p * (step - 1.5) for p in params])
    for p in params:
        found.update(p.tobytes())
print(found.hexdigest())
"""


def steps(way: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, way], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_loads_what_another_has_compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks, sums of chunks, of tensors, random bits and the parallel region, with the same bits; switched off, none is read."""
    first = steps("compiled")
    assert len(list(folder.glob("*.object"))) == 7 and not list(folder.glob("*.cubin"))
    assert steps("loaded") == first
    monkeypatch.setenv("GPUOPT_CACHE", "0")
    with pytest.raises(AssertionError, match="compiled again"):
        steps("loaded")
    assert steps("compiled") == first


@pytest.mark.parametrize("damage", ("flip", "truncate", "empty", "plant"))
def test_damaged_machine_code_is_compiled_again(folder: Path, damage: str) -> None:
    numba_cpu.driver_address.cache_clear()
    numba_cpu.driver_address(1, 1)
    (entry,) = folder.glob("*.object")
    good, data = entry.read_bytes(), bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.write_bytes({"flip": bytes(data), "truncate": good[:-7], "empty": b"", "plant": b"\x7fELF"}[damage])
    numba_cpu.driver_address.cache_clear()
    assert numba_cpu.driver_address(1, 1)
    assert cache.read(entry.stem, "object")


@pytest.mark.parametrize("what", ("Numba", "the processor", "the meaning of its names", "the text"))
def test_machine_code_belongs_to_what_made_it(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, meaning = "def f(a):\n    pass\n", "a"
    numba_cpu.address_of(text, "f", dict, meaning, 1)
    numba_cpu.address_of(text, "f", dict, meaning, 1)
    assert len(list(folder.glob("*.object"))) == 1
    numba_cpu._versions.cache_clear()
    if what == "Numba":
        monkeypatch.setattr("numba.__version__", "99.0")
    elif what == "the processor":
        monkeypatch.setattr(numba_cpu, "_codegen", lambda: SimpleNamespace(magic_tuple=lambda: ("another",)))
    numba_cpu.address_of(text + "    a\n" * (what == "the text"), "f", dict, meaning + "b" * (what[4] == "m"), 1)
    numba_cpu._versions.cache_clear()
    assert len(list(folder.glob("*.object"))) == 2

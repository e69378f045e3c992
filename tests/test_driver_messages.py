"""Why no GPU can be used, and what mends it: the driver is named where it is the driver, an install line where it is not."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import gpuopt
from fake_driver import FakeDriver
from gpuopt import driver, info, messages
from gpuopt.backends import cupy, numba_cuda
from gpuopt.compiler import numba_gpu, nvrtc
from repository import FILES, ROOT

BACKENDS = {"cupy": cupy, "numba-cuda": numba_cuda}
Install = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """A machine with this driver, CuPy package (its CUDA), NVRTC, and these answers of CuPy and Numba."""

    def install(
        found: FakeDriver | None, *, release: str = "", cupy_for: int | None = None, answer: object = 0,
        nvrtc_version: str | None = None,
    ) -> None:  # fmt: skip
        file = tmp_path / "version"
        if release:
            file.write_text(
                f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {release}  Thu Feb  1 00:54:45 UTC 2024\n"
            )
        monkeypatch.setattr(driver, "RELEASE_FILE", file)
        monkeypatch.setattr(driver, "library", lambda: found)
        monkeypatch.setattr(cupy, "version", distributions(cupy_for))
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy(answer) if cupy_for else None)
        usable = SimpleNamespace(is_available=lambda: answered(answer) > 0)
        monkeypatch.setattr(numba_gpu, "numba_cuda", lambda: usable)
        monkeypatch.setattr(numba_cuda, "simulated", lambda: False)
        monkeypatch.setattr(nvrtc, "version", lambda: version_or_error(nvrtc_version))

    return install


def answered(answer: object) -> int:
    if isinstance(answer, Exception):
        raise answer
    assert isinstance(answer, int)
    return answer


def version_or_error(version: str | None) -> str:
    if version is None:
        raise ImportError("libnvrtc.so.13: no such file")
    return version


def distributions(cupy_for: int | None) -> Callable[[str], str]:
    def version(name: str) -> str:
        if name != f"cupy-cuda{cupy_for}x":
            raise PackageNotFoundError(name)
        return "14.0.1"

    return version


def fake_cupy(answer: object) -> ModuleType:
    made = ModuleType("cupy")
    made.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        runtime=SimpleNamespace(getDeviceCount=lambda: answered(answer))
    )
    return made


@pytest.mark.parametrize("name", BACKENDS)
def test_no_driver_is_mended_by_no_install_line(name: str, machine: Install) -> None:
    machine(None, cupy_for=13, answer=RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"))
    why = str(BACKENDS[name].missing())
    assert "no NVIDIA driver is installed" in why and "install the driver" in why and "pip" not in why


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("release", ["", "470.57.02"])
def test_a_driver_too_old_for_any_of_ours(name: str, release: str, machine: Install) -> None:
    machine(FakeDriver(11040), release=release, cupy_for=12, answer=RuntimeError("cudaErrorInsufficientDriver"))
    why = str(BACKENDS[name].missing())
    for word in ("CUDA up to 11.4", "CUDA 12.0", "525", release):
        assert word in why
    assert "'.[" not in why, "no package runs on it"


@pytest.mark.parametrize("nvrtc_version", ["13.0", "13.2"])
def test_a_driver_too_old_for_what_is_installed(nvrtc_version: str, machine: Install) -> None:
    """Either a newer driver mends it or the packages of an older CUDA."""
    error = RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")
    machine(FakeDriver(12040), release="550.54.14", cupy_for=13, answer=error)
    why = str(cupy.missing())
    for word in ("CuPy (cupy-cuda13x) needs CUDA 13.0", "550.54.14", "CUDA up to 12.4", "580"):
        assert word in why
    assert "pip uninstall cupy-cuda13x, then in a checkout of gpuopt: python -m pip install '.[cuda12]'" in why
    machine(FakeDriver(12040), cupy_for=12, answer=1, nvrtc_version=nvrtc_version)
    for backend in BACKENDS.values():
        why = str(backend.missing())
        assert f"NVRTC {nvrtc_version}" in why and "CUDA up to 12.4" in why and "'.[cuda12]'" in why


@pytest.mark.parametrize(
    ("version", "extra"), [(12000, "cuda12"), (12090, "cuda12"), (13000, "cuda13"), (14020, "cuda13")]
)
def test_missing_packages_are_those_for_the_driver(version: int, extra: str, machine: Install) -> None:
    machine(FakeDriver(version))
    line = f"in a checkout of gpuopt: python -m pip install '.[{extra}]'"
    for backend in BACKENDS.values():
        assert line in str(backend.missing())
    assert '("' not in str(cupy.missing()), "the reason is quoted once"
    machine(FakeDriver(version), cupy_for=12, answer=1)
    assert line in str(cupy.missing()) and "libnvrtc" in str(cupy.missing())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (100, ("finds no GPU", "CUDA_VISIBLE_DEVICES is ''")),
        (803, ("error 803", "restart the machine")),
        (999, ("error 999", "nvidia-smi")),
        (34, ("stub", "LD_LIBRARY_PATH")),
        (7, ("error 7", "nvidia-smi")),
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_driver_that_does_not_start(
    name: str, error: int, words: tuple[str, ...], machine: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine(FakeDriver(13010, error), cupy_for=13, answer=RuntimeError("no device"))
    why = str(BACKENDS[name].missing())
    assert "pip" not in why and all(word in why for word in words), why
    assert list(info.device_lines(FakeDriver(13010, error))) == [f"  none usable: {driver.trouble()}"]


def test_what_works_is_not_complained_of(machine: Install) -> None:
    for version, cuda in ((12040, 12), (13010, 13), (13010, 12), (14000, 13)):
        machine(FakeDriver(version), cupy_for=cuda, answer=1, nvrtc_version=f"{cuda}.0")
        assert {name: backend.missing() for name, backend in BACKENDS.items()} == dict.fromkeys(BACKENDS)


def test_an_error_of_a_working_machine_is_told(machine: Install) -> None:
    machine(FakeDriver(), cupy_for=13, answer=RuntimeError("libcudart.so.13:\n cannot open shared object file"))
    for backend in BACKENDS.values():
        why = str(backend.missing())
        assert "libcudart.so.13: cannot open" in why and "'.[cuda13]'" in why


def test_the_library_is_looked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert driver.library() is None and driver.LIBRARY in str(driver.trouble())


def test_auto_and_names_say_the_same(machine: Install) -> None:
    machine(FakeDriver(11040), cupy_for=12, answer=RuntimeError("cudaErrorInsufficientDriver"))
    for name in ("cuda", *BACKENDS):
        with pytest.raises(gpuopt.BackendUnavailable, match=r"CUDA up to 11\.4"):
            gpuopt.backends.choose(name, "cuda")
    with pytest.raises(gpuopt.BackendUnavailable, match=r"CUDA up to 11\.4"):
        gpuopt.backends.choose("auto", "cuda")


def test_install_lines_work_from_a_checkout() -> None:
    """The package is on no index: no text tells anyone to install it from one."""
    wrong = re.compile(r"pip install (?:-\S+ )*['\"]?gpuopt\b")
    texts = [
        path for path in FILES if path.suffix in (".py", ".md", ".sh", ".toml") and path.name != Path(__file__).name
    ]
    assert [str(path) for path in texts if wrong.search((ROOT / path).read_text())] == []
    assert messages.install("cuda12", "demo").endswith("python -m pip install '.[cuda12,demo]'")


def test_a_missing_numba_has_a_line_of_its_own() -> None:
    code = "import sys; sys.modules['numba'] = None; import gpuopt; print(gpuopt.backends()['numba'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert "python -m pip install numba" in done.stdout


def test_suggestions() -> None:
    known = ("adam", "adamw", "rmsprop", "AMSGrad")
    assert messages.suggestion("adma", known) == "; did you mean 'adam'?"
    assert messages.suggestion("RMSProp", known) == "; did you mean 'rmsprop'?"
    assert messages.suggestion("amsgard", known) == "; did you mean 'AMSGrad'?"
    assert messages.suggestion("zzz", known) == messages.suggestion(3, known) == ""


def test_a_library_behind_the_first_that_can_run_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuopt import backends

    asked: list[str] = []
    monkeypatch.setattr(backends, "missing", lambda name: asked.append(name))
    monkeypatch.delenv("GPUOPT_BACKEND", raising=False)
    assert backends.choose(None, "cuda") == ("cupy", "the arrays are on the GPU")
    assert asked == ["cupy"]

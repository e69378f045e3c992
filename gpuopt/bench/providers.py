"""What can run a step: the interface, and the list of all providers. Adapters, one small file each, are in `adapters`.

Called by `measure` and `gpuopt.bench`. A provider that is absent says why and is skipped. Knows no array library.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuopt.bench.suites import Case

ADAPTERS = ("own", "torch_steps", "torch_peers", "optax_step", "expressions")


class Session:
    """One optimizer at work on arrays of its own."""

    def step(self) -> None:
        """One optimizer step, as a user calls it; may return before a device has finished."""
        raise NotImplementedError

    def scale(self, factor: float) -> None:
        """Multiply every gradient in place."""
        raise NotImplementedError

    def read(self, tensor: int, start: int, stop: int) -> NDArray[np.float64]:
        """A part of a flattened parameter."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until the device has finished; nothing on a CPU."""

    def launches(self) -> int | None:
        """Passes or kernels that a step starts, where the library tells; a GPU's are counted by a profiler instead."""
        return None


class Provider:
    """A library, or one of its ways to run a step, on one kind of device ("cpu" or "cuda")."""

    name = ""
    distribution = ""  # whose version is reported
    own = False  # whether it is gpuopt
    renews = False  # whether its sessions take other gradient arrays at every step, where the case says so
    float32_sums = False  # whether it sums a tensor in the tensor's own precision, where gpuopt sums in float64
    rank = 5  # lower is measured first where not everything fits

    def __init__(self, device: str) -> None:
        self.device = device

    def missing(self) -> str | None:
        """None where it can run here, else why not."""
        raise NotImplementedError

    def refuses(self, case: Case) -> str | None:
        """None where it can run the case, else why not."""
        raise NotImplementedError

    def start(self, case: Case) -> Session:
        """An optimizer on fresh arrays for the case."""
        raise NotImplementedError

    def bytes_needed(self, case: Case) -> float:
        """Memory of a session and its step."""
        return case.bytes_held

    @property
    def version(self) -> str:
        """The version of its distribution."""
        return distribution_version(self.distribution)


def distribution_version(*names: str) -> str:
    """The version of the first of these distributions that is installed, else an empty text."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""


def importable(*modules: str) -> str | None:
    """None where all import, else the first that does not and why."""
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # a broken installation may raise anything
            text = " ".join(str(error).split()) or type(error).__name__
            return f"{module} does not import ({text[:120]})"
    return None


def all_providers(device: str) -> Iterator[Provider]:
    """Every provider for a device, usable or not."""
    for adapter in ADAPTERS:
        yield from import_module(f"gpuopt.bench.adapters.{adapter}").providers(device)


def usable(device: str) -> tuple[list[Provider], dict[str, str]]:
    """The providers that can run here, in order of importance, and the reasons of those that cannot."""
    found: list[Provider] = []
    absent: dict[str, str] = {}
    for provider in all_providers(device):
        why: Any = provider.missing()
        if why is None:
            found.append(provider)
        else:
            absent[provider.name] = why
    return sorted(found, key=lambda p: p.rank), absent

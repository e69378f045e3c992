"""Several processes for users of arrays: what sends them between processes, and optimizers that average gradients.

Public, as `gpuopt.distributed`; each name is imported when it is first asked for, MPI, NCCL and torch only where they are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gpuopt.messages import no_attribute

_HOMES = {
    "Communicator": "communicators",
    "CuPyNCCLCommunicator": "cupy_nccl",
    "MPICommunicator": "mpi",
    "NCCL4PyCommunicator": "nccl4py",
    "SingleProcess": "single",
    "TorchCommunicator": "torch_group",
    "communicator": "choice",
    "data_parallel": "parallel",
}
__all__ = tuple(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(no_attribute(__name__, name, () if name.startswith("_") else _HOMES))
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOMES)

"""`gpuopt.distributed.communicator`: the adapter for what a program has, or for how it was started.

Public. Imports a library only where something of it was given, or it started this process.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from gpuopt.distributed.communicators import Communicator
from gpuopt.errors import InputError, entry
from gpuopt.messages import abbreviated

# Where the type of what is given is defined, as it begins -> the module beside this one, and its adapter.
ADAPTERS = {
    "mpi4py.": ("mpi", "MPICommunicator"),
    "torch._C._distributed_c10d": ("torch_group", "TorchCommunicator"),
    "torch.distributed": ("torch_group", "TorchCommunicator"),
    "nccl.": ("nccl4py", "NCCL4PyCommunicator"),
    "cupy_backends.cuda.libs.nccl": ("cupy_nccl", "CuPyNCCLCommunicator"),
    "cupy.cuda.nccl": ("cupy_nccl", "CuPyNCCLCommunicator"),
}
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_MPI = (
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "PMIX_RANK",
    "MPI_LOCALNRANKS",
)  # of Open MPI, MPICH and Intel's, PMIx, MVAPICH
EXPECTED = "expected an mpi4py communicator, a process group of torch, an NCCL communicator of nccl4py or CuPy, or None"


@entry
def communicator(given: Any = None) -> Communicator:
    """The communicator for an mpi4py communicator, a process group of torch.distributed, a communicator of nccl4py or of
    `cupy.cuda.nccl`; a Communicator is given back as it is.

    None: the processes that this one was started with: the group of torch.distributed if it is initialised; under torchrun all of
    its processes, which are then initialised (gloo, and NCCL where torch has a GPU) until the program ends; under mpirun
    MPI.COMM_WORLD; else this process alone. Raises InputError for what is none of these, or where mpi4py or torch is missing.
    """
    if isinstance(given, Communicator):
        return given
    if given is None:
        return started()
    for base in type(given).__mro__:
        for begin, (module, name) in ADAPTERS.items():
            if f"{base.__module__}.".startswith(begin) or base.__module__ == begin:
                return made(module, name, given)
    raise InputError(f"communicator: found {abbreviated(given)}: {EXPECTED}")


def made(module: str, name: str, *given: Any) -> Communicator:
    """An adapter, whose module imports its library."""
    adapter: Callable[..., Communicator] = getattr(import_module(f"gpuopt.distributed.{module}"), name)
    return adapter(*given)


def started() -> Communicator:
    """The processes that this one was started with."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return made("torch_group", "TorchCommunicator")
    if all(name in os.environ for name in OF_TORCHRUN):
        initialise()
        return made("torch_group", "TorchCommunicator")
    if any(name in os.environ for name in OF_MPI):
        try:
            return made("mpi", "MPICommunicator")
        except ImportError as error:
            raise InputError(
                f"communicator: started by MPI, and mpi4py cannot be used ({error}): pip install mpi4py"
            ) from None
    return made("single", "SingleProcess")


def initialise() -> None:
    """Make the group of all processes that torchrun started, and take it apart when the program ends."""
    import torch

    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    atexit.register(ended)


def ended() -> None:
    """Take the group apart, if nobody else has."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""The text of the walk that updates, in Python: over elements, or over blocks where states are kept in such.

Called by the backends and by `source`. Knows no rule.
"""

from __future__ import annotations

from gpuopt.compiler import to_numba, to_numba_blocks, to_numba_cuda, to_numba_cuda_blocks
from gpuopt.compiler.program import Program


def on_cpu(program: Program) -> str:
    """For `numba.njit`: kernels/multi_tensor_cpu.py or kernels/blocks_cpu.py."""
    return to_numba_blocks.cpu_source(program) if program.in_blocks else to_numba.cpu_source(program)


def on_gpu(program: Program) -> str:
    """For `numba.cuda`: kernels/multi_tensor.py or kernels/blocks.py."""
    return to_numba_cuda_blocks.cuda_source(program) if program.in_blocks else to_numba_cuda.cuda_source(program)

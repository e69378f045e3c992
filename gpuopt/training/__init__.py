"""Training practice: which rate, which batch size, which optimizer; pruning, 8-bit weights, averaged weights.

Everything public is here: `from gpuopt import training`. Each works on arrays of NumPy and CuPy, and on torch models. torch,
scikit-learn and matplotlib are imported when they are first needed.
"""

from __future__ import annotations

from gpuopt.training.averaging import StochasticWeightAverage
from gpuopt.training.batches import BatchSize, BatchSizes, find_batch_size
from gpuopt.training.codes import QuantizedArray
from gpuopt.training.comparison import compare
from gpuopt.training.contenders import Comparison, Contender
from gpuopt.training.int8 import dequantize, quantize
from gpuopt.training.pruning import MagnitudePruning, cubic_sparsity
from gpuopt.training.rates import LearningRates, lr_range_test

__all__ = [
    "BatchSize", "BatchSizes", "Comparison", "Contender", "LearningRates", "MagnitudePruning", "QuantizedArray",
    "StochasticWeightAverage", "compare", "cubic_sparsity", "dequantize", "find_batch_size", "lr_range_test", "quantize",
]  # fmt: skip

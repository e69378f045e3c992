"""scikit-learn estimators that are trained on minibatches by any optimizer of gpuopt, on the CPU or a GPU.

`from gpuopt.sklearn import MLPClassifier`. `estimators.py` holds the four classes, `base.py` what they share, `training.py` the one
loop, `network.py` and `losses.py` the arithmetic, `batches.py` the data, `rates.py` the learning rates. Needs the extra `sklearn`.
"""

from __future__ import annotations

from gpuopt.errors import GpuoptError
from gpuopt.messages import install, missing

if _lacking := missing("sklearn", "threadpoolctl", "tqdm"):
    raise GpuoptError(f"gpuopt.sklearn needs {', '.join(_lacking)}: {install('sklearn')}")

from gpuopt.sklearn.estimators import (
    LinearRegressor,
    LogisticClassifier,
    MLPClassifier,
    MLPRegressor,
)

__all__ = ["LinearRegressor", "LogisticClassifier", "MLPClassifier", "MLPRegressor"]

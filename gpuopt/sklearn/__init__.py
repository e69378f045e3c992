"""scikit-learn estimators that are trained on minibatches by any optimizer of gpuopt, on the CPU or a GPU.

`from gpuopt.sklearn import MLPClassifier`. `estimators.py` holds the four classes, `base.py` what they share, `training.py` the one
loop, `network.py` and `losses.py` the arithmetic, `batches.py` the data, `rates.py` the learning rates. Needs the extra `sklearn`.
"""

from __future__ import annotations

from importlib.util import find_spec

from gpuopt.errors import GpuoptError
from gpuopt.messages import install

_missing = [name for name in ("sklearn", "threadpoolctl", "tqdm") if find_spec(name) is None]
if _missing:
    raise GpuoptError(f"gpuopt.sklearn needs {', '.join(_missing)}: {install('sklearn')}")

from gpuopt.sklearn.estimators import (  # noqa: E402  behind the message that says what is missing
    LinearRegressor,
    LogisticClassifier,
    MLPClassifier,
    MLPRegressor,
)

__all__ = ["LinearRegressor", "LogisticClassifier", "MLPClassifier", "MLPRegressor"]

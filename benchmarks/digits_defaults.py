"""Every optimizer on the digits network of `gpuopt demo` with the defaults that its class documents, nothing tuned.

Run by hand from the root of a checkout, `python benchmarks/digits_defaults.py [NAME ...]`, in some minutes; adds a row for each
optimizer to `benchmarks/results/digits_defaults.csv`. Training takes the demo's 30 epochs, or as many as `EPOCHS` says.
"""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import gpuopt
from gpuopt.demos import digits

FIELDS = ("run", "optimizer", "lr", "batch", "epochs", "to_95", "accuracy")
# Beyond the demo's 30, where the default rate is small or falls: 1e-3 without momentum (sgd), 1e-2 (asgd), 1e-4 (the others).
EPOCHS = {"sgd": 1500, "asgd": 200, "lion": 60, "sophiag": 60, "adamatan2": 60, "rprop": 100}
ALL_IMAGES = ("rprop",)  # compares the signs of successive gradients, which must be of the same images
# Those without a default rate; that of DGD falls by a twentieth each step.
RATES = {"gd": 1.0, "dgd": 1.0, "stableadamw": 0.003}


def row(optimizer: str, run: str) -> dict[str, Any]:
    """One training: `to_95` is the first epoch behind which 95 % are right, `accuracy` that behind the last."""
    digits.EPOCHS, digits.BATCH = EPOCHS.get(optimizer, 30), 10**6 if optimizer in ALL_IMAGES else 64
    found = digits.train(optimizer, np, "numpy", np.dtype(np.float32), lr=RATES.get(optimizer))
    first = next((k for k, share in enumerate(found.accuracies, 1) if share >= 0.95), "")
    batch = "all" if optimizer in ALL_IMAGES else digits.BATCH
    used = RATES.get(optimizer, "default")
    values = (run, optimizer, used, batch, digits.EPOCHS, first, round(found.accuracy, 4))
    return dict(zip(FIELDS, values, strict=True))


def main() -> None:
    digits.TUNED.clear()
    path = Path(__file__).parent / "results" / "digits_defaults.csv"
    run, new = time.strftime("%Y%m%dT%H%M%S"), not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        for optimizer in sys.argv[1:] or gpuopt.optimizers():
            found = row(optimizer, run)
            print(*found.values())
            writer.writerow(found)


if __name__ == "__main__":
    main()

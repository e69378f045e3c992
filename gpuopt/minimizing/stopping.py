"""When a minimization ends, and what scipy's `OptimizeResult` says of it. Called by `loop`; knows no array.

Losses are compared as numbers of Python. The names of tolerances are scipy's, patience is as in scikit-learn's `n_iter_no_change`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gpuopt.optim.hyper import check_number, check_whole

GTOL, PATIENCE = 1e-5, 10  # where nothing else is said: gtol is that of scipy's BFGS
RANGES = dict.fromkeys(("tol", "gtol", "ftol"), "[0, inf)")
# Status -> what it means, as far as all that end so have it in common; scipy's numbers where scipy has the case.
CONVERGED, EXHAUSTED, NOT_FINITE, INTERRUPTED, HALTED = 0, 1, 3, 4, 99
MESSAGES = {
    EXHAUSTED: "All of maxiter = {nit} steps were made.",
    NOT_FINITE: "The loss is {loss} at iteration {nit}; the best point before is returned.",
    INTERRUPTED: "Interrupted (KeyboardInterrupt) at iteration {nit}; the best point so far is returned.",
    HALTED: "`callback` raised `StopIteration`.",
}


@dataclass(frozen=True)
class End:
    """Why it is over."""

    status: int
    message: str


def ended(status: int, **values: Any) -> End:
    """An end of that status."""
    return End(status, MESSAGES[status].format(**values))


@dataclass
class Tolerances:
    """gtol: of the optimality, 0 for none; ftol: of the fall of the least loss within `patience` iterations, None for none."""

    gtol: float
    ftol: float
    patience: int | None
    best: float = math.inf
    since: int = 0  # iterations since the least loss last fell by enough
    mark: float = math.inf  # the loss that has to be undercut by enough

    @classmethod
    def checked(cls, tol: Any, gtol: Any, ftol: Any, patience: Any) -> Tolerances:
        """As they are asked for: `tol` is both where one is not given, as in scipy. Raises InputError naming what is wrong."""
        given = {"tol": tol, "gtol": gtol, "ftol": ftol}
        found = {k: v if v is None else check_number(k, v, "minimize", RANGES) for k, v in given.items()}
        both = found["tol"]
        wanted = both if found["gtol"] is None else found["gtol"]
        falls = both if found["ftol"] is None else found["ftol"]
        if patience is not None:
            patience = check_whole("patience", patience, 1, "minimize")
        elif falls is not None:
            patience = PATIENCE
        return cls(GTOL if wanted is None else wanted, falls or 0.0, patience)

    def look(self, nit: int, loss: float, optimality: float | None) -> End | None:
        """Whether it is over, with the loss behind iteration `nit` (0: of the start) and, where it was measured, the optimality."""
        if not math.isfinite(loss):
            return ended(NOT_FINITE, loss=loss, nit=nit)
        self.best = min(self.best, loss)
        if optimality is not None and optimality <= self.gtol:
            return End(CONVERGED, f"The largest element of the gradient is at most gtol = {self.gtol:g}.")
        enough = self.mark - self.ftol * max(1.0, abs(loss)) if math.isfinite(self.mark) else math.inf
        if loss < enough:
            self.mark, self.since = loss, 0
            return None
        self.since += 1
        if self.patience is not None and self.since >= self.patience:
            how = f"by more than ftol = {self.ftol:g}" if self.ftol else "any more"
            return End(CONVERGED, f"The loss did not fall {how} in {self.patience} iterations.")
        return None

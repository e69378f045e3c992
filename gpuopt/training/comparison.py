"""Optimizers side by side on the user's own problem: `gpuopt.training.compare`, and how a loss is compared.

Called by users. `validated` cross-validates on data by scikit-learn, `contenders` holds what was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpuopt import rules
from gpuopt.errors import InputError, entry
from gpuopt.messages import abbreviated, unknown
from gpuopt.optim.hyper import check_whole
from gpuopt.training.checks import choice, real
from gpuopt.training.contenders import Comparison, Contender, ranked, whole_budget
from gpuopt.training.problem import ArrayProblem, ModelProblem, trained
from gpuopt.training.rates import lr_range_test, trial

UNITS = ("passes", "steps", "seconds")
TRIALS = 5  # runs of the range test of each optimizer
CLOCK = 5  # steps whose time says how many fit into a budget of seconds


@entry
def compare(
    data_or_model: Any,
    optimizers: Sequence[str],
    budget: float,
    *,
    unit: str | None = None,
    loss: Callable[[Any, int], Any] | None = None,
    estimator: Any = None,
    scoring: Any = None,
    cv: Any = 5,
    rates: Sequence[float] | None = None,
    repeats: int = 3,
    random_state: int = 0,
    n_jobs: int | None = None,
    **options: Any,
) -> Comparison:
    """Train with each optimizer at the rate that suits it, score, and say which one to take.

    data_or_model: data `(X, y)`, as scikit-learn takes them; or, with `loss`, arrays in any container or a torch.nn.Module.
    optimizers: names. budget: of one training with one optimizer, in `unit`: "passes" over the data (the default for data), "steps"
    (the default with a loss) or "seconds".

    Of data: `estimator` (by default an MLPClassifier or MLPRegressor of gpuopt.sklearn, regression where y are floating numbers,
    behind a StandardScaler; any estimator or pipeline with the parameters optimizer, lr and max_iter) is cross-validated with the
    folds of `cv` and the metric of `scoring` (both as scikit-learn's cross_validate; by default the estimator's own score). The
    rate is chosen among `rates` (nine from 1e-4 to 1) by scikit-learn's HalvingGridSearchCV on the same folds. n_jobs: as there.

    Of a loss, `loss(params, step)` as in `lr_range_test`: the rate is that of a range test with five trials; each training goes
    from where the parameters are, `repeats` times on steps of other numbers (3), and its score is the mean loss of its last fifth.
    All is put back bit for bit. random_state: of the estimators and folds. options: of the optimizers, or of the default estimator.

    Raises InputError naming the argument, GpuoptError where scikit-learn is missing.
    """
    names = checked_names(optimizers)
    amount = real("budget", budget)
    chosen = choice("unit", unit or ("passes" if loss is None else "steps"), UNITS)
    if loss is None:
        if chosen == "steps":
            raise InputError("unit = 'steps': expected 'passes' or 'seconds' for data")
        from gpuopt.training import validated

        how = validated.Validation(
            *validated.checked_data(data_or_model), estimator, scoring, cv, rates, random_state, n_jobs, options
        )
        return how.compare(names, amount, chosen)
    if chosen == "passes":
        raise InputError("unit = 'passes': expected 'steps' or 'seconds' with a loss")
    problem = trained(data_or_model, loss)
    times = check_whole("repeats", repeats, 1)
    found = [of_loss(problem, name, amount, chosen, times, options) for name in names]
    return ranked(found, "loss", False, f"{amount:g} {chosen}")


def checked_names(optimizers: Any) -> list[str]:
    """The names, each once. Raises InputError naming what is none."""
    if isinstance(optimizers, str) or not hasattr(optimizers, "__iter__"):
        raise InputError(f"optimizers = {abbreviated(optimizers)}: expected names, such as ['adamw', 'sgd']")
    names = list(dict.fromkeys(optimizers))
    for name in names:
        if not isinstance(name, str) or name.lower() not in rules.NAMES:
            raise InputError(f"optimizers: {unknown('optimizer', name, rules.NAMES)}")
    if not names:
        raise InputError("optimizers: expected at least one name, found none")
    return names


def of_loss(
    problem: ArrayProblem | ModelProblem, name: str, budget: float, unit: str, repeats: int, options: dict[str, Any]
) -> Contender:
    """Train a problem with one optimizer, from where it is, `repeats` times."""
    params = problem.params if isinstance(problem, ArrayProblem) else problem.model
    steps = whole_budget(budget) if unit == "steps" else fitting(problem, name, budget, options)
    tested = lr_range_test(params, problem.loss, name, num_steps=min(max(steps, 10), 100), trials=TRIALS, **options)
    scores, begin = [], time.perf_counter()
    for k in range(repeats):
        scores.append(trial(problem, name, tested.advised, options, steps, k * steps))
    return Contender(name, tested.advised, tuple(scores), (time.perf_counter() - begin) / repeats)


def fitting(problem: ArrayProblem | ModelProblem, name: str, seconds: float, options: dict[str, Any]) -> int:
    """How many steps go into so many seconds."""
    with problem.restored():
        opt = problem.optimizer(name, 0.0, options)
        taken = []
        for step in range(CLOCK + 1):
            begin = time.perf_counter()
            problem.step(opt, problem.evaluate(step)[1])
            taken.append(time.perf_counter() - begin)
    return max(1, int(seconds / np.median(taken[1:])))

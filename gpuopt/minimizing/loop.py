"""`gpuopt.minimize`: the loop of evaluating, looking whether it is over, and stepping. Everything public of it is documented here.

The optimizer's own checks of bounds, options and gradients are its; scipy's class holds the result. Knows no rule and no kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpuopt import rules, schedules
from gpuopt.errors import GpuoptError, InputError, entry
from gpuopt.messages import abbreviated, install, suggestion
from gpuopt.minimizing.answers import Objective, wrapped
from gpuopt.minimizing.points import Best, Kept, copied, on_gpu, optimality, penalty, project
from gpuopt.minimizing.stopping import EXHAUSTED, HALTED, INTERRUPTED, End, Tolerances, ended
from gpuopt.optim import factory, trees
from gpuopt.optim.hyper import check_number, check_whole, defaults_of
from gpuopt.optim.optimizer import Optimizer
from gpuopt.rules.language import Rule

EVERY = 10  # iterations between two looks at losses on a GPU
NAMED = (
    "cosine",
    "linear",
    "one_cycle",
    "polynomial",
    "rex",
)  # schedules that a first value and a number of steps are enough for


@entry
def minimize(
    fun: Callable[..., Any],
    x0: Any,
    optimizer: str | Rule = "adam",
    *,
    args: Any = (),
    jac: Any = True,
    bounds: Any = None,
    l1: float = 0.0,
    callback: Callable[..., Any] | None = None,
    tol: float | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    patience: int | None = None,
    maxiter: int = 1000,
    schedule: Any = None,
    check_every: int | None = None,
    progress: bool = False,
    backend: str | None = None,
    **options: Any,
) -> Any:
    """Minimize a function of arrays with any optimizer; the best point that was seen, as scipy's `OptimizeResult`.

    fun: fun(x, *args) returns (loss, gradient), the gradient mirroring x (None in it: that array stays as it is); or the loss alone
    where jac(x, *args) returns the gradient. x holds the arrays that steps change in place: copy what is to be kept.
    x0: an array of NumPy or CuPy, or a nested dict or list of such; a list of numbers is one array. It is not changed. float64,
    float32, float16, bfloat16, complex128 or complex64; whole numbers become float64. A complex gradient is dL/dRe + i dL/dIm.
    optimizer: a name (`gpuopt.optimizers()`) or a rule of your own. options: its own (`lr`, `betas` ...) and those of every
    optimizer (`mask`, `max_grad_norm`, `weight_decay` ...), defaults as there: most need an `lr` that suits the function.
    bounds: mirrors x0, (lower, upper) or None for each array, as in `gpuopt.Optimizer`, or a `scipy.optimize.Bounds`; x0 is
    brought between them first.
    l1: minimize fun + l1 sum(|x|), the penalty by the soft threshold of each step; `fun` of the result and all losses hold it.
    `gd` ends at the minimum; where gradients are rescaled or accumulated (adam; momentum) the threshold is not, and weighs
    differently: the end is near it, at most.
    schedule: of the learning rate. A function of the steps taken, as of `gpuopt.schedules`, is the rate itself; the name of a
    schedule of a value and a number of steps ("cosine", "linear", "rex" ...) goes from `lr` to its end in `maxiter` steps.

    It ends when the largest element of |x - prox(x - gradient)| at the best point is at most gtol (1e-5; 0: never looked at):
    without bounds and l1 that is the gradient, with bounds L-BFGS-B's projected one; when the least loss did not fall by more than
    ftol * max(1, |loss|) in `patience` iterations (10 where only ftol is given; patience alone: ftol is 0; neither: no such end);
    after maxiter steps; when the loss is NaN or infinite; when callback raises StopIteration; at Ctrl-C. tol: gtol and ftol where
    they are not given.
    callback: called behind each iteration, by scipy's convention: callback(intermediate_result=...) where that is its parameter,
    an OptimizeResult with a copy of x, fun, jac, nit and nfev; else callback(x).
    check_every: iterations between two looks at losses that lie on a GPU (10), which make the host wait for it; the best point is
    found on the GPU meanwhile, and up to so many iterations are made beyond an end. 1 with a callback; others are free to look at.
    progress: a bar of tqdm.

    Returns an OptimizeResult: x (as x0), fun and jac there, nit (steps), nfev, losses (float64, nit + 1 of them in order, as far as
    they are known), success (a tolerance was reached), status (0: a tolerance, 1: maxiter, 3: NaN or infinity, 4: Ctrl-C, 99: the
    callback) and message. Raises InputError or DtypeError for arguments and answers of fun that cannot be used, GpuoptError where
    scipy is missing.
    """
    result = result_class()
    objective, call = Objective(fun, jac, args), wrapped(callback)
    tolerances = Tolerances.checked(tol, gtol, ftol, patience)
    maxiter = check_whole("maxiter", maxiter, 0, "minimize")
    every = 1 if call else EVERY
    if check_every is not None:
        every = check_whole("check_every", check_every, 1, "minimize") if not call else 1
    l1 = check_number("l1", l1, "minimize")
    if options.get("maximize"):
        raise InputError(
            "minimize: maximize = True: expected the negative of fun instead, whose least value is looked for"
        )
    rates = rates_of(optimizer, schedule, options, maxiter)
    x = copied(x0)
    make: Any = factory.create if isinstance(optimizer, str) else factory.optimizer
    opt = make(optimizer, x, bounds=bounds, l1=l1, backend=backend, **(options | rates))
    run = Run(opt, x, objective, tolerances, result, l1, every)
    if isinstance(schedule, schedules.Plateau):
        run.observe = schedule.update
    return run.run(maxiter, call, bar_of(progress, maxiter))


def result_class() -> Any:
    """scipy's OptimizeResult. Raises GpuoptError where scipy is missing."""
    try:
        from scipy.optimize import OptimizeResult
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise GpuoptError(f"gpuopt.minimize needs scipy, whose OptimizeResult it returns; {install('scipy')}") from None
    return OptimizeResult


def bar_of(progress: Any, maxiter: int) -> Any:
    """A bar of tqdm, or None. Raises GpuoptError where tqdm is missing."""
    if not progress:
        return None
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        raise GpuoptError(f"progress=True needs tqdm; {install('scipy')}") from None
    return tqdm(total=maxiter, unit="step", desc="minimize", leave=False)


def rates_of(optimizer: Any, schedule: Any, options: dict[str, Any], maxiter: int) -> dict[str, Any]:
    """The option `lr` of a schedule. Raises InputError for a name that there is none of, or a rate that is given twice."""
    if schedule is None:
        return {}
    if callable(schedule):
        if "lr" in options:
            raise InputError(
                "minimize: lr and schedule: a function of the step is the rate itself: expected one of them"
            )
        return {"lr": schedule}
    if schedule not in NAMED:
        raise InputError(
            f"minimize: schedule = {abbreviated(schedule)}: expected a function of the steps taken or one of {', '.join(NAMED)}"
            f"{suggestion(schedule, NAMED)}"
        )
    rule = rules.get(optimizer) if isinstance(optimizer, str) else optimizer
    rate = options.get("lr", defaults_of(rule).get("lr"))
    if not isinstance(rate, (int, float)):
        raise InputError(f"minimize: schedule = {schedule!r} begins at lr, a number: found lr = {abbreviated(rate)}")
    return {"lr": getattr(schedules, schedule)(float(rate), max(1, maxiter))}


class Run:
    """One minimization: what is known so far, whenever it ends."""

    def __init__(
        self, opt: Optimizer, x: Any, objective: Objective, tolerances: Tolerances, result: Any, l1: float, every: int
    ) -> None:
        self.opt, self.x, self.objective, self.tolerances, self.result = opt, x, objective, tolerances, result
        self.l1, self.every = l1, every
        self.parameters = opt._engine.parameters
        self.best, self.nit = Best(), 0
        self.losses: list[float] = []
        self.observe: Callable[[float], None] | None = None  # is told every loss
        self._measured: Kept | None = None  # the best point whose optimality was asked last
        self._waiting: list[Any] = []  # losses on a GPU, behind those that are known

    def run(self, maxiter: int, call: Callable[[Any], None] | None, bar: Any) -> Any:
        """All of it."""
        try:
            end = self._run(maxiter, call, bar)
        except KeyboardInterrupt:
            if self.best.kept is None:
                raise  # there is nothing to return
            self._read()
            end = ended(INTERRUPTED, nit=self.nit)
        finally:
            if bar is not None:
                bar.close()
        return self._result(end)

    def _run(self, maxiter: int, call: Callable[[Any], None] | None, bar: Any) -> End:
        for p in self.parameters:
            project(p)
        while True:
            loss, grads = self._evaluate()
            last = self.nit == maxiter
            if not on_gpu(loss) or last or self.nit % self.every == 0:
                end = self._look(loss)
                if bar is not None:
                    bar.update(self.nit - bar.n)
                    bar.set_postfix(loss=f"{self.tolerances.best:.6g}", refresh=False)
                if end is not None:
                    return end
            else:
                self._waiting.append(loss)
            if call is not None and self.nit and self._halts(call, grads):
                return ended(HALTED)
            if last:
                return ended(EXHAUSTED, nit=self.nit)
            self.opt.step(trees.rebuilt(self.x, iter(grads)))
            self.nit += 1

    def _evaluate(self) -> tuple[Any, list[Any]]:
        loss, grads = self.objective(self.x, self.parameters, self.x)
        if self.l1:
            loss = loss + penalty(self.parameters, self.l1)
            loss = loss if on_gpu(loss) else float(loss)
        self.best.offer(loss, [p.array for p in self.parameters], grads)
        return loss, grads

    def _look(self, loss: Any) -> End | None:
        """Whether it is over, after all losses so far; waits for a GPU where they lie there."""
        self._waiting.append(loss)
        first = len(self.losses)
        self._read()
        measured = self._measure()
        for nit, value in enumerate(self.losses[first:], first):
            if self.observe is not None:
                self.observe(value)
            end = self.tolerances.look(nit, value, measured if nit == len(self.losses) - 1 else None)
            if end is not None:
                return end
        return None

    def _measure(self) -> float | None:
        """The optimality of the best point; None where that is known or nobody asks for it."""
        point = self.best.kept
        if not self.tolerances.gtol or point is self._measured or point is None:
            return None
        self._measured = point
        return optimality(self.parameters, point, self.l1, self.tolerances.gtol)

    def _read(self) -> None:
        """Wait for the losses that nobody has waited for."""
        waiting, self._waiting = self._waiting, []
        self.losses += [float(loss) for loss in waiting]

    def _halts(self, call: Callable[[Any], None], grads: list[Any]) -> bool:
        """Whether the callback ends it."""
        x = trees.rebuilt(self.x, iter([p.array.copy() for p in self.parameters]))
        jac = trees.rebuilt(self.x, iter(grads))
        try:
            call(self.result(x=x, fun=self.losses[-1], jac=jac, nit=self.nit, nfev=self.objective.calls))
        except StopIteration:
            return True
        return False

    def _result(self, end: End) -> Any:
        kept = self.best.kept
        assert kept is not None
        return self.result(
            x=trees.rebuilt(self.x, iter(kept.arrays)),
            fun=float(kept.loss),
            jac=trees.rebuilt(self.x, iter(kept.grads)),
            nit=self.nit,
            nfev=self.objective.calls,
            losses=np.array(self.losses, np.float64),
            success=end.status == 0,
            status=end.status,
            message=end.message,
        )

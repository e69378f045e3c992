"""`gpuopt.minimize`: results against scipy's and scikit-learn's, structures of arrays, every way to end, bad input."""

from __future__ import annotations

import builtins
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from sklearn.linear_model import Lasso

import gpuopt
from gpuopt import schedules
from gpuopt.optim.between import averages

BACKENDS = pytest.mark.parametrize("backend", ["numpy", "numba"])


def rosenbrock(x: Any) -> tuple[float, Any]:
    return float(scipy.optimize.rosen(x)), scipy.optimize.rosen_der(x)


def bowl(x: Any) -> tuple[float, Any]:
    """The least at 1, 2, 3 ..."""
    away = x - np.arange(1, x.size + 1).reshape(x.shape).astype(x.dtype)
    return float(0.5 * (away * away).sum()), away


# ---------------------------------------------------------------------------------------------------- results


@BACKENDS
def test_rosenbrock_ends_where_scipy_ends(backend: str) -> None:
    start = np.array([-1.2, 1.0, 0.7])
    found = gpuopt.minimize(rosenbrock, start, lr=0.05, maxiter=10_000, gtol=1e-6, backend=backend)
    theirs = scipy.optimize.minimize(rosenbrock, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-10})
    assert isinstance(found, scipy.optimize.OptimizeResult)
    assert found.success and found.status == 0 and "gtol = 1e-06" in found.message
    np.testing.assert_allclose(found.x, theirs.x, atol=1e-5)
    assert np.abs(found.jac).max() <= 1e-6 and found.fun == rosenbrock(found.x)[0] == min(found.losses)
    assert found.nfev == found.nit + 1 == len(found.losses) and found.losses.dtype == np.float64
    assert start.tolist() == [-1.2, 1.0, 0.7], "x0 is not changed"


@BACKENDS
@pytest.mark.parametrize("name", ["gd", "sgd", "adam", "rmsprop"])
def test_a_bounded_quadratic_as_scipy(name: str, backend: str) -> None:
    """A coupled one, whose least in the box is not the least, clipped. The projected gradient says when it is there."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 8)), rng.normal(size=20)
    low, high = np.full(8, -0.1), np.linspace(0.05, 0.3, 8)

    def fun(x: Any) -> tuple[float, Any]:
        r = a @ x - b
        return float(r @ r) / 2, a.T @ r

    theirs = scipy.optimize.minimize(fun, np.zeros(8), jac=True, bounds=scipy.optimize.Bounds(low, high), tol=1e-12)
    rates = {"lr": schedules.exponential(0.02, 0.995) if name in ("adam", "rmsprop") else 0.01}
    ours = gpuopt.minimize(fun, np.ones(8), name, bounds=(low, high), maxiter=5000, gtol=1e-7, backend=backend, **rates)
    assert ours.success, ours
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-6)
    assert (ours.x == low).any() or (ours.x == high).any()
    assert np.abs(ours.jac).max() > 0.1, "the gradient itself is not small"


@BACKENDS
def test_l1_is_the_lasso_of_scikit_learn(backend: str) -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(60, 30))
    b = a[:, :4] @ np.array([2.0, -1.0, 0.5, 3.0]) + 0.1 * rng.normal(size=60)

    def fun(x: Any) -> tuple[float, Any]:
        r = a @ x - b
        return float(r @ r) / (2 * len(b)), a.T @ r / len(b)

    alpha = 0.1
    theirs = Lasso(alpha=alpha, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(a, b).coef_
    rate = len(b) / np.linalg.eigvalsh(a.T @ a)[-1]
    ours = gpuopt.minimize(fun, np.zeros(30), "gd", lr=rate, l1=alpha, maxiter=20_000, gtol=1e-9, backend=backend)
    assert ours.success and set(np.flatnonzero(ours.x)) == set(np.flatnonzero(theirs))
    np.testing.assert_allclose(ours.x, theirs, atol=1e-8)
    assert ours.fun == pytest.approx(fun(theirs)[0] + alpha * np.abs(theirs).sum(), abs=1e-12)


@pytest.mark.parametrize("name", gpuopt.optimizers())
def test_every_optimizer_goes_down(name: str) -> None:
    x0 = np.linspace(-1, 1, 12).reshape(3, 4)
    bounds = None if averages(gpuopt.rules.get(name)) else (-0.5, 2.5)
    found = gpuopt.minimize(bowl, x0, name, lr=0.01, maxiter=20, bounds=bounds, backend="numpy")
    assert found.fun < bowl(x0)[0] and found.status == 1 and not found.success
    assert found.nit == 20 and found.message == "All of maxiter = 20 steps were made."


# ---------------------------------------------------------------------------------------------------- structures


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_nested_structures_are_mirrored(dtype: str) -> None:
    x0 = {"layer": [np.zeros(3, dtype), np.zeros((2, 2), dtype)], "bias": np.zeros((), dtype)}
    bounds = {"layer": [(None, 2), None], "bias": None}

    def fun(x: Any, scale: float) -> tuple[float, Any]:
        leaves = [bowl(a) for a in (*x["layer"], x["bias"])]
        loss, grads = sum(loss for loss, _ in leaves), [np.asarray(g * scale, dtype) for _, g in leaves]
        return loss * scale, {"bias": grads[2], "layer": grads[:2]}

    found = gpuopt.minimize(fun, x0, "gd", lr=0.5, args=(0.5,), bounds=bounds, maxiter=60, gtol=0, backend="numpy")
    assert [list(found.x), list(found.jac)] == [["layer", "bias"]] * 2 and isinstance(found.x["layer"], list)
    assert [a.dtype.name for a in (*found.x["layer"], found.x["bias"])] == [dtype] * 3
    np.testing.assert_allclose(found.x["layer"][0], [1, 2, 2], rtol=1e-3)
    np.testing.assert_allclose(found.x["layer"][1], [[1, 2], [3, 4]], rtol=2e-3)
    assert found.x["bias"] == pytest.approx(1, rel=1e-3) and not any(a.any() for a in (*x0["layer"], x0["bias"]))


@BACKENDS
@pytest.mark.parametrize("dtype", ["complex128", "complex64"])
def test_complex_numbers(dtype: str, backend: str) -> None:
    """Phase and size of a wave from its samples; the gradient is dL/dRe + i dL/dIm."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=(40, 5)) + 1j * rng.normal(size=(40, 5))
    true = rng.normal(size=5) + 1j * rng.normal(size=5)
    b = a @ true

    def fun(x: Any) -> tuple[float, Any]:
        r = a @ x - b
        return float(np.vdot(r, r).real) / 2, (a.conj().T @ r).astype(x.dtype)

    gtol = 1e-9 if dtype == "complex128" else 1e-3
    found = gpuopt.minimize(fun, np.zeros(5, dtype), "gd", lr=0.01, maxiter=3000, gtol=gtol, backend=backend)
    assert found.success and found.x.dtype == dtype
    np.testing.assert_allclose(found.x, true, atol=1e-10 if dtype == "complex128" else 1e-4)


def test_lists_of_numbers_whole_numbers_and_other_orders() -> None:
    for x0 in ([0, 0, 0], (0.0, 0, 0), np.zeros(3, int), np.zeros((3, 2), order="F")[:, 0], np.broadcast_to(0.0, 3)):
        found = gpuopt.minimize(bowl, x0, "gd", lr=1.0, maxiter=5, backend="numpy")
        assert found.x.dtype == np.float64 and found.x.tolist() == [1, 2, 3] and found.nit == 1


def test_a_gradient_of_none_leaves_an_array_alone() -> None:
    found = gpuopt.minimize(lambda x: (bowl(x[0])[0], [bowl(x[0])[1], None]), [np.zeros(2), np.ones(2)], "gd", lr=1.0)
    assert found.success and found.x[0].tolist() == [1, 2] and found.x[1].tolist() == [1, 1] and found.jac[1] is None


def test_jac_may_be_a_function_and_args_one_thing() -> None:
    found = gpuopt.minimize(
        lambda x, c: ((x - c) @ (x - c), "unused")[0], np.zeros(2), "gd", jac=lambda x, c: 2 * (x - c), args=3.0, lr=0.5
    )
    assert found.success and found.x.tolist() == [3, 3]


def test_masks_and_the_start_outside_of_the_bounds() -> None:
    """Both hold at the first evaluation already; pruned elements do not keep it from being converged."""
    seen: list[Any] = []

    def fun(x: Any) -> tuple[float, Any]:
        seen.append(x.copy())
        return bowl(x)

    mask = np.array([True, True, False])
    found = gpuopt.minimize(fun, np.full(3, 9.0), "gd", lr=0.5, bounds=(0.5, 1.5), mask=mask)
    assert seen[0].tolist() == [1.5, 1.5, 0] and found.success
    np.testing.assert_allclose(found.x, [1, 1.5, 0], atol=1e-5)


# ---------------------------------------------------------------------------------------------------- ends


def noisy(values: list[float]) -> Callable[[Any], tuple[float, Any]]:
    """A function whose losses are these, whatever x; each step is -1."""
    left = iter(values)
    return lambda x: (next(left), np.ones_like(x))


def test_the_best_point_is_returned_not_the_last() -> None:
    found = gpuopt.minimize(noisy([5, 3, 1, 2, 4]), np.zeros(2), "gd", lr=1.0, maxiter=4)
    assert found.fun == 1 and found.x.tolist() == [-2, -2] and found.losses.tolist() == [5, 3, 1, 2, 4]
    assert (found.nit, found.nfev, found.status, found.success) == (4, 5, 1, False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_it(bad: float) -> None:
    found = gpuopt.minimize(noisy([5, 3, bad, 1]), np.zeros(2), "gd", lr=1.0)
    assert (found.fun, found.nit, found.status, found.success) == (3, 2, 3, False) and found.x.tolist() == [-1, -1]
    assert f"The loss is {bad} at iteration 2" in found.message and str(found.losses[-1]) == str(bad)
    first = gpuopt.minimize(noisy([bad]), np.ones(2), "gd", lr=1.0)
    assert first.status == 3 and first.nit == 0 and first.x.tolist() == [1, 1] and str(first.fun) == str(bad)


def test_patience_and_ftol() -> None:
    """The least loss has to fall by more than ftol * max(1, |loss|) within so many iterations, not each time."""
    losses = [100, 50, 49.9, 49.95, 49.8, 30, 29.99, 29.98, 29.97]
    found = gpuopt.minimize(noisy(losses), np.zeros(1), "gd", lr=1.0, ftol=0.01, patience=4, maxiter=8)
    assert (found.status, found.nit, found.fun) == (1, 8, 29.97)
    short = gpuopt.minimize(noisy(losses), np.zeros(1), "gd", lr=1.0, ftol=0.01, patience=3)
    assert (short.nit, short.status, short.success, short.fun) == (4, 0, True, 49.8)
    assert short.message == "The loss did not fall by more than ftol = 0.01 in 3 iterations."
    any_fall = gpuopt.minimize(noisy([3, 2, 2, 2.5, 1]), np.zeros(1), "gd", lr=1.0, patience=2)
    assert (any_fall.nit, any_fall.fun) == (3, 2) and "did not fall any more in 2 iterations" in any_fall.message
    negative = gpuopt.minimize(noisy([-100, -100.5, -100.9, -200]), np.zeros(1), "gd", lr=1.0, ftol=0.01, patience=2)
    assert (negative.nit, negative.fun) == (2, -100.9)


def test_tol_is_both_and_the_default_is_scipys_gtol() -> None:
    plain = gpuopt.minimize(bowl, np.zeros(3), "gd", lr=0.1)
    assert "gtol = 1e-05" in plain.message and 1e-6 < np.abs(plain.jac).max() <= 1e-5
    both = gpuopt.minimize(bowl, np.zeros(3), "gd", lr=0.9, tol=1e-3)
    assert "gtol = 0.001" in both.message and 1e-4 < np.abs(both.jac).max() <= 1e-3
    flat = gpuopt.minimize(noisy([1] * 50), np.zeros(3), "gd", lr=0.1, tol=1e-3)
    assert flat.nit == 10 and "ftol = 0.001 in 10 iterations" in flat.message
    never = gpuopt.minimize(bowl, np.zeros(3), "gd", lr=0.1, gtol=0, maxiter=400)
    assert never.status == 1 and np.abs(never.jac).max() < 1e-12
    assert gpuopt.minimize(bowl, np.zeros(3), maxiter=0).x.tolist() == [0, 0, 0]


def test_ctrl_c_gives_the_best_so_far(capsys: pytest.CaptureFixture[str]) -> None:
    calls = itertools.count()

    def fun(x: Any) -> tuple[float, Any]:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return bowl(x)

    found = gpuopt.minimize(fun, np.zeros(3), "gd", lr=0.1, progress=True)
    assert (found.status, found.nit, found.success, len(found.losses)) == (4, 4, False, 4)
    assert found.fun == found.losses[-1] and found.message.startswith("Interrupted (KeyboardInterrupt) at iteration 4")
    assert found.fun == bowl(found.x)[0]


def test_ctrl_c_before_the_first_loss_is_ctrl_c() -> None:
    def fun(x: Any) -> tuple[float, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpuopt.minimize(fun, np.zeros(3))


def test_an_interruption_while_a_point_is_kept_leaves_a_whole_one() -> None:
    """Wherever a signal arrives between two statements of it: point, gradient and loss are of one evaluation."""
    import sys

    from gpuopt.minimizing.points import Best

    for moment in range(1, 40):
        best, count = Best(), itertools.count()
        for k in range(3):
            best.offer(9.0 - k, [np.full(2, float(k))] * 2, [np.full(2, float(k))] * 2)

        def trace(frame: Any, event: str, arg: Any) -> Any:
            if frame.f_globals.get("__name__") == "gpuopt.minimizing.points" and next(count) == moment:  # noqa: B023
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            best.offer(1.0, [np.full(2, 8.0)] * 2, [np.full(2, 8.0)] * 2)
            best.offer(0.5, [np.full(2, 8.5)] * 2, [np.full(2, 8.5)] * 2)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        kept = best.kept
        assert kept is not None
        of = {7.0: 2.0, 1.0: 8.0, 0.5: 8.5}[kept.loss]
        assert [a.tolist() for a in (*kept.arrays, *kept.grads)] == [[of, of]] * 4


def test_callbacks_by_scipys_convention() -> None:
    seen: list[Any] = []
    gpuopt.minimize(bowl, np.zeros(2), "gd", lr=0.1, maxiter=3, callback=lambda xk: seen.append(xk))
    assert len(seen) == 3 and len({a.tobytes() for a in seen}) == 3, "copies, one an iteration"
    results: list[Any] = []

    def stops(intermediate_result: Any) -> None:
        results.append(intermediate_result)
        if len(results) == 2:
            raise StopIteration

    found = gpuopt.minimize(bowl, np.zeros(2), "gd", lr=0.1, callback=stops)
    assert (found.status, found.success, found.nit) == (99, False, 2)
    assert found.message == "`callback` raised `StopIteration`."
    assert [(r.nit, r.nfev) for r in results] == [(1, 2), (2, 3)]
    assert results[1].fun == bowl(results[1].x)[0] and np.array_equal(results[1].jac, bowl(results[1].x)[1])
    assert gpuopt.minimize(bowl, np.zeros(2), "gd", lr=0.1, maxiter=2, callback=print).nit == 2


# ---------------------------------------------------------------------------------------------------- rates, bar


def test_schedules_by_name_and_as_functions() -> None:
    rates: list[float] = []

    def spy(taken: int) -> float:
        rates.append(0.1 / (1 + taken))
        return rates[-1]

    gpuopt.minimize(bowl, np.zeros(2), "gd", schedule=spy, maxiter=5, gtol=0)
    assert rates == [0.1 / (1 + k) for k in range(5)]
    for name in ("cosine", "linear", "one_cycle", "polynomial", "rex"):
        named = gpuopt.minimize(bowl, np.zeros(2), "gd", lr=0.3, schedule=name, maxiter=20, gtol=0)
        given = gpuopt.minimize(bowl, np.zeros(2), "gd", schedule=getattr(schedules, name)(0.3, 20), maxiter=20, gtol=0)
        assert named.losses.tobytes() == given.losses.tobytes()
        assert (
            named.losses.tobytes()
            != gpuopt.minimize(bowl, np.zeros(2), "gd", lr=0.3, maxiter=20, gtol=0).losses.tobytes()
        )
    plateau = schedules.plateau(1.0, patience=1)
    gpuopt.minimize(noisy([1] * 9), np.zeros(2), "gd", schedule=plateau, maxiter=8)
    assert plateau.value < 1e-2, "it was told the losses"


def test_a_rule_of_ones_own_and_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    found = gpuopt.minimize(bowl, np.zeros(2), gpuopt.rules.get("gd"), lr=0.5, progress=True, maxiter=200)
    assert found.success and "minimize" in capsys.readouterr().err


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__
    for gone, words in (("scipy", "needs scipy"), ("tqdm", "progress=True needs tqdm")):

        def without(name: str, *rest: Any, gone: str = gone, **more: Any) -> Any:
            if name.partition(".")[0] == gone:
                raise ModuleNotFoundError(f"No module named {gone!r}", name=gone)
            return usual(name, *rest, **more)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(gpuopt.GpuoptError, match=rf"{words}.*pip install '\.\[scipy\]'"):
            gpuopt.minimize(bowl, np.zeros(2), progress=True)
        monkeypatch.undo()


# ---------------------------------------------------------------------------------------------------- bad input

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fun": ({"fun": 3}, "fun = 3: expected a function of x"),
    "loss alone": ({"fun": lambda x: 1.0}, r"fun returned 1.0: expected \(loss, gradient\), since jac is True"),
    "loss of three": (
        {"fun": lambda x: (x, x)},
        r"fun returned ndarray of shape \(3,\) as the loss: expected one real number",
    ),
    "complex loss": ({"fun": lambda x: (1j, x)}, "fun returned 1j as the loss"),
    "text": ({"fun": lambda x: ("1", x)}, "fun returned '1' as the loss"),
    "no loss": ({"fun": lambda x: (None, x)}, "fun returned None as the loss"),
    "short gradient": ({"fun": lambda x: (1.0, x[:2])}, r"gradient of params: shape \(2,\): expected \(3,\)"),
    "gradient of text": ({"fun": lambda x: (1.0, "g")}, "gradient of params: expected a dense array, found str"),
    "gradient of another dtype": ({"fun": lambda x: (1.0, x.astype("f"))}, "dtype float32 does not go with"),
    "nested gradient": (
        {"x0": {"a": np.zeros(3)}},
        r"gradient: expected a dict with the keys 'a' as in x0, found ndarray",
    ),
    "x0": ({"x0": "start"}, "x0: expected a dense array, found str"),
    "no x0": ({"x0": {}}, "expected at least one array"),
    "numbers in a dict": ({"x0": {"a": 1.0}}, r"x0\['a'\]: expected a dense array, found float"),
    "booleans": ({"x0": np.zeros(3, bool)}, "params: dtype bool"),
    "optimizer": ({"optimizer": "adma"}, "unknown optimizer 'adma'.*did you mean"),
    "no optimizer": ({"optimizer": 3}, "expected"),
    "jac": ({"jac": None}, "jac = None: expected True"),
    "2-point": ({"jac": "2-point"}, "jac = '2-point': expected True"),
    "option": ({"momentun": 0.9}, "momentun"),
    "bounds": ({"bounds": 1}, "bounds of params: found 1: expected None or a pair"),
    "l1": ({"l1": -1}, r"minimize: l1 = -1: expected a number in \[0, inf\)"),
    "callback": ({"callback": 3}, "callback = 3: expected a function or None"),
    "tol": ({"tol": "a"}, "tol = 'a': expected a number"),
    "gtol": ({"gtol": -1e-3}, r"gtol = -0.001: expected a number in \[0, inf\)"),
    "ftol": ({"ftol": math.nan}, "ftol = nan"),
    "patience": ({"patience": 0}, "patience = 0: expected a whole number, 1 or more"),
    "maxiter": ({"maxiter": 1.5}, "maxiter = 1.5: expected a whole number, 0 or more"),
    "truth": ({"maxiter": True}, "maxiter = True"),
    "check_every": ({"check_every": 0}, "check_every = 0"),
    "schedule": ({"schedule": "cosin"}, "schedule = 'cosin': expected a function.*did you mean 'cosine'"),
    "schedule of a number": ({"schedule": 0.1}, "schedule = 0.1: expected a function"),
    "two rates": ({"schedule": lambda k: 0.1, "lr": 0.1}, "lr and schedule"),
    "two schedules": ({"schedule": "cosine", "lr": lambda k: 0.1}, "begins at lr, a number"),
    "maximize": ({"maximize": True}, "expected the negative of fun"),
    "averages": ({"optimizer": "schedulefreesgd", "bounds": (0, 1)}, "evaluates an average"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input(what: str) -> None:
    given, words = REFUSED[what]
    arguments = {"fun": lambda x: (1.0, np.ones(3)), "x0": np.zeros(3), "maxiter": 2, "backend": "numpy"} | given
    with pytest.raises(gpuopt.GpuoptError, match=words):
        gpuopt.minimize(**arguments)


def test_errors_of_the_function_itself_come_through() -> None:
    def fun(x: Any) -> tuple[float, Any]:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        gpuopt.minimize(fun, np.zeros(2), progress=True)

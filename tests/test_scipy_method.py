"""`gpuopt.scipy_method` as the method of `scipy.optimize.minimize`: what scipy hands over, in each of its forms."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, OptimizeResult, minimize, rosen, rosen_der

import gpuopt

START = [-1.2, 1.0]
CASES: dict[str, dict[str, Any]] = {
    "jac=True": {"fun": lambda x: (rosen(x), rosen_der(x)), "jac": True},
    "function": {"fun": rosen, "jac": rosen_der},
    "args": {
        "fun": lambda x, a, b: rosen(x) * a + b,
        "jac": lambda x, a, b: rosen_der(x) * a,
        "args": (2.0, 1.0),
    },
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_gpuopt_minimize(case: str) -> None:
    method = gpuopt.scipy_method("adam", lr=0.05, gtol=1e-3)
    found = minimize(x0=START, method=method, options={"maxiter": 4000}, **CASES[case])
    ours = gpuopt.minimize(x0=np.array(START), optimizer="adam", lr=0.05, gtol=1e-3, maxiter=4000, **CASES[case])
    assert isinstance(found, OptimizeResult) and found.success and np.abs(found.jac).max() <= 1e-3
    assert found.x.tobytes() == ours.x.tobytes() and found.losses.tobytes() == ours.losses.tobytes()
    np.testing.assert_allclose(found.x, [1, 1], atol=0.01)


BOUNDS: dict[str, Any] = {
    "pairs": [(None, 0.8), (0, None)],
    "infinite": [(-np.inf, 0.8), (0.0, np.inf)],
    "array": np.array([[-5, 0.8], [0, 9]]),
    "Bounds": Bounds([-np.inf, 0], [0.8, np.inf]),
    "Bounds of a number": Bounds(-9, [0.8, 9]),
}


@pytest.mark.parametrize("form", BOUNDS)
def test_bounds_in_scipys_forms(form: str) -> None:
    theirs = minimize(rosen, START, jac=rosen_der, method="L-BFGS-B", bounds=BOUNDS[form], tol=1e-10)
    method = gpuopt.scipy_method("adam", lr=0.02)
    ours = minimize(
        rosen, START, jac=rosen_der, method=method, bounds=BOUNDS[form], options={"maxiter": 5000, "gtol": 1e-4}
    )
    assert ours.success and ours.x[0] == 0.8
    np.testing.assert_allclose(ours.x, theirs.x, atol=1e-4)


def test_tol_callback_and_disp(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def callback(intermediate_result: Any) -> None:
        seen.append(intermediate_result.fun)
        if len(seen) == 5:
            raise StopIteration

    method = gpuopt.scipy_method("gd", lr=1e-3)
    stopped = minimize(rosen, START, jac=rosen_der, method=method, callback=callback, options={"disp": True})
    assert stopped.status == 99 and stopped.nit == 5 == len(seen) and "minimize" in capsys.readouterr().err
    loose = minimize(rosen, START, jac=rosen_der, method=method, tol=1.0, options={"maxiter": 500})
    assert loose.success and loose.nit < 500 and ("ftol = 1 " in loose.message or "gtol = 1." in loose.message)


def test_what_scipy_says_goes_before_and_copies_work() -> None:
    method = pickle.loads(pickle.dumps(gpuopt.scipy_method("adam", lr=0.05, maxiter=3)))
    assert repr(method) == "scipy_method('adam', lr=0.05, maxiter=3)"
    assert minimize(rosen, START, jac=rosen_der, method=method).nit == 3
    assert minimize(rosen, START, jac=rosen_der, method=method, options={"maxiter": 7}).nit == 7
    assert repr(gpuopt.scipy_method(gpuopt.rules.get("lion"))) == "scipy_method('Lion')"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no gradient": ({"jac": None}, "jac: gpuopt needs the gradient: expected jac=True"),
    "differences": ({"jac": "2-point"}, "jac: gpuopt needs the gradient"),
    "dict": ({"constraints": {"type": "eq", "fun": sum}}, "constraints: gpuopt keeps bounds only"),
    "list": ({"constraints": [{"type": "eq", "fun": sum}]}, "constraints"),
    "linear": ({"constraints": LinearConstraint([1, 1], 0, 1)}, "constraints"),
    "nonlinear": ({"constraints": [NonlinearConstraint(sum, 0, 1)]}, "constraints"),
    "hess": ({"hess": lambda x: np.eye(2)}, "hess: gpuopt uses gradients only"),
    "hessp": ({"hessp": lambda x, p: p}, "hessp: gpuopt uses gradients only"),
    "few bounds": ({"bounds": [(0, 1)] * 3}, "a pair .lower, upper. for each of 2 elements"),
    "no pairs": ({"bounds": [0, 1]}, "bounds = .0, 1.: expected scipy.optimize.Bounds"),
    "triples": ({"bounds": [(0, 1, 2)] * 2}, "expected scipy.optimize.Bounds"),
    "text": ({"bounds": [("a", "b")] * 2}, "expected scipy.optimize.Bounds"),
    "crossed": ({"bounds": [(1, 0)] * 2}, "expected lower <= upper"),
    "option": ({"options": {"maxitre": 3}}, "maxitre"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input(what: str) -> None:
    given, words = REFUSED[what]
    with pytest.raises(gpuopt.InputError, match=words):
        minimize(rosen, START, method=gpuopt.scipy_method("adam", lr=0.1), **({"jac": rosen_der} | given))


def test_an_optimizer_that_does_not_exist() -> None:
    with pytest.raises(gpuopt.InputError, match="unknown optimizer 'adm'"):
        gpuopt.scipy_method("adm")
    with pytest.raises(gpuopt.GpuoptError):
        gpuopt.scipy_method(3)  # type: ignore[arg-type]

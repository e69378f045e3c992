"""The demo: its network's gradient, every optimizer and dtype, one full run within its time, its plot."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import gpuopt
from gpuopt import demos, spaces
from gpuopt.demos import arrays, digits, plot, regression

PNG = b"\x89PNG\r\n\x1a\n"


def test_network_gradient_agrees_with_differences() -> None:
    rng = np.random.default_rng(0)
    params = digits.initial_weights(np, np.dtype("float64"), rng)
    x, labels = rng.normal(size=(5, 64)), np.array([0, 3, 9, 3, 1])
    _, grads = digits.loss_and_gradients(params, x, labels, np)
    for name, value in params.items():
        direction = rng.normal(size=value.shape)
        h = 1e-6
        ahead, behind = (
            digits.loss_and_gradients(params | {name: value + s * direction}, x, labels, np)[0] for s in (h, -h)
        )
        assert (ahead - behind) / (2 * h) == pytest.approx(np.sum(grads[name] * direction), rel=1e-6)


def test_regression_gradient_agrees_with_differences() -> None:
    x, y = regression.load()
    theta = np.linspace(-1, 1, 10)
    for i, g in enumerate(regression.gradient(x, y, theta)):
        step = 1e-6 * np.eye(10)[i]
        rise = (regression.loss(x, y, theta + step) - regression.loss(x, y, theta - step)) / 2e-6
        assert rise == pytest.approx(g, rel=1e-6, abs=1e-9)


def test_regression_data_is_standardised() -> None:
    x, y = regression.load()
    assert x.shape == (442, 10) and y.shape == (442,)
    np.testing.assert_allclose([x.mean(0), x.std(0)], [[0] * 10, [1] * 10], atol=1e-12)
    np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-12)


@pytest.mark.slow
def test_default_run_classifies_and_is_quick_enough(tmp_path: Path) -> None:
    printed = io.StringIO()
    begin = time.process_time()  # of all threads: time by the clock depends on what else the machine does
    result = demos.run(out=tmp_path, stream=printed)
    assert time.process_time() - begin < 30
    assert result.digits.accuracy >= 0.97
    assert result.plot == tmp_path / demos.PLOT_NAME
    assert result.plot.read_bytes().startswith(PNG)
    assert [c.label for c in result.curves] == ["GD", "minibatch SGD", "DGD", "Adagrad", "Adam"]
    for curve in result.curves:
        assert curve.losses.shape == (regression.STEPS + 1,)
        assert curve.steps_to_tolerance is not None
        assert curve.losses[-1] <= 1.012 * curve.least  # minibatch noise keeps SGD at the tolerance, 1 %
    for line in (
        f"backend {result.digits.backend}: ",
        "Linear regression on",
        "Two-layer network on",
        str(result.plot),
        "us per step",
    ):
        assert line in printed.getvalue()


@pytest.mark.once
@pytest.mark.parametrize("optimizer", sorted(digits.TUNED))
def test_every_optimizer_classifies_with_its_tuned_rate(optimizer: str) -> None:
    assert digits.train(optimizer, np, None, np.dtype("float32")).accuracy >= 0.95


@pytest.mark.once
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", arrays.DTYPES)
def test_quick_run_for_every_dtype(backend: str, dtype: str, tmp_path: Path) -> None:
    printed = io.StringIO()
    result = demos.run("adam", backend=backend, dtype=dtype, quick=True, out=tmp_path / "new", stream=printed)
    assert result.digits.backend == backend
    assert {curve.backend for curve in result.curves} == {backend}
    assert result.digits.accuracy >= 0.9
    assert result.digits.losses[-1] < result.digits.losses[0]
    assert all(curve.losses.min() < 0.6 * curve.losses[0] for curve in result.curves)  # DGD swings on its way
    assert (tmp_path / "new" / demos.PLOT_NAME).read_bytes().startswith(PNG)
    assert f"adam, {dtype}" in printed.getvalue()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero)")
def test_a_run_that_diverges_is_reported_and_drawn(tmp_path: Path) -> None:
    printed = io.StringIO()
    result = demos.run("gd", backend="numpy", lr=1e9, quick=True, out=tmp_path, stream=printed)
    assert "training loss nan" in printed.getvalue() and result.plot.read_bytes().startswith(PNG)


def test_seed_decides_the_run() -> None:
    runs = [digits.train("adam", np, "numpy", np.dtype("float32"), quick=True, seed=s).losses for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_rate_follows_a_half_cosine_from_its_peak() -> None:
    options, words = digits.settings_for("adam", 0.5, 100)
    assert [options["lr"](step) for step in (0, 50, 100, 200)] == pytest.approx([0.5, 0.25, 0, 0])
    assert words == "lr 0.5, falling along a half cosine"


def test_optimizer_without_a_tuned_rate_uses_its_own() -> None:
    assert digits.settings_for("nosuch", None, 100) == ({}, "default options")


@pytest.mark.parametrize(
    ("status", "backend", "space"),
    [
        ({"cupy": None}, None, "cupy"),
        ({"cupy": None}, "auto", "cupy"),
        ({"cupy": None}, "cuda", "cupy"),
        ({"cupy": None}, "numba-cuda", "cupy"),
        ({"cupy": None}, "numba", "numpy"),
        ({"cupy": "it is missing"}, "auto", "numpy"),
        ({"cupy": "it is missing"}, "cupy", "numpy"),
    ],
)
def test_arrays_lie_where_the_backend_wants_them(
    status: dict[str, str | None], backend: str | None, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPUOPT_BACKEND", raising=False)
    monkeypatch.setattr(gpuopt, "backends", lambda: status)
    monkeypatch.setattr(spaces, "import_module", lambda name: SimpleNamespace(__name__=name))
    assert spaces.choose(backend).xp.__name__ == space


def test_environment_chooses_the_arrays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUOPT_BACKEND", "numpy")
    monkeypatch.setattr(gpuopt, "backends", lambda: {"cupy": None})
    assert spaces.choose(None).xp is np


def test_backend_without_an_array_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpuopt, "backends", lambda: {"cupy": "CuPy is not installed", "numba-cuda": None})
    with pytest.raises(gpuopt.GpuoptError, match=r"numba-cuda is usable, but .* CuPy is not installed"):
        spaces.choose("numba-cuda")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        gpuopt.GpuoptError,
        match=r"needs scikit-learn, threadpoolctl, matplotlib, tqdm; .*python -m pip install '\.\[demo\]'",
    ):
        demos.require_packages()


def test_matrix_products_run_on_one_thread_while_the_demo_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their threads and Numba's take each other's cores: the digits took ten times as long."""
    during: dict[str, set[int]] = {"gradient": set(), "loss_and_gradients": set()}
    before = threads_of_blas()
    for module, name in ((regression, "gradient"), (digits, "loss_and_gradients")):
        inner = getattr(module, name)

        def watched(*args: object, inner: Callable[..., object] = inner, name: str = name) -> object:
            during[name] |= threads_of_blas()
            return inner(*args)

        monkeypatch.setattr(module, name, watched)
    regression.compare(np, "numpy", np.dtype("float32"), quick=True)
    digits.train("sgd", np, "numpy", np.dtype("float32"), quick=True)
    assert during == {"gradient": {1}, "loss_and_gradients": {1}}
    assert threads_of_blas() == before != set()


def threads_of_blas() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


# ---------------------------------------------------------------------------------------------------- the picture


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def picture(request: pytest.FixtureRequest) -> Any:
    """The figure of a quick run, the runs that it shows, and their dtype."""
    dtype = arrays.element_type(request.param)
    curves = regression.compare(np, "numpy", dtype, quick=True)
    training = digits.train("adam", np, "numpy", dtype, quick=True)
    return SimpleNamespace(figure=plot.picture(curves, training), curves=curves, training=training)


def lines(axes: Any) -> list[Any]:
    """The lines, without the dots and the tolerance."""
    return [line for line in axes.lines if line.get_linestyle() == "-"]


def test_each_panel_has_one_axis_and_names_at_the_lines(picture: Any) -> None:
    boxes = [axes.get_position().bounds for axes in picture.figure.axes]
    assert len(set(boxes)) == len(boxes) == 3, "no axis lies over another"
    assert all(axes.get_legend() is None and axes.get_xlabel() + axes.get_ylabel() for axes in picture.figure.axes)
    left = picture.figure.axes[0]
    named = {text.get_text(): text.get_color() for text in left.texts}
    for curve, line in zip(picture.curves, lines(left), strict=True):
        assert named[curve.label] == line.get_color()
    assert len({line.get_color() for line in lines(left)}) == len(picture.curves)


def test_lines_are_dense_and_the_dots_are_the_data(picture: Any) -> None:
    left, loss, accuracy = picture.figure.axes
    for axes in picture.figure.axes:
        for line in lines(axes):
            points = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
            turns = np.diff(np.arctan2(*np.diff(points[points[:, 1] >= axes.bbox.y0], axis=0).T[::-1]))
            assert np.abs(turns).max() < 0.2, "a kink"
    dots = [line for line in left.lines if line.get_marker() == "."]
    for curve, line in zip(picture.curves, dots, strict=True):
        np.testing.assert_allclose(line.get_ydata(), curve.losses[1:] / curve.least - 1, rtol=1e-6, atol=1e-9)
    assert len(loss.lines[0].get_xdata()) == len(picture.training.batch_losses)
    assert len(accuracy.lines[0].get_xdata()) == len(picture.training.checks) - 1


def test_smoothing_keeps_straight_lines_and_averages_noise() -> None:
    """On axes of log(step): no bend at the ends, and noise becomes small where steps are many."""
    steps = np.arange(1, 1001)
    where, line = plot.smooth(steps, 3 - 2 * np.log10(steps))
    np.testing.assert_allclose(line, 3 - 2 * np.log10(where), atol=1e-6)
    noise = np.random.default_rng(0).normal(size=1000)
    where, line = plot.smooth(steps, noise)
    assert np.abs(line[where > 300]).max() < 0.4


def test_a_loss_that_is_the_least_one_leaves_the_picture() -> None:
    """It is not drawn at a floor that no run has reached."""
    losses = 0.5 + np.concatenate([10.0 ** -np.arange(1, 12), np.zeros(50)])
    curve = regression.Curve("Newton", losses, 0.5, 3, 1.0, "numpy", "2 x 2")
    training = digits.Training(
        "adam", "", [1.0, 0.5], [0.5, 0.9], [1.5, 0.5, 0.5, 0.5], [(0, 0.1), (2, 0.5), (4, 0.9)], 1.0, "", ""
    )
    left = plot.picture([curve], training).axes[0]
    assert left.get_ylim()[0] >= plot.LOWEST
    assert all((line.get_ydata()[-10:] < left.get_ylim()[0]).all() for line in left.lines[:2])

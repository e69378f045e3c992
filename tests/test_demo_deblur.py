"""`gpuopt demo --deblur`: its gradient, what it restores, its picture, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad

import gpuopt
from gpuopt import cli, demos
from gpuopt.demos import deblur

pytestmark = pytest.mark.once


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the photograph that takes no second."""
    monkeypatch.setattr(deblur, "PART", (slice(120, 216), slice(140, 284)))
    monkeypatch.setattr(deblur, "DETAIL", (slice(20, 60), slice(30, 90)))


def test_the_gradient_is_that_of_the_loss() -> None:
    kernel = deblur.movement((8, 10))
    assert kernel.sum() == pytest.approx(1) and kernel.min() >= 0
    rng = np.random.default_rng(0)
    fun = deblur.Deblurring(np, rng.random((3, 8, 10)), kernel, np.dtype("float64"))

    def at(x: Any) -> tuple[float, Any]:
        loss, gradient = fun(x.reshape(3, 8, 10))
        return float(loss), gradient.ravel()

    assert check_grad(lambda x: at(x)[0], lambda x: at(x)[1], rng.random(240)) < 1e-5


def test_the_blur_is_a_convolution_that_goes_around_the_edges() -> None:
    kernel = deblur.movement((8, 10))
    image = np.random.default_rng(1).random((3, 8, 10))
    expected = sum(kernel[i, j] * np.roll(image, (i, j), (1, 2)) for i in range(8) for j in range(10))
    fun = deblur.Deblurring(np, image, kernel, np.dtype("float64"))
    np.testing.assert_allclose(fun.blurred(image), expected, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_it_restores_and_draws(small: None, dtype: str, tmp_path: Path) -> None:
    said = io.StringIO()
    found = demos.run_deblur(dtype=dtype, backend="numba", out=tmp_path / "new", stream=said)
    assert found.after > found.before + (3 if dtype != "bfloat16" else 1.5)
    assert found.restored.min() >= 0 and found.restored.max() <= 1 and found.losses[-1] < found.losses[0] / 4
    assert found.after == pytest.approx(-10 * np.log10(np.mean((found.restored - found.original) ** 2)))
    assert (tmp_path / "new" / deblur.NAME).read_bytes().startswith(b"\x89PNG")
    assert f"{found.before:.2f} dB blurred, {found.after:.2f} dB restored" in said.getvalue()


def test_the_picture_shows_what_was_found(small: None) -> None:
    found = deblur.restore(np, "numpy", np.dtype("float32"), quick=True)
    panels = deblur.picture(found).axes
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles[0] == "Original" and titles[2] == f"Blurred and noisy: {found.before:.1f} dB"
    np.testing.assert_array_equal(panels[5].images[0].get_array(), found.restored[deblur.DETAIL])
    assert len(panels[-1].lines[0].get_ydata()) == deblur.QUICK_STEPS + 1


def test_the_command_passes_its_options_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = []
    monkeypatch.setattr(demos, "run_deblur", lambda **options: given.append(options))
    assert cli.main(["demo", "--deblur", "--backend", "numpy", "--lr", "0.1", "--out", str(tmp_path), "--quick"]) == 0
    assert given == [
        {"backend": "numpy", "dtype": "float32", "out": str(tmp_path), "quick": True, "seed": 0, "lr": 0.1}
    ]
    for other in ("--all", "--optimizer=lion"):
        with pytest.raises(SystemExit):
            cli.main(["demo", "--deblur", other])


def test_without_pillow_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        raise ImportError("The Python Imaging Library (PIL) is required")

    monkeypatch.setattr("sklearn.datasets.load_sample_image", without)
    with pytest.raises(gpuopt.GpuoptError, match="reads by Pillow"):
        deblur.load()

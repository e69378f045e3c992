"""The report's chapters on what a model looks at: scikit-learn's inspection, and SHAP and LIME where they are installed.

Called by `search.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.demos.report import Section
from gpuopt.demos.setting import Setting
from gpuopt.messages import missing

BACKGROUND = 40  # patients that SHAP compares with
SHOWN = 4  # measurements


def importance(setting: Setting) -> Section:
    """Which pixels the digits' classifier needs."""
    from sklearn.datasets import load_digits
    from sklearn.inspection import permutation_importance

    _, test, _, labels = setting.images
    repeats = 2 if setting.quick else 8
    found = permutation_importance(setting.fitted, test, labels, n_repeats=repeats, random_state=setting.seed)
    lost = 100 * found.importances_mean.reshape(8, 8)
    row, column = (int(k) for k in np.unravel_index(lost.argmax(), lost.shape))
    figure = drawing.figure(7.2, 3.4)
    left, right = figure.subplots(1, 2)
    left.imshow(load_digits().images[0], cmap="Greys")
    figure.colorbar(right.imshow(lost, cmap="Blues", vmin=0), ax=right, shrink=0.85)
    for axes, title in ((left, "An image, a 0"), (right, "Accuracy lost, points of percent")):
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, fontsize=drawing.SMALL + 1.5, loc="left", color=drawing.INK)
    return Section(
        "What it looks at",
        "Permutation importance: shuffle one input over all test images and see how much accuracy is lost. It needs nothing "
        "but predict, so scikit-learn's own works on every estimator.",
        f"The pixel in row {row + 1}, column {column + 1} counts most: shuffled, it costs {lost.max():.1f} points of "
        f"accuracy. {int((lost <= 0).sum())} of the 64 pixels cost nothing.",
        "from sklearn.inspection import permutation_importance\n\n"
        "permutation_importance(classifier, x_test, y_test, n_repeats=8)",
        [("A digit, and a heat map of how much each pixel counts", figure)],
    )


def dependence(setting: Setting) -> Section:
    """How the predicted progression depends on single measurements."""
    from sklearn.inspection import partial_dependence

    x, y, names = setting.patients
    curves = []
    for k, name in enumerate(names):
        points = 10 if setting.quick else 30
        found = partial_dependence(setting.regressor, x, [k], kind="average", grid_resolution=points)
        curves.append((name, found["grid_values"][0], found["average"][0]))
    curves.sort(key=lambda c: -float(np.ptp(c[2])))
    figure = drawing.figure(9.6, 2.9)
    for axes, (name, grid, values) in zip(figure.subplots(1, SHOWN, sharey=True), curves, strict=False):
        axes.plot(grid, values, color=drawing.STRONG[0], linewidth=1.8)
        axes.set_xlabel("standard deviations")
        drawing.plain(axes, name)
    figure.axes[0].set_ylabel("predicted progression")
    strongest, _, values = curves[0]
    return Section(
        "What a measurement does",
        "Partial dependence: the mean prediction for all patients, had they all the same value of one measurement.",
        f"The prediction depends most on {strongest}: over its range the mean prediction "
        f"{'rises' if values[-1] > values[0] else 'falls'} by {np.ptp(values):.0f}, where the targets have a standard "
        f"deviation of {y.std():.0f}.",
        "from sklearn.inspection import PartialDependenceDisplay\n\n"
        'PartialDependenceDisplay.from_estimator(model, x, ["bmi", "s5"])',
        [("Mean prediction over the four measurements that matter most", figure)],
    )


def others(setting: Setting) -> Section:
    """One patient explained by SHAP and by LIME, as far as they are installed."""
    x, _, names = setting.patients
    absent = missing(*EXPLAINERS)
    found = {name: explain(setting, x, names) for name, explain in EXPLAINERS.items() if name not in absent}
    said = [
        f"{name.upper()} says that {max(values, key=lambda n: abs(values[n]))} counts most for the first patient."
        for name, values in found.items()
    ]
    if absent:
        said.append(f"Not installed here: {' and '.join(absent)} (python -m pip install {' '.join(absent)}).")
    return Section(
        "Why this prediction",
        "SHAP shares out one prediction among the measurements by Shapley values (Lundberg & Lee 2017); LIME fits a line to the "
        "model near one patient (Ribeiro et al. 2016). Both call predict, nothing else.",
        " ".join(said),
        "shap.Explainer(model.predict, x[:40])(x[:1])\n"
        'LimeTabularExplainer(x, mode="regression").explain_instance(x[0], model.predict)',
        [
            (f"What each measurement adds to one prediction, by {name.upper()}", bars(name, values))
            for name, values in found.items()
        ],
    )


def by_shap(setting: Setting, x: Any, names: list[str]) -> dict[str, float]:
    """Measurement -> what it adds to the prediction for the first patient."""
    import shap

    found = shap.Explainer(setting.regressor.predict, x[:BACKGROUND], seed=setting.seed)(x[:1], silent=True)
    return dict(zip(names, map(float, found.values[0]), strict=True))


def by_lime(setting: Setting, x: Any, names: list[str]) -> dict[str, float]:
    """The same, by the weights of a line near the patient."""
    from lime.lime_tabular import LimeTabularExplainer

    explainer = LimeTabularExplainer(
        x, mode="regression", feature_names=names, discretize_continuous=False, random_state=setting.seed
    )
    found = explainer.explain_instance(x[0], setting.regressor.predict, num_features=len(names), num_samples=1000)
    return {names[k]: float(weight * x[0, k]) for k, weight in found.as_map()[1]}


EXPLAINERS = {"shap": by_shap, "lime": by_lime}


def bars(name: str, values: dict[str, float]) -> Any:
    """A bar for each measurement, the greatest on top."""
    order = sorted(values, key=lambda n: abs(values[n]))
    figure = drawing.figure(7.2, 3.2)
    axes = figure.subplots()
    axes.barh(order, [values[n] for n in order], color=[drawing.STRONG[values[n] < 0] for n in order])
    axes.set_xlabel("added to the predicted progression")
    drawing.plain(axes, name.upper())
    return figure

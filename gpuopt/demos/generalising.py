"""The report's chapters on what a model does with data it has not seen: penalties, stopping, ensembles. Called by `search.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpuopt import drawing
from gpuopt.demos.report import Section
from gpuopt.demos.setting import Setting

PENALTIES = tuple(np.geomspace(0.1, 45, 14).tolist())
SMALL = slice(0, 500)  # of the training images, which a network learns by heart
FEW = slice(0, 200)  # from which small networks learn different things
FOLDS = 5
MEMBERS = 8
VOTERS = ("adamw", "sgd", "lion")


def penalties(setting: Setting) -> Section:
    """How an L1 penalty takes measurements out of a regression, cross-validated."""
    from sklearn.model_selection import cross_val_score

    from gpuopt.sklearn import LinearRegressor

    x, y, names = setting.patients
    tried = PENALTIES[::3] if setting.quick else PENALTIES
    scores, coefficients = [], []
    for l1 in tried:
        made = LinearRegressor(
            optimizer="gd", batch_size=len(x), l1=l1, max_iter=setting.passes(300), backend=setting.backend
        )
        scores.append(cross_val_score(made, x, y, cv=FOLDS))
        coefficients.append(made.fit(x, y).coef_)
    means = np.mean(scores, 1)
    best = int(means.argmax())
    enough = means[best] - np.std(scores[best], ddof=1) / FOLDS**0.5
    chosen = max(k for k, mean in enumerate(means) if mean >= enough)
    kept = [name for name, w in zip(names, coefficients[chosen], strict=True) if w]
    figure = paths(names, tried, np.array(coefficients), means, chosen)
    return Section(
        "Keeping weights small, or away",
        "An L1 penalty sets weights exactly to zero, because its soft threshold is part of the optimizer's own fused step; "
        "l2 and dropout keep them small. With gradients of all rows this is the proximal gradient method, which finds the "
        "lasso. How much of it is a question for cross-validation: here the strongest penalty whose score is within one "
        "standard error of the best.",
        f"At l1 = {tried[chosen]:.2g} the regression needs {len(kept)} of {len(names)} measurements ({', '.join(kept)}) for "
        f"a cross-validated R2 of {means[chosen]:.3f}; the best is {means[best]:.3f}.",
        "from gpuopt.sklearn import LinearRegressor\nfrom sklearn.model_selection import GridSearchCV\n\n"
        'search = GridSearchCV(LinearRegressor(optimizer="gd", batch_size=442), {"l1": [0.1, 1, 10]}).fit(x, y)',
        [("Coefficients over the strength of the penalty, and the cross-validated score", figure)],
    )


def paths(names: list[str], tried: Any, coefficients: Any, scores: Any, chosen: int) -> Any:
    """Coefficients (penalties, measurements) and scores over the penalty."""
    figure = drawing.figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    ends = []
    for name, values, colour in zip(names, coefficients.T, drawing.colours(names, ()).values(), strict=True):
        left.plot(tried, values, color=colour, linewidth=1.5)
        ends.append((tried[0], values[0], name, colour))
    left.set(xscale="log", xlabel="l1, from strong to weak", ylabel="coefficient", xlim=(tried[-1], tried[0]))
    drawing.written_out(left.xaxis)
    drawing.plain(left, "Coefficients come in one after the other")
    right.plot(tried, scores, "o-", color=drawing.STRONG[0], markersize=4)
    right.axvline(tried[chosen], color=drawing.STRONG[1], linewidth=1.5)
    right.set(xscale="log", xlabel="l1", ylabel="cross-validated R2")
    drawing.written_out(right.xaxis)
    drawing.plain(right, f"As good, with less: l1 = {tried[chosen]:.2g}")
    drawing.name_ends(left, ends)
    return figure


def stopping(setting: Setting) -> Section:
    """Training that ends by itself, on a small part of the digits, where it would overfit."""
    x, test, y, labels = setting.images
    made = setting.classifier(
        optimizer="adamw",
        lr=0.003,
        max_iter=setting.passes(120),
        early_stopping=True,
        validation_fraction=0.2,
        patience=10,
    ).fit(x[SMALL], y[SMALL])
    scores = np.array(made.validation_scores_)
    best = int(scores.argmax())
    return Section(
        "When to stop",
        "The training loss falls for ever; what counts is data that the steps do not see. A part is held out, training stops "
        "when its score has not risen for some passes, and the weights of the best pass are what stays.",
        f"On {SMALL.stop} images training stopped after {len(scores)} of {made.max_iter} passes; the weights are those of "
        f"pass {best + 1}, with {100 * scores[best]:.1f} % right of what was held out and "
        f"{100 * made.score(test, labels):.1f} % of the test images.",
        "MLPClassifier(early_stopping=True, validation_fraction=0.2, patience=10).fit(x, y)",
        [
            (
                "Training loss and validation accuracy over passes, the best pass marked",
                curves(made.loss_curve_, scores, best),
            )
        ],
    )


def curves(losses: Any, scores: Any, best: int) -> Any:
    """Training loss and held-out accuracy, pass by pass."""
    passes = np.arange(1, len(scores) + 1)
    figure = drawing.figure(9.6, 3.6)
    left, right = figure.subplots(1, 2)
    left.plot(passes, losses, color=drawing.STRONG[0], linewidth=1.8)
    left.set(yscale="log", xlabel="pass", ylabel="training loss")
    drawing.written_out(left.yaxis)
    right.plot(passes, 100 * scores, color=drawing.STRONG[0], linewidth=1.8)
    right.set(xlabel="pass", ylabel="accuracy on what was held out, %")
    for axes, title in ((left, "The training loss goes on falling"), (right, "What was held out says when to stop")):
        axes.axvline(best + 1, color=drawing.STRONG[1], linewidth=1.5)
        drawing.whole(axes.xaxis)
        drawing.plain(axes, title)
    return figure


def ensembles(setting: Setting) -> Section:
    """Networks that differ by their seeds or optimizers, on a few of the digits."""
    from sklearn.ensemble import BaggingClassifier, VotingClassifier

    x, test, y, labels = setting.images
    x, y, members = x[FEW], y[FEW], 3 if setting.quick else MEMBERS
    given: dict[str, Any] = {"hidden_layer_sizes": (16, 16), "max_iter": setting.passes(60)}
    made = [setting.classifier(**given | {"random_state": setting.seed + k}) for k in range(members)]
    single = [model.fit(x, y).score(test, labels) for model in made]
    bag = BaggingClassifier(setting.classifier(**given), members, bootstrap=False, random_state=setting.seed)
    voters = [(name, setting.classifier(**given, optimizer=name)) for name in VOTERS]
    voted = VotingClassifier(voters, voting="soft").fit(x, y)
    found = [
        (f"one network (mean of {members})", float(np.mean(single))),
        (f"{members} that differ by their seeds", bag.fit(x, y).score(test, labels)),
        (f"a vote of {', '.join(VOTERS)}", voted.score(test, labels)),
    ]
    best = max(found[1:], key=lambda pair: pair[1])
    return Section(
        "Several models together",
        "Networks with other seeds, or trained by other optimizers, make other mistakes. The estimators are of scikit-learn's "
        "kind, so its ensembles take them as they are. How much it helps depends on the problem: here is one measurement.",
        f"Trained on {FEW.stop} images: {100 * found[0][1]:.1f} % of the test images right with one network, "
        f"{100 * best[1]:.1f} % with {best[0]}.",
        "from sklearn.ensemble import BaggingClassifier\n\nBaggingClassifier(MLPClassifier(), 8, bootstrap=False).fit(x, y)",
        [("Test accuracy of single networks and of two ensembles", side_by_side(single, found))],
        [["model", "test images right"], *([name, f"{100 * score:.2f} %"] for name, score in found)],
    )


def side_by_side(single: list[float], found: list[tuple[str, float]]) -> Any:
    """A row for each, single networks as dots in the first."""
    figure = drawing.figure(7.2, 2.2)
    axes = figure.subplots()
    axes.plot([100 * s for s in single], [2] * len(single), "o", color=drawing.GREY, alpha=0.5, markersize=4)
    for k, (_, score) in enumerate(found):
        axes.plot([100 * score], [2 - k], "|", color=drawing.STRONG[0], markersize=16, markeredgewidth=2.5)
    axes.set_yticks([2, 1, 0], [name for name, _ in found])
    axes.set(ylim=(-0.6, 2.6), xlabel="test images right, %")
    drawing.plain(axes, "One network, and several together")
    return figure

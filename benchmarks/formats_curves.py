"""How fast a training gets somewhere: the validation loss along trainings of `bench_formats.py --every`, as a table of steps to a
loss and as a picture.

Knows optimizers and recipes by name, no model.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

from gpuopt import drawing


@dataclass(frozen=True)
class Point:
    """The loss behind so many steps of one training."""

    date: str
    machine: str
    commit: str
    optimizer: str
    lr: float
    recipe: str
    seed: int
    step: int
    loss: float


Curves = dict[str, dict[int, list[Point]]]  # by optimizer and recipe, then by seed


def read(path: Path) -> Curves:
    """The last training of each kind."""
    kinds = {"int": int, "float": float, "str": str}
    found: Curves = {}
    with path.open(newline="") as file:
        for entry in csv.DictReader(file):
            point = Point(**{f.name: kinds[str(f.type)](entry[f.name]) for f in fields(Point)})
            name = point.optimizer + ("" if point.recipe == "fp32" else f", {point.recipe}")
            seeds = found.setdefault(name, {})
            if point.seed in seeds and point.step <= seeds[point.seed][-1].step:  # another training began
                seeds[point.seed] = []
            seeds.setdefault(point.seed, []).append(point)
    return found


def steps_to(points: list[Point], target: float) -> float:
    """The steps behind which the loss is no more than this, on the line between two points; infinite where it never is."""
    if points[0].loss <= target:
        return points[0].step
    for before, after in pairwise(points):
        if after.loss <= target < before.loss:
            share = (before.loss - target) / (before.loss - after.loss)
            return before.step + share * (after.step - before.step)
    return float("inf")


def table(curves: Curves, target: float) -> None:
    """Print, for each optimizer, the steps to a loss and the loss at the end, least steps first."""
    print(f"\n{'optimizer':28} seeds  steps to {target:g}        last loss")
    rows = []
    for name, seeds in curves.items():
        steps = [steps_to(points, target) for points in seeds.values()]
        rows.append((statistics.fmean(steps), name, steps, [points[-1].loss for points in seeds.values()]))
    for mean, name, steps, last in sorted(rows):
        print(
            f"{name:28} {len(steps):5}  {mean:6.0f} ({min(steps):.0f} to {max(steps):.0f})   {statistics.fmean(last):.4f}"
        )


def draw(curves: Curves, path: Path, target: float) -> Path:
    """Mean losses by steps, one line for each optimizer, and the loss that steps are counted to."""
    made = drawing.figure(7.5, 4.6)
    axes = made.subplots()
    colours, ends = drawing.colours(list(curves), [n for n in curves if n != "adamw"]), []
    for name, seeds in curves.items():
        steps = [point.step for point in next(iter(seeds.values()))]
        means = [statistics.fmean(points[k].loss for points in seeds.values()) for k in range(len(steps))]
        axes.plot(steps, means, color=colours[name], linewidth=1.5)
        ends.append((steps[-1], means[-1], name, colours[name]))
    axes.axhline(target, color="0.6", linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps", ylabel="validation loss")
    axes.set_ylim(top=min(3.0, axes.get_ylim()[1]))
    drawing.plain(axes, "validation loss of a small transformer")
    drawing.name_ends(axes, ends)
    return drawing.save(made, path)

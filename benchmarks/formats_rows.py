"""The rows of `bench_formats.py`: kept in a file that only grows, as a table, and as a picture of loss against bytes.

Knows the recipes by name, no model and no optimizer.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from formats_emulated import PEERS

from gpuopt import drawing

SPLIT8 = {"param_format": "split8"}
# Weights, and the options of the optimizer; or the peer that is emulated.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("float32", {}),
    "bf16": ("bfloat16", {}),
    "split8": ("bfloat16", SPLIT8),
    "int8": ("float32", {"state_format": "int8"}),
    "int4": ("float32", {"state_format": "int4"}),
    "float8": ("float32", {"state_format": "float8"}),
    "split8+int8": ("bfloat16", SPLIT8 | {"state_format": "int8"}),
    "split8+int4": ("bfloat16", SPLIT8 | {"state_format": "int4"}),
    "split8+auto4": ("bfloat16", SPLIT8 | {"state_format": "auto4"}),
    "split8+float8": ("bfloat16", SPLIT8 | {"state_format": "float8"}),
    "flashoptim": ("flashoptim", {}),
    "bitsandbytes": ("bitsandbytes", {}),
}
BASE = "fp32"  # what the others are compared with

ACROSS = 3  # panels side by side
ROOM = 0.25  # that a name takes in a picture, of the width of the axes


@dataclass(frozen=True)
class Row:
    """One training. bytes: a parameter, without gradient; gradients: the dtype in which the optimizer got them."""

    date: str
    machine: str
    python: str
    torch: str
    gpuopt: str
    commit: str
    optimizer: str
    beta2: str
    lr: float
    recipe: str
    gradients: str
    seed: int
    steps: int
    parameters: int
    bytes: float
    loss: float
    seconds: float


def read(path: Path) -> list[Row]:
    """Every row."""
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            Row(**{f.name: kinds[str(f.type)](entry[f.name]) for f in fields(Row)}) for entry in csv.DictReader(file)
        ]


Setting = tuple[str, str, float, int, int]  # optimizer, beta2, rate, steps, parameters
Losses = dict[str, dict[int, Row]]  # by recipe, then by seed


def grouped(rows: Iterable[Row]) -> dict[Setting, Losses]:
    """The last row of each kind, recipes in the order of the table. Those whose gradients are not the recipe's own say so."""
    found: dict[Setting, Losses] = {}
    for row in sorted(rows, key=lambda r: list(RECIPES).index(r.recipe)):
        usual = "float32" if RECIPES[row.recipe][0] == "float32" else "bfloat16"
        name = row.recipe if row.gradients == usual else f"{row.recipe}, {row.gradients} gradients"
        setting = row.optimizer, row.beta2, row.lr, row.steps, row.parameters
        found.setdefault(setting, {}).setdefault(name, {})[row.seed] = row
    return found


def headline(setting: Setting) -> str:
    """What a table or panel is of."""
    optimizer, beta2, lr, steps, parameters = setting
    return f"{optimizer}{f', beta2 {beta2}' if beta2 else ''}, rate {lr:g}, {steps} steps, {parameters} parameters"


def against(rows: dict[int, Row], base: dict[int, Row]) -> list[float]:
    """By how many per cent the loss of each seed is above that of fp32 with the same seed."""
    return [100 * (rows[seed].loss / base[seed].loss - 1) for seed in rows if seed in base]


def deviation(values: list[float]) -> float:
    """The standard deviation; NaN of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def table(rows: Iterable[Row]) -> None:
    """Print, for each recipe, what its seeds gave; behind ±: the deviation of the differences, seed by seed."""
    for setting, losses in grouped(rows).items():
        print(f"\n{headline(setting)}")
        print(f"{'recipe':34} bytes  seeds     loss  max-min  deviation  % above fp32       seconds")
        for recipe, found in losses.items():
            values = [r.loss for r in found.values()]
            above = against(found, losses.get(BASE, {}))
            mean = statistics.fmean(above) if above else math.nan
            size, seconds = (statistics.fmean(getattr(r, n) for r in found.values()) for n in ("bytes", "seconds"))
            print(
                f"{recipe:34} {size:5.2f}  {len(values):5}  {statistics.fmean(values):7.4f}  {max(values) - min(values):7.4f}  "
                f"{deviation(values):9.4f}  {mean:+7.2f} ± {deviation(above):5.2f}  {seconds:8.1f}"
            )


def name_points(axes: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Write names right of the points that stand together, each led to its own: (x, y, text, colour). Comes last."""
    axes.figure.draw_without_rendering()
    gap = drawing.LINE_SPACING * drawing.SMALL * axes.figure.dpi / 72 / axes.get_window_extent().height
    to_axes = axes.transScale + axes.transLimits
    clusters: list[list[Any]] = []
    for x, y, text, colour in sorted(points):
        place = tuple(map(float, to_axes.transform((x, y))))
        if not clusters or place[0] - clusters[-1][-1][0][0] > ROOM:
            clusters.append([])
        clusters[-1].append((place, text, colour))
    for cluster in clusters:
        right = max(x for (x, _), *_ in cluster) + 0.035
        heights = drawing.spread([y for (_, y), *_ in cluster], gap, gap / 2, 1)
        for (place, text, colour), height in zip(cluster, heights, strict=True):
            lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2}
            axes.annotate(
                text, place, (right, height), xycoords="axes fraction", textcoords="axes fraction", color=colour,
                fontsize=drawing.SMALL, va="center", arrowprops=lead | {"relpos": (0, 0.5)}, annotation_clip=False,
            )  # fmt: skip


def draw(rows: Iterable[Row], path: Path) -> Path:
    """Loss by bytes a parameter, one panel for each setting of several recipes: means, and lines from the least to the greatest;
    peers are squares.
    """
    groups = {setting: losses for setting, losses in grouped(rows).items() if len(losses) > 1}
    across = min(len(groups), ACROSS)
    down = -(-len(groups) // across)
    made = drawing.figure(6.6 * across, 4.4 * down)
    panels = made.subplots(down, across, squeeze=False).reshape(-1)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    names = list(dict.fromkeys(name for losses in groups.values() for name in losses))
    colours = drawing.colours(names, [n for n in names if n.split(",")[0] not in (*PEERS, BASE)])
    for axes, (setting, losses) in zip(panels, groups.items(), strict=False):
        points = []
        for name, found in losses.items():
            values, colour = [r.loss for r in found.values()], colours[name]
            x, y = statistics.fmean(r.bytes for r in found.values()), statistics.fmean(values)
            axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.5)
            axes.plot(x, y, "s" if name.split(",")[0] in PEERS else "o", color=colour, markersize=5)
            points.append((x, y, name, colour))
        axes.set(xlabel="bytes a parameter, without gradient", ylabel="validation loss")
        axes.margins(x=0.12, y=0.12)
        drawing.plain(axes, headline(setting))
        name_points(axes, points)
    return drawing.save(made, path)

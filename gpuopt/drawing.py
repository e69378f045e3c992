"""What the pictures of the demo and of the benchmarks share: a figure that needs no display, colours, names at the ends of lines.

Called by the `plot.py` of `gpuopt/demos` and `gpuopt/bench`, and by the results of `gpuopt/training`. Knows neither optimizers
nor measurements.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gpuopt.errors import GpuoptError
from gpuopt.messages import install

# Okabe & Ito's colours, which people who see colours in different ways can tell apart.
STRONG = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# What is ours in blues, what is compared with it in quieter colours without any blue.
OURS = ("#0047AB", "#1E90FF", "#00B7C7", "#5B3FD6")
OTHERS = ("#B35806", "#8C8C8C", "#C0392B", "#7F8C3A", "#B07AA1", "#6B4C3B", "#E0A030", "#4D4D4D", "#D98880", "#A9BA9D")
GREY, INK = "#767676", "#222222"
SMALL = 8.5  # points, of labels and ticks
LINE_SPACING = 1.3
NEAR = 0.85  # of the width: from there on, names stand right of the axes


def figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches. Raises GpuoptError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise GpuoptError(f"a picture needs matplotlib; {install('demo')}") from error

    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def save(made: Any, path: Path) -> Path:
    """Write a figure as PNG, making its folder; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=144)
    return path


def png(made: Any) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    made.savefig(buffer, dpi=144, format="png")
    return buffer.getvalue()


def plain(axes: Any, title: str) -> None:
    """Only the two spines that carry numbers, a faint grid behind the data, the title at the left."""
    axes.set_title(title, fontsize=SMALL + 1.5, loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(which="both", labelsize=SMALL, color=GREY, labelcolor=INK)
    axes.xaxis.label.set(fontsize=SMALL + 0.5, color=INK)
    axes.yaxis.label.set(fontsize=SMALL + 0.5, color=INK)
    axes.grid(True, which="major", color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def whole(axis: Any) -> None:
    """Ticks of an axis at whole numbers only."""
    axis.set_major_locator(import_module("matplotlib.ticker").MaxNLocator(integer=True))


def written_out(axis: Any) -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10, 20 ..., as plain numbers."""
    ticker = import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(ticker.NullLocator())


def colours(names: Iterable[str], ours: Iterable[str]) -> dict[str, str]:
    """A colour for each name, no two the same: those of `ours` are blue, so that they stand out."""
    mine = set(ours)
    listed = list(dict.fromkeys(names))
    made = dict(zip([n for n in listed if n in mine], distinct(OURS, 0.55), strict=False))
    made |= dict(zip([n for n in listed if n not in mine], distinct(OTHERS, 0.0), strict=False))
    return made


def distinct(first: Sequence[str], hue: float) -> Iterable[str]:
    """These colours, then as many more as are asked for, in the hues from `hue` on."""
    yield from first
    taken, k = set(first), 0
    while True:
        k += 1
        shade = colorsys.hls_to_rgb((hue + 0.13 * ((k * 0.618034) % 1)) % 1, 0.3 + 0.4 * ((k * 0.7548777) % 1), 0.6)
        colour = "#{:02X}{:02X}{:02X}".format(*(round(255 * part) for part in shade))
        if colour not in taken:
            taken.add(colour)
            yield colour


def spread(wanted: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Positions at least `gap` apart, in the same order and as near to the wanted ones as that allows, from low to high.

    Neighbours that would be too close form a block around the mean of what they want. Where not all fit, they overlap evenly.
    """
    if not wanted:
        return []
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    blocks: list[tuple[float, int]] = []  # sum of what its members want for the first of them, number of members
    for place, k in enumerate(order):
        total, count = wanted[k] - place * gap, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            before, members = blocks.pop()
            total, count = total + before, count + members
        blocks.append((total, count))
    top = high - (len(wanted) - 1) * gap
    starts = [min(max(total / count, low), top) for total, count in blocks for _ in range(count)]
    found = dict(zip(order, (start + place * gap for place, start in enumerate(starts)), strict=True))
    return [found[k] for k in range(len(wanted))]


def within_axes(fraction: float) -> float:
    """The place nearest to it on the axes, of which it is a fraction; what is no number has left at the top."""
    return 1.0 if math.isnan(fraction) else min(max(float(fraction), 0.0), 1.0)


def name_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names right of the axes, each in its line's colour and led to its end: (x, y, text, colour).

    Comes last: limits and scales must be set. An end outside the limits is taken to be at the nearest edge, NaN at the top. The
    name of a line that ends long before the right edge stands at that end.
    """
    axes.figure.draw_without_rendering()
    height = axes.get_window_extent().height * 72 / axes.figure.dpi
    to_axes = axes.transScale + axes.transLimits
    points = [tuple(map(within_axes, to_axes.transform((x, y)))) for x, y, _, _ in ends]
    gap = LINE_SPACING * SMALL / height
    outside = [k for k, (x, _) in enumerate(points) if x > NEAR]
    places = dict(zip(outside, spread([points[k][1] for k in outside], gap, gap / 2, 1), strict=True))
    for k, (point, (_, _, text, colour)) in enumerate(zip(points, ends, strict=True)):
        style = {
            "color": colour,
            "fontsize": SMALL,
            "va": "center",
            "annotation_clip": False,
            "xycoords": "axes fraction",
        }
        if k in places:
            lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2}
            target = {"xytext": (1.035, places[k]), "textcoords": "axes fraction"}
            axes.annotate(text, point, **target, **style, arrowprops=lead | {"relpos": (0, 0.5)})
        else:
            made = axes.annotate(text, point, xytext=(6, -1), textcoords="offset points", zorder=5, **style)
            made.set_path_effects([import_module("matplotlib.patheffects").withStroke(linewidth=3, foreground="white")])

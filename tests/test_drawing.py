"""What pictures share: colours that differ, ours in blue; names at the ends of lines that do not lie on each other."""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from gpuopt import drawing


def hue(colour: str) -> float:
    return colorsys.rgb_to_hls(*(int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)))[0]


@pytest.mark.parametrize("count", [1, 5, 11, 40])
def test_no_two_names_share_a_colour_and_ours_are_blue(count: int) -> None:
    names = [f"name {k}" for k in range(count)]
    ours = names[: (count + 2) // 3]
    made = drawing.colours([*names, *names], ours)
    assert list(made) == [*ours, *names[len(ours) :]] and len(set(made.values())) == count
    for name, colour in made.items():
        red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
        if name in ours:
            assert 0.48 < hue(colour) < 0.75 and blue > max(red, 90), (name, colour)
        else:
            assert not (0.48 < hue(colour) < 0.75) or max(red, green, blue) - min(red, green, blue) < 16, (name, colour)


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_order_and_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.uniform(0, 1, rng.integers(1, 12)).tolist()
    found = drawing.spread(wanted, 0.05)
    assert np.argsort(found, kind="stable").tolist() == np.argsort(wanted, kind="stable").tolist()
    assert min(found) >= -1e-12 and max(found) <= 1 + 1e-12
    assert np.diff(sorted(found)).min(initial=1) >= 0.05 - 1e-12


def test_spread_moves_nothing_that_has_room() -> None:
    assert drawing.spread([0.9, 0.1, 0.5], 0.05) == pytest.approx([0.9, 0.1, 0.5])
    assert drawing.spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert drawing.spread([0.0, 0.0, 0.02, 1.0], 0.1) == pytest.approx([0.0, 0.1, 0.2, 1.0])
    assert drawing.spread([], 0.1) == []
    assert drawing.spread([0.1] * 5, 0.9) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_names_do_not_overlap_and_ends_outside_are_at_the_edge() -> None:
    figure = drawing.figure(6, 4)
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(1e-3, 1), yscale="log")
    drawing.name_ends(axes, [(10, y, f"{y}", "#000000") for y in (0.5, 0.5001, 0.51, 1e-9, 7, np.nan, np.inf)])
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
    whole = figure.bbox
    assert all(box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1 for box in boxes)


def test_a_line_that_ends_early_has_its_name_there() -> None:
    """No leader across the other lines."""
    figure = drawing.figure(6, 4)
    axes = figure.subplots()
    axes.set(xlim=(1, 1000), ylim=(0, 1), xscale="log")
    drawing.name_ends(axes, [(1000, 0.5, "whole", "#000000"), (100, 0.5, "early", "#111111")])
    whole, early = axes.texts
    assert whole.arrow_patch is not None and early.arrow_patch is None
    figure.draw_without_rendering()
    assert Text.get_window_extent(early).x1 < axes.bbox.x1 < Text.get_window_extent(whole).x0


def test_ticks_are_whole_or_written_out() -> None:
    figure = drawing.figure(6, 4)
    axes = figure.subplots()
    axes.plot([1, 20], [0.03, 3000])
    axes.set_yscale("log")
    drawing.whole(axes.xaxis)
    drawing.written_out(axes.yaxis)
    figure.draw_without_rendering()
    assert all(float(tick) == round(tick) for tick in axes.get_xticks())
    words = [label.get_text() for label in axes.get_yticklabels()]
    assert {"0.05", "1", "20", "1,000"} <= set(words) and not axes.yaxis.get_minorticklocs().size

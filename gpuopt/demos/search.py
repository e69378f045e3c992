"""`gpuopt demo --search`: training practice from the rate to the explanation, on data that scikit-learn ships, in one HTML report.

Called by `gpuopt/demos/__init__.py`. The chapters are in `choosing.py`, `generalising.py`, `shrinking.py` and `explaining.py`, the
page in `report.py`; this file says in which order, and tells what is found as it is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gpuopt
from gpuopt.demos import choosing, explaining, generalising, report, shrinking
from gpuopt.demos.setting import Setting

NAME = "gpuopt-demo-search.html"
TITLE = "Training practice, measured"
LEAD = (
    "Which learning rate, which batch size, which optimizer; when to stop, how to keep weights small and combine models, "
    "how to make them smaller, and what they look at. Every number was measured on the machine that made this page, on "
    "the digits (1797 images of 8 x 8) and diabetes (442 patients) data that scikit-learn ships."
)
CHAPTERS: tuple[Callable[[Setting], report.Section], ...] = (
    choosing.rate,
    choosing.batch,
    choosing.optimizer,
    generalising.penalties,
    generalising.stopping,
    generalising.ensembles,
    shrinking.pruning,
    shrinking.int8,
    shrinking.averaging,
    explaining.importance,
    explaining.dependence,
    explaining.others,
)


def sections(setting: Setting, say: Callable[[str], None]) -> list[report.Section]:
    """All chapters, each told of when it is done."""
    found = []
    for number, chapter in enumerate(CHAPTERS, 1):
        begin = time.perf_counter()
        section = chapter(setting)
        section = replace(section, seconds=time.perf_counter() - begin)
        say(f"{number:>2}. {section.title} ({section.seconds:.1f} s)\n    {section.found}")
        found.append(section)
    return found


def save(found: list[report.Section], setting: Setting, folder: Path) -> Path:
    """The report in this folder; returns its path."""
    seconds = sum(section.seconds for section in found)
    foot = f"Made by gpuopt {gpuopt.__version__}, backend {setting.backend_name}, in {seconds:.0f} seconds."
    return report.save(report.html(TITLE, LEAD, found, foot), folder / NAME)

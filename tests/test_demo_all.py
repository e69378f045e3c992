"""`gpuopt demo --all`: what the table and the picture say of optimizers that are known to differ, and what is refused."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest

from gpuopt import cli, demos, rules
from gpuopt.demos import every, training

pytestmark = pytest.mark.once

NAMES = ("gd", "adamw", "came")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them would take minutes; each is trained by test_demo.py and test_training.py."""
    monkeypatch.setattr(rules, "NAMES", NAMES)


def test_table_and_picture_have_every_optimizer(few: None, tmp_path: Path) -> None:
    said = io.StringIO()
    found = demos.run_all(out=tmp_path / "new", quick=True, backend="numpy", stream=said)
    assert [o.optimizer for o in found] == list(NAMES)
    for o in found:
        assert o.accuracy > 0.9 and o.text < o.start - 0.2 and o.valley < 0.5 * training.rosenbrock_start()
    lines = said.getvalue().splitlines()
    ranks = [line.split()[0] for line in lines if line.split() and line.split()[0] in NAMES]
    assert ranks == [o.optimizer for o in sorted(found, key=lambda o: o.text)]
    assert (tmp_path / "new" / every.NAME).read_bytes().startswith(b"\x89PNG") and lines[-1].endswith(every.NAME)


def test_the_command_passes_its_options_on(
    few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(demos, "run_all", lambda **options: given.append(options))
    assert cli.main(["demo", "--all", "--backend", "numpy", "--seed", "3", "--out", str(tmp_path), "--quick"]) == 0
    assert given == [{"backend": "numpy", "dtype": "float32", "out": str(tmp_path), "quick": True, "seed": 3}]
    assert cli.main(["demo", "--all", "--lr", "0.1"]) == 2
    assert "--lr with --all" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["demo", "--all", "--optimizer", "lion"])


def test_what_diverges_comes_last_and_is_drawn() -> None:
    found = [every.Outcome(name, 0.9, 4.0, text, 0.0, 1.0) for name, text in (("a", math.nan), ("b", 3.0), ("c", 2.0))]
    assert [o.optimizer for o in every.ranked(found)] == ["c", "b", "a"]
    panels = every.picture(found).axes
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["a", "b", "c"]
    np.testing.assert_array_equal(panels[0].lines[0].get_xdata(), [math.nan, 3.0, 2.0])
    assert (np.array(panels[1].lines[0].get_xdata()) == every.LEAST).all(), "0 has a place on a logarithmic axis"

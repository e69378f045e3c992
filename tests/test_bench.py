"""`gpuopt bench`: it measures what is right, skips what is absent, only adds to its CSV, and grows with the library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpuopt
from gpuopt import bench, rules
from gpuopt.bench import compare, measure, meters, oracle, plot, providers, report, rows, shapes, suites
from gpuopt.bench.adapters import own
from repository import ROOT

RUN = ("20260101T000000-test", "2026-01-01")
TINY = measure.Effort(0.0, 0.0, 1, 0.0, 1)
CASE = suites.Case("many", "3 x 100", ((100,),) * 3)


@pytest.fixture
def only_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """gpuopt's own backends and NumPy expressions: nothing heavy is imported."""
    monkeypatch.setattr(providers, "ADAPTERS", ("own", "expressions"))
    monkeypatch.setattr(own.OwnTorch, "missing", lambda self: "left out of this test")


@pytest.fixture(scope="module")
def copy() -> meters.Copy:
    return meters.Copy("cpu", 1 << 20)


@pytest.fixture
def new_rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A rule registered as a file in gpuopt/rules would be."""

    @gpuopt.rule(state=("m",))
    def novel(p, g, m, *, lr, beta=0.5):  # type: ignore[no-untyped-def]
        """A step along the moving average."""
        m = m + (g - m) * (1 - beta)
        p = p - lr * m
        return p, m

    module = ModuleType("gpuopt.rules.novel")
    module.novel = novel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpuopt.rules.novel", module)
    monkeypatch.setattr(rules, "NAMES", (*rules.NAMES, "novel"))
    yield "novel"


def row(provider: str = "gpuopt numba", run: str = "r1", **values: Any) -> rows.Row:
    """A row of one thousand parameters."""
    made = rows.Row(
        run, "2026-01-01", "abc", "Some CPU", "", "", "", "large", "1 x 1000", provider, "1", "adamw", "float32",
        "float32", "native", 1, 1000, p20_us=9.0, p50_us=10.0, p80_us=11.0, bytes=28_000, copy_gbps=10.0, error=1e-6,
    )  # fmt: skip
    for name, value in values.items():
        setattr(made, name, value)
    return made


# ---------------------------------------------------------------------------------------------------- suites


def test_shapes_of_models_are_the_true_ones() -> None:
    found = {name: (len(model), shapes.numel(model)) for name, model in shapes.MODELS.items()}
    assert found["gpt2-small"] == (148, 124_439_808)
    assert found["resnet50"] == (161, 25_557_032)
    assert found["bert-large"] == (391, 335_141_888)
    assert (len(shapes.llama_shard(1)), shapes.numel(shapes.llama_shard(1))) == (291, 6_738_415_616)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_suites_cover_what_the_library_has(device: str) -> None:
    from gpuopt.optim.settings import PARAM_FORMATS, STATE_FORMATS

    found = suites.cases(suites.SUITES, device, 1 << 44, quick=False)
    assert {c.optimizer for c in found if c.suite == "optimizers"} == set(gpuopt.optimizers())
    assert {c.state_format for c in found if c.suite == "formats"} == set(STATE_FORMATS)
    assert {c.param_format for c in found if c.suite == "formats"} == set(PARAM_FORMATS)
    assert [c.value for c in found] == sorted(c.value for c in found)


def test_cases_that_do_not_fit_are_left_out() -> None:
    found = suites.cases(suites.SUITES, "cpu", 1 << 30, quick=False)
    assert found and max(2.5 * c.bytes_held for c in found) <= 1 << 30


def test_a_registered_rule_appears_in_suite_csv_and_plot(
    new_rule: str, only_own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "NAMES", ("adamw", "lamb", new_rule))  # all of them would take minutes
    assert bench.main(["--quick", "--suite", "optimizers", "--device", "cpu", "--out", str(tmp_path), "--plot"]) == 0
    found = rows.read(tmp_path / rows.NAME)
    assert {r.optimizer for r in found} == set(gpuopt.optimizers()) and new_rule in gpuopt.optimizers()
    novel = [r for r in found if r.optimizer == new_rule]
    assert {r.provider for r in novel} == {"gpuopt numpy", "gpuopt numba"}
    assert all(r.status == "ok" and r.p50_us and r.bytes == 20 * r.parameters for r in novel)
    assert (tmp_path / "optimizers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("optimizer", "share"), [("prodigy", 1.0), ("adamw", 0.02)])
def test_what_is_compared_is_a_part_unless_every_tensor_counts(optimizer: str, share: float) -> None:
    case = suites.Case("", "", ((1 << 10, 300),) * 20, optimizer)
    assert sum(stop - start for _, start, stop in oracle.picks(case)) == pytest.approx(share * case.parameters, rel=0.3)


# ---------------------------------------------------------------------------------------------------- providers


class Broken(own.Own):
    """gpuopt, but the gradient loses its sign."""

    name = "broken"

    def __init__(self) -> None:
        super().__init__("cpu", "numpy")
        self.name = "broken"

    def start(self, case: suites.Case) -> Any:
        session = super().start(case)
        session.scale(-1.0)
        return session


class Raising(Broken):
    """Fails when it starts."""

    def start(self, case: suites.Case) -> Any:
        raise ValueError("no such kernel")


def test_a_wrong_result_is_not_timed(copy: meters.Copy) -> None:
    said: list[str] = []
    found = measure.measure(CASE, [Broken(), own.Own("cpu", "numpy")], "cpu", RUN, copy, TINY, said.append)
    wrong, right = found
    assert wrong.status == "wrong" and wrong.p50_us is None and wrong.error is not None and wrong.error > 1
    assert right.status == "ok" and right.p50_us and right.error is not None and right.error < 1e-4
    assert any("broken: wrong" in line for line in said)
    assert "wrong: error above" in "\n".join(report.lines(found))


def test_an_exception_of_one_provider_is_a_row_and_the_rest_goes_on(copy: meters.Copy) -> None:
    found = measure.measure(CASE, [Raising(), own.Own("cpu", "numba")], "cpu", RUN, copy, TINY, lambda text: None)
    assert (found[0].status, found[0].note) == ("failed", "ValueError: no such kernel")
    assert found[1].status == "ok"


@pytest.mark.parametrize(
    "change", [{"weight_decay": 0.0}, {"betas": (0.9, 0.99)}, {"betas": (0.8, 0.999)}, {"lr": 1.1e-2}]
)
def test_the_check_sees_every_hyperparameter(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = suites.hyper("adamw")
    monkeypatch.setattr(own, "hyper", lambda name: right | change)
    session = own.ArraySession(CASE, "numpy", "cpu")
    assert oracle.relative_error(session, CASE) > oracle.tolerance(CASE)


# Bases of gradients that are all multiples of one have no place for most of the eigenvectors: any rounding chooses others.
@pytest.mark.parametrize("optimizer", [n for n in gpuopt.optimizers() if not gpuopt.rules.get(n).definition().sides])
def test_parts_of_a_large_tensor_are_compared(optimizer: str) -> None:
    case = suites.Case("large", "", ((700, 900),), optimizer)
    compared = sum(stop - start for _, start, stop in oracle.picks(case))
    alone = oracle.elementwise(optimizer) and not gpuopt.rules.get(optimizer).joint
    assert compared < case.parameters or not alone
    session = own.ArraySession(case, "numba", "cpu")
    assert oracle.relative_error(session, case) < oracle.tolerance(case)


def test_absent_providers_are_skipped_with_a_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "ADAPTERS", ("own", "expressions", "torch_peers"))
    monkeypatch.setattr(own.OwnTorch, "missing", lambda self: "left out of this test")
    found, absent = providers.usable("cpu")
    assert {"gpuopt numba", "gpuopt numpy", "NumPy expressions"} <= {p.name for p in found}
    assert "does not run on a CPU" in absent["apex"]
    for name in absent:
        assert name not in {p.name for p in found}
    arguments = [
        "--suite",
        "host",
        "--quick",
        "--case",
        "1 x",
        "--only",
        "no such library",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "apex: skipped, apex does not run on a CPU" in printed
    assert {r.provider for r in rows.read(tmp_path / rows.NAME)} <= {"gpuopt numba", "gpuopt numpy"}


def test_rounds_that_other_processes_disturbed_do_not_count() -> None:
    entrant = measure.Entrant(own.Own("cpu", "numpy"), row())
    entrant.samples = [(0, 1.0), (1, 9.0), (2, 2.0), (3, 8.0)]
    assert measure.kept(entrant, [0.0, 0.9, 0.01, 0.5]) == ([1.0, 2.0], pytest.approx(0.005))
    assert measure.kept(entrant, [0.3, 0.9, 0.4, 0.6])[0] == [1.0, 2.0]
    patient = measure.Effort(seconds=1.0, least_rounds=2, patience=5.0)
    assert not measure.enough([0.9, 0.9, 0.0], 4.0, patient)
    assert measure.enough([0.9, 0.0, 0.0], 4.0, patient) and measure.enough([0.9, 0.9], 7.0, patient)


def test_a_missing_module_is_a_reason() -> None:
    assert "no_such_module" in str(providers.importable("no_such_module"))


def test_a_step_needs_no_memory_of_parameter_size() -> None:
    session = own.ArraySession(suites.Case("large", "", ((4_000_000,),)), "numba", "cpu")
    session.step()
    session.step()
    extra, _ = meters.extra_memory("cpu", session.step)
    assert extra is None or extra < 4_000_000


# ---------------------------------------------------------------------------------------------------- CSV


def test_csv_is_only_added_to(tmp_path: Path) -> None:
    path = tmp_path / rows.NAME
    rows.append(path, [row()])
    before = path.read_bytes()
    rows.append(path, [row(status="wrong", p50_us=None, note='a "quoted", note')])
    assert path.read_bytes().startswith(before)
    assert rows.read(path) == [row(), row(status="wrong", p50_us=None, note='a "quoted", note')]


def test_csv_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / rows.NAME
    path.write_text("run,date\nr1,2026\n")
    with pytest.raises(gpuopt.GpuoptError, match="columns"):
        rows.append(path, [row()])
    assert path.read_text() == "run,date\nr1,2026\n"


def test_committed_rows_can_be_read() -> None:
    path = ROOT / "benchmarks" / "results" / rows.NAME
    found = rows.read(path)
    assert found and all(r.date and r.device for r in found)
    assert path.read_text().splitlines()[0].split(",") == rows.HEADER


def test_compare_lists_what_became_slower() -> None:
    old = [row(), row("torch fused")]
    slow = row(run="r2", p20_us=19.0, p50_us=20.0, p80_us=21.0)
    (line,) = compare.slower(old, [slow, row("torch fused", run="r2", p20_us=50.0, p50_us=50.0)])
    assert "gpuopt numba" in line and "10.0 -> 20.0 us" in line
    within = row(run="r2", p20_us=11.2, p50_us=12.0, p80_us=13.0)
    assert compare.slower(old, [within]) == []
    slower_machine = row(run="r2", p20_us=19.0, p50_us=20.0, copy_gbps=5.0)
    assert compare.slower(old, [slower_machine]) == []
    assert compare.slower(old, [row(run="r2", device="Other CPU", p20_us=90.0, p50_us=90.0)]) == []


def test_compare_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.csv"
    rows.append(old, [row()])
    rows.append(tmp_path / rows.NAME, [row(run="r2", p20_us=30.0, p50_us=31.0, p80_us=32.0)])
    assert bench.main(["--compare", str(old), "--out", str(tmp_path)]) == 1
    assert "slower: gpuopt numba, large adamw" in capsys.readouterr().out
    assert bench.main(["--compare", str(tmp_path / rows.NAME), "--out", str(tmp_path)]) == 0
    with pytest.raises(gpuopt.GpuoptError, match="no such file"):
        bench.main(["--compare", str(tmp_path / "none.csv"), "--out", str(tmp_path)])


def test_every_picture_is_drawn(tmp_path: Path) -> None:
    made = []
    for suite, _ in plot.PICTURES.values():
        for provider in ("gpuopt numba", "torch fused"):
            for device in ("Some CPU", "Some GPU"):
                made += [
                    row(provider, suite=suite, device=device, parameters=n, tensors=n // 1000) for n in (1000, 4000)
                ]
    assert sorted(p.stem for p in plot.draw(made, tmp_path)) == sorted(plot.PICTURES)
    assert list(plot.draw([row(status="wrong", p50_us=None)], tmp_path)) == []


def test_only_the_warm_suite_keeps_to_one_copy_of_its_arrays() -> None:
    cold = {case.name: case for case in suites.many("cpu")}
    for case in suites.warm("cpu"):
        assert measure.rotations(case, "cpu") == 1 < measure.rotations(cold[case.name], "cpu")


def test_a_turn_is_estimated_after_the_first_steps_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a provider that compiles in its fourth step is taken for a slow one, and is sampled once."""
    entrant = measure.Entrant(own.Own("cpu", "numpy"), row())
    taken = iter([0.1, 0.001, 0.002, 0.5, 0.0015])
    monkeypatch.setattr(entrant, "turns", lambda count: next(taken))
    entrant.settle()
    assert entrant.estimate == 0.001 and next(taken, None) is None


# ---------------------------------------------------------------------------------------------------- whole runs


def test_time_that_is_up_leaves_cases_out(only_own: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--suite", "large", "--quick", "--device", "cpu", "--minutes", "1e-9", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0
    assert "time is up" in capsys.readouterr().out


def test_start_suite_measures_import_and_first_steps(only_own: None, tmp_path: Path) -> None:
    assert bench.main(["--suite", "start", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = {(r.provider, r.case): r for r in rows.read(tmp_path / rows.NAME)}
    assert found["gpuopt", "import after numpy"].p50_us
    assert found["gpuopt numba", "first step, cold"].status == "ok"


def test_run_gpu_without_a_gpu_says_what_it_skipped(tmp_path: Path) -> None:
    environment = os.environ | {
        "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "",
        "WHEELS": str(tmp_path), "BENCH_OPTIONS": "--quick --suite host --only nothing,at,all",
    }  # fmt: skip
    command = [str(ROOT / "benchmarks" / "run_gpu.sh"), "0.2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    for skipped in ("tests marked gpu", "compute-sanitizer", "the GPU half of the benchmarks"):
        assert f"skipped: {skipped}, no GPU can be used here" in done.stdout
    assert "peer apex: skipped" in done.stdout
    made = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {"bench.log", "checks.log", rows.NAME} <= set(made) and len(made) <= 8


def test_sanitizer_suite_without_a_gpu() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "sanitize_suite.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "skipped: no GPU backend can be used here\n")


def test_random_data_is_never_zero() -> None:
    from gpuopt.bench import data

    whole = data.values(data.GRADIENTS, 3, 0, 2 * data.POOL)
    assert np.abs(whole).min() >= 1e-3 * 0.999
    assert (data.values(data.GRADIENTS, 3, 777, 900) == whole[777:900]).all()


# ---------------------------------------------------------------------------------------------------- where it goes

HOST_QUICK = ["--suite", "host", "--quick", "--case", "1 x", "--device", "cpu", "--only", "none"]


def test_results_go_into_the_current_folder_and_the_end_says_where(
    only_own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never into the rows of a checkout, also where the current folder is one."""
    tracked = tmp_path / "benchmarks" / "results" / rows.NAME
    rows.append(tracked, [row()])
    before = tracked.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--suite", "optimizers", "--quick", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert tracked.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "benchmarks",
        "gpuopt-bench",
    ]
    made = Path("gpuopt-bench")
    assert f"rows added to {made / rows.NAME}" in printed and f"plot: {made / 'optimizers.png'}" in printed
    assert (made / "optimizers.png").stat().st_size > 10_000
    assert bench.main(["--plot", "--out", "benchmarks/results"]) == 0, "drawing what is tracked is asked for by name"
    assert tracked.read_bytes() == before and (tracked.parent / "time_per_parameter.png").exists()


def test_without_matplotlib_it_measures_and_says_what_is_left_out(
    only_own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert bench.main([*HOST_QUICK, "--out", str(tmp_path)]) == 0
    assert "no plots: drawing needs matplotlib; in a checkout" in capsys.readouterr().out
    with pytest.raises(gpuopt.GpuoptError, match="matplotlib"):
        bench.main(["--plot", "--out", str(tmp_path)])


def test_a_run_that_is_stopped_says_where_its_rows_are(
    only_own: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = measure.measure

    def once(*arguments: Any) -> list[rows.Row]:
        monkeypatch.setattr(measure, "measure", stop)
        return first(*arguments)

    def stop(*arguments: Any) -> list[rows.Row]:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "measure", once)
    assert bench.main(["--suite", "host", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 130
    assert str(tmp_path / rows.NAME) in capsys.readouterr().out and rows.read(tmp_path / rows.NAME)

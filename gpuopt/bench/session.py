"""One run on one device: which cases, which providers, within which time; a progress bar. Called by `gpuopt.bench`."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuopt.bench import machine, measure, meters, providers, rows, start, suites

FULL, QUICK = measure.Effort(), measure.Effort(0.2, 0.001, 2, 0.02, 2)
QUICK_COPY = 1 << 26


class Run:
    """Measures and appends to the CSV, case by case, so that nothing is lost where a run is stopped."""

    def __init__(
        self, options: argparse.Namespace, device: str, identity: tuple[str, str], path: Path, deadline: float | None
    ) -> None:
        self.options, self.device, self.identity, self.path, self.deadline = options, device, identity, path, deadline
        self.suites = options.suite or [*suites.SUITES, *suites.PROCESS_SUITES]
        self.effort = replace(QUICK if options.quick else FULL, patience=options.patience)
        self.bar: Any = None

    def say(self, text: str) -> None:
        """A line that does not tear the progress bar."""
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text)

    def all(self) -> list[rows.Row]:
        """Every case until the time is spent, the first one in any case; returns the rows."""
        found = self.providers()
        memory = machine.free_bytes(self.device)
        cases = suites.cases(self.suites, self.device, memory, self.options.quick)
        cases = [case for case in cases if self.options.case in f"{case.optimizer} {case.name}"]
        copy = meters.Copy(self.device, QUICK_COPY if self.options.quick else None)
        made: list[rows.Row] = []
        self.bar = progress(len(cases))
        for index, case in enumerate(cases):
            if index and self.deadline is not None and time.monotonic() > self.deadline:
                self.say(f"time is up: {len(cases) - index} cases left out, from {case.suite} {case.name} on")
                break
            self.bar.set_description(f"{self.device} {case.suite} {case.optimizer} {case.name}"[:48])
            self.say(f"{case.suite}: {case.optimizer} on {case.name}, {case.dtype}, {case.state_format}")
            made += self.keep(measure.measure(case, found, self.device, self.identity, copy, self.effort, self.say))
            self.bar.update()
        self.bar.close()
        self.bar = None
        in_time = self.options.quick or self.deadline is None or time.monotonic() < self.deadline
        if "start" in self.suites and in_time:
            made += self.keep(start.measure(self.device, self.identity, 2 if self.options.quick else 5, self.say))
        return made

    def providers(self) -> list[providers.Provider]:
        """Those that can run here; the reasons of the others are printed."""
        print(f"{machine.device_name(self.device)}; {machine.versions()}", flush=True)
        found, absent = providers.usable(self.device)
        wanted = (self.options.only or "").lower().split(",")
        found = [p for p in found if p.rank == 0 or any(text in p.name.lower() for text in wanted)]
        if self.options.quick:
            found = [p for p in found if p.name != "torch compiled"]
        for name, why in absent.items():
            print(f"  {name}: skipped, {why}", flush=True)
        return found

    def keep(self, made: list[rows.Row]) -> list[rows.Row]:
        """Write rows down at once."""
        rows.append(self.path, made)
        return made


def progress(total: int) -> Any:
    """tqdm's bar, or a stand-in with the same methods where tqdm is missing."""
    try:
        from tqdm import tqdm
    except ImportError:
        return Silent()
    return tqdm(total=total, unit="case", dynamic_ncols=True)


class Silent:
    """A progress bar that shows nothing."""

    def write(self, text: str) -> None:
        print(text, flush=True)

    def set_description(self, text: str) -> None:
        """Nothing."""

    def update(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

"""One case, all providers in turn: check against float64, then A B A B until the time for it is spent.

Called by `gpuopt.bench`. Each provider keeps as many copies of its arrays as the last cache level cannot hold, and steps
through them in turn. Knows no library: those are behind `providers`.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gpuopt.bench import machine, meters, oracle
from gpuopt.bench.providers import Provider, Session
from gpuopt.bench.rows import Row
from gpuopt.bench.suites import Case

TENSORS = 20_000  # arrays of all copies together at most: making them takes longer than measuring
SAMPLES_A_TURN = 3
LONG_START = 5.0  # seconds
FIRST_STEPS = 5
SETTLE = 0.005  # seconds for the threads of the one before to go to sleep
COPIES = 8  # of them in a case at most
WARM_SAMPLES = 25  # times as long, since the first steps of a sample meet a cache that the one before has filled
QUIET = 0.08  # share of the machine that other processes may take in a round that counts


@dataclass(frozen=True)
class Effort:
    """seconds: for the samples of a case, over all providers; sample, round: the least these take; copies: of the
    arrays at most; patience: seconds more to wait for rounds that other processes leave alone.
    """

    seconds: float = 4.0
    sample: float = 0.004
    least_rounds: int = 3
    round: float = 0.25
    copies: int = 8
    patience: float = 0.0


@dataclass
class Entrant:
    """A provider in a case: its sessions, and for each sample its round and its seconds per step."""

    provider: Provider
    row: Row
    sessions: list[Session] = field(default_factory=list)
    repeats: int = 1
    estimate: float = 0.0
    samples: list[tuple[int, float]] = field(default_factory=list)

    def settle(self) -> None:
        """Step until what is compiled and planned in the first steps is done, or it takes too long; estimates a turn."""
        begin, self.estimate = time.perf_counter(), math.inf
        for _ in range(FIRST_STEPS):
            self.estimate = min(self.estimate, self.turns(1))
            if time.perf_counter() - begin > LONG_START:
                break

    def turns(self, count: int) -> float:
        """Seconds per step over `count` rotations of the sessions."""
        self.sessions[0].wait()
        start = time.perf_counter()
        for _ in range(count):
            for session in self.sessions:
                session.step()
        self.sessions[-1].wait()
        return (time.perf_counter() - start) / (count * len(self.sessions))


def measure(
    case: Case,
    providers: Sequence[Provider],
    device: str,
    run: tuple[str, str],
    copy: meters.Copy,
    effort: Effort,
    say: Callable[[str], None],
) -> list[Row]:
    """A row for each provider that takes the case; reasons of the others go to `say`. run: (id, date)."""
    rows, entrants = [], []
    if case.warm:
        effort = replace(effort, sample=WARM_SAMPLES * effort.sample)
    left = float(machine.free_bytes(device))
    rotation = min(effort.copies, rotations(case, device))
    for provider in providers:
        why = provider.refuses(case) if provider.renews or not case.fresh else "it finds gradients where they were"
        if why is None and provider.bytes_needed(case) * rotation > left:
            why = f"needs {provider.bytes_needed(case) * rotation / 1e9:.1f} GB beside the others"
        if why is not None:
            say(f"  {provider.name}: left out, {why}")
            continue
        row = blank(case, provider, device, run)
        rows.append(row)
        begin = time.perf_counter()
        entrant = enter(case, provider, row, rotation, say)
        if time.perf_counter() - begin > LONG_START:
            say(f"  {provider.name}: took {time.perf_counter() - begin:.0f} s to start and to be checked")
        if entrant is not None:
            entrants.append(entrant)
            left -= provider.bytes_needed(case) * rotation
    copies, others = rounds(entrants, copy, effort)
    for entrant in entrants:
        finish(entrant, case, device, copies, others)
    entrants.clear()
    gc.collect()
    return rows


def blank(case: Case, provider: Provider, device: str, run: tuple[str, str]) -> Row:
    """A row with what is known beforehand."""
    return Row(
        run[0], run[1], machine.commit(), machine.device_name(device), machine.driver(device), machine.cuda(device),
        machine.versions(), case.suite, case.name, provider.name, provider.version, case.optimizer, case.dtype,
        case.state_format, case.param_format, len(case.shapes), case.parameters,
    )  # fmt: skip


def rotations(case: Case, device: str) -> int:
    """How many copies of the arrays it takes to be twice the last cache level."""
    if case.warm:
        return 1
    wanted = math.ceil(2 * machine.cache_bytes(device) / max(1, case.bytes_held))
    return max(1, min(wanted, TENSORS // len(case.shapes)))


def enter(case: Case, provider: Provider, row: Row, rotation: int, say: Callable[[str], None]) -> Entrant | None:
    """Start the provider and check its result; None, with the reason in the row, if it may not be timed."""
    try:
        session = provider.start(case)
        row.error = oracle.relative_error(session, case)
        allowed = oracle.tolerance(case, provider.float32_sums)
        if not row.error <= allowed:
            row.status, row.note = "wrong", f"error above {allowed:.1e}: not timed"
        else:
            entrant = Entrant(provider, row, [session])
            entrant.sessions += [provider.start(case) for _ in range(rotation - 1)]
            entrant.settle()
            return entrant
    except Exception as error:  # a peer may raise anything; the run goes on
        row.status, row.note = "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    say(f"  {provider.name}: {row.status}, {row.note} (relative error {row.error})")
    return None


def rounds(entrants: list[Entrant], copy: meters.Copy, effort: Effort) -> tuple[list[float], list[float]]:
    """Sample every provider in turn until the time is spent; the copy bandwidths measured in between, and for each round
    the share of the machine that other processes took.
    """
    copies: list[float] = []
    others: list[float] = []
    for entrant in entrants:
        rotation = entrant.estimate * len(entrant.sessions)
        entrant.repeats = max(1, min(200, math.ceil(effort.sample / max(rotation, 1e-9))))
    start, watch = time.perf_counter(), meters.Others()
    while entrants and not enough(others, time.perf_counter() - start, effort):
        watch.share()
        begin = time.perf_counter()
        while True:
            for entrant in entrants:
                turn(entrant, len(others), effort)
            if time.perf_counter() - begin >= effort.round:
                break
        others.append(watch.share())
        if len(copies) < COPIES:
            time.sleep(SETTLE)
            copies.append(copy.run())
    return copies, others


def enough(others: list[float], spent: float, effort: Effort) -> bool:
    """Whether the rounds so far will do."""
    if len(others) < effort.least_rounds:
        return False
    calm = sum(share < QUIET for share in others) >= effort.least_rounds
    return spent > effort.seconds + (0 if calm else effort.patience)


def turn(entrant: Entrant, index: int, effort: Effort) -> None:
    """The samples of one provider in one round; one that is slow has had its own after the first rounds."""
    slow = entrant.estimate * len(entrant.sessions) * entrant.repeats > effort.seconds / 8
    if slow and index >= effort.least_rounds and not effort.patience:
        return
    time.sleep(SETTLE)
    if not slow:
        entrant.turns(1)
    for _ in range(1 if slow else SAMPLES_A_TURN):
        entrant.samples.append((index, entrant.turns(entrant.repeats)))


def kept(entrant: Entrant, others: list[float]) -> tuple[list[float], float]:
    """The samples of the rounds that others left alone, or of the quieter half where there are none; and their share."""
    limit = max(QUIET, float(np.median(others)))
    if min(others) < QUIET:
        limit = QUIET
    chosen = [(index, seconds) for index, seconds in entrant.samples if others[index] <= limit] or entrant.samples
    return [seconds for _, seconds in chosen], float(np.mean([others[index] for index, _ in chosen]))


def finish(entrant: Entrant, case: Case, device: str, copies: list[float], others: list[float]) -> None:
    """Turn samples into percentiles, then count what a step needs beside its time."""
    row, session = entrant.row, entrant.sessions[0]
    samples, row.load = kept(entrant, others)
    p20, p50, p80 = np.percentile(samples, (20, 50, 80)).tolist()
    row.samples, row.min_us = len(samples), 1e6 * min(samples)
    row.p20_us, row.p50_us, row.p80_us = 1e6 * p20, 1e6 * p50, 1e6 * p80
    row.bytes = case.bytes_moved
    row.gbps = row.bytes / p50 / 1e9
    row.copy_gbps = max(copies) / 1e9  # a ceiling: what disturbed a copy must not flatter a share
    row.share = row.gbps / row.copy_gbps
    repeats = 15 if p50 < 0.1 else 2
    row.host_us = 1e6 * meters.host_seconds(session.step, session.wait, repeats)

    def step() -> None:
        session.step()
        session.wait()

    row.extra_bytes, row.allocations = meters.extra_memory(device, step)
    row.launches = meters.launches(device, step) or session.launches()
    entrant.sessions.clear()

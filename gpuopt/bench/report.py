"""The table printed after a run: every case, each provider's time over that of gpuopt's best. Called by `gpuopt.bench`."""

from __future__ import annotations

from collections.abc import Iterator

from gpuopt.bench.rows import Row


def lines(rows: list[Row]) -> Iterator[str]:
    """One block for each case; `ratio` is the provider's time over that of gpuopt's fastest backend."""
    subjects: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        subjects.setdefault(row.subject, []).append(row)
    for group in subjects.values():
        first = group[0]
        formats = f"{first.dtype}, states {first.state_format}, parameters {first.param_format}"
        yield f"{first.suite}: {first.optimizer} on {first.case} ({formats}), {first.device}"
        timed = [r for r in group if r.p50_us]
        own = [r.p50_us for r in timed if r.provider.startswith("gpuopt") and r.p50_us]
        for row in sorted(timed, key=lambda r: r.p50_us or 0.0):
            yield f"  {row.provider:<22}{time_text(row)}{share_text(row)}{ratio_text(row, own)}"
        for row in group:
            if not row.p50_us:
                yield f"  {row.provider:<22}{row.status}: {row.note}"


def time_text(row: Row) -> str:
    """The median with its spread."""
    assert row.p50_us is not None
    least = f", least {row.min_us:.1f}" if row.min_us else ""
    return f"{row.p50_us:>12.1f} us ({row.p20_us:.1f} to {row.p80_us:.1f}{least})".ljust(62)


def share_text(row: Row) -> str:
    """The share of the copy bandwidth, where there is one."""
    return "".rjust(16) if row.share is None else f"{100 * row.share:>6.1f} % of copy"


def ratio_text(row: Row, own: list[float]) -> str:
    """Its time over gpuopt's best."""
    return f"{row.p50_us / min(own):>10.2f} x" if own and row.p50_us else ""

"""`--compare OLD.csv`: what became slower beyond noise since an earlier run on the same device. Called by `gpuopt.bench`."""

from __future__ import annotations

from gpuopt.bench.rows import Row

MARGIN = 1.05  # beyond the spread of both runs


def latest(rows: list[Row]) -> dict[tuple[str, ...], Row]:
    """The last timed row of each measurement."""
    return {row.key: row for row in rows if row.status == "ok" and row.p50_us}


def slower(old: list[Row], new: list[Row]) -> list[str]:
    """A line for each row of gpuopt whose p20 lies above the old p80, allowing for a machine that is slower as a whole.

    The rows of both files are matched by device, case, provider and formats. How fast the machine was is judged by the copy
    measured beside each row; a time is taken as slower only if it is so before and after that correction.
    """
    before = latest(old)
    found = []
    for key, row in latest(new).items():
        was = before.get(key)
        if was is None or was.run == row.run or not row.provider.startswith("gpuopt"):
            continue
        assert row.p20_us and row.p50_us and was.p80_us and was.p50_us
        machine = was.copy_gbps / row.copy_gbps if was.copy_gbps and row.copy_gbps else 1.0
        limit = MARGIN * was.p80_us * max(1.0, machine)
        if row.p20_us > limit:
            found.append(
                f"slower: {row.provider}, {row.suite} {row.optimizer} {row.case} {row.dtype}/{row.state_format}/"
                f"{row.param_format}: {was.p50_us:.1f} -> {row.p50_us:.1f} us, {row.p50_us / was.p50_us:.2f} x "
                f"(copy bandwidth {machine:.2f} x; {was.commit or '?'} -> {row.commit or '?'})"
            )
    return found

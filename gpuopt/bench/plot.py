"""Pictures of the CSV: time per parameter, time by number of tensors, models, accuracy. Called by `gpuopt.bench`.

Every picture shows the latest run of each device, one panel a device, and says which machine and date. gpuopt's lines and bars
are blue, no two share a colour, and names stand at the ends of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpuopt import drawing
from gpuopt.bench import rows as table
from gpuopt.bench.rows import Row
from gpuopt.bench.suites import MAIN
from gpuopt.errors import GpuoptError
from gpuopt.messages import install

SIZE = (7.2, 4.6)
OWN, PEER = drawing.OURS[0], drawing.OTHERS[0]


def draw(rows: list[Row], folder: Path) -> Iterator[Path]:
    """Every picture for which there are rows; yields their paths. Raises GpuoptError where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise GpuoptError(f"drawing needs matplotlib; {install('demo')}") from None
    for name, (suite, panel) in PICTURES.items():
        devices = list(dict.fromkeys(r.device for r in rows))
        groups = [g for g in (table.newest(rows, device, suite) for device in devices) if g]
        if groups:
            yield picture(groups, panel, folder / f"{name}.png")


def picture(groups: list[list[Row]], panel: Callable[[Any, list[Row]], None], path: Path) -> Path:
    """One panel beside the other."""
    figure = drawing.figure(SIZE[0] * len(groups), SIZE[1])
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        panel(axes, group)
    return drawing.save(figure, path)


def headed(axes: Any, group: list[Row], what: str) -> None:
    """What a panel shows, on which machine and when."""
    drawing.plain(axes, f"{what}\n{group[0].device}, {group[0].date}")


def ordered(group: list[Row]) -> list[str]:
    """The providers, ours first."""
    return sorted({r.provider for r in group}, key=lambda name: (not own(name), name))


def own(provider: str) -> bool:
    """Whether a provider is gpuopt."""
    return provider.startswith("gpuopt")


def lines(axes: Any, group: list[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> list[Any]:
    """A line with its p20 to p80 band for each provider, gpuopt's thick; returns what `drawing.name_ends` takes."""
    providers, ends = ordered(group), []
    colours = drawing.colours(providers, filter(own, providers))
    for provider in reversed(providers):  # ours on top
        mine, colour = sorted((r for r in group if r.provider == provider), key=x), colours[provider]
        axes.plot(
            [x(r) for r in mine], [y(r) for r in mine], marker="o", markersize=3, color=colour,
            linewidth=2.4 if own(provider) else 1.2, zorder=3 if own(provider) else 2,
        )  # fmt: skip
        low = [y(r) * (r.p20_us or 0) / (r.p50_us or 1) for r in mine]
        high = [y(r) * (r.p80_us or 0) / (r.p50_us or 1) for r in mine]
        axes.fill_between([x(r) for r in mine], low, high, color=colour, alpha=0.12, linewidth=0)
        ends.append((x(mine[-1]), y(mine[-1]), provider, colour))
    axes.set(xscale="log", yscale="log")
    return ends


def time_per_parameter(axes: Any, group: list[Row]) -> None:
    """One tensor of growing size, and the time that its bytes take at the speed of a copy."""
    group = [r for r in group if r.optimizer == MAIN]
    ends = lines(axes, group, lambda r: r.parameters, lambda r: 1e3 * (r.p50_us or 0) / r.parameters)
    known = [r for r in group if r.bytes and r.copy_gbps]
    if known:
        last = max(known, key=lambda r: r.parameters)
        floor = (last.bytes or 0) / last.parameters / (last.copy_gbps or 1)
        axes.axhline(floor, color=drawing.INK, linestyle="--", linewidth=1)
        ends.append((last.parameters, floor, f"its bytes at {last.copy_gbps:.3g} GB/s", drawing.INK))
    axes.set(xlabel="parameters in one tensor", ylabel="ns per parameter")
    headed(axes, group, f"{MAIN}, float32, one tensor")
    drawing.name_ends(axes, ends)


def time_by_tensors(axes: Any, group: list[Row]) -> None:
    """A growing number of tensors of one size, the size with most rows."""
    sizes = [r.parameters // r.tensors for r in group]
    size = max(set(sizes), key=lambda s: (sizes.count(s), -abs(s - 1000)))
    chosen = [r for r in group if r.parameters == r.tensors * size]
    ends = lines(axes, chosen, lambda r: r.tensors, lambda r: r.p50_us or 0)
    axes.set(xlabel=f"tensors of {size} parameters", ylabel="us per step")
    headed(axes, chosen, f"{MAIN}, float32, many tensors")
    drawing.name_ends(axes, ends)


def bars(axes: Any, group: list[Row]) -> None:
    """Each provider's time over that of gpuopt's fastest, for every model: a bar each, named at its end."""
    names, providers = sorted({r.case for r in group}), ordered(group)
    colours = drawing.colours(providers, filter(own, providers))
    places, labels, at = [], [], 0.0
    for name in names:
        rows = [r for r in group if r.case == name and r.p50_us]
        best = min((r.p50_us or 0 for r in rows if own(r.provider)), default=0)
        begin = at
        for row in sorted(rows, key=lambda r: providers.index(r.provider)) if best else ():
            ratio = (row.p50_us or 0) / best
            axes.barh(at, ratio - 1, 0.8, left=1, color=colours[row.provider])
            axes.plot(ratio, at, "o", color=colours[row.provider], markersize=4)
            said = f"{row.provider}, {ratio:.1f}" if ratio < 10 else f"{row.provider}, {ratio:.0f}"
            axes.annotate(
                said, (ratio, at), xytext=(6, 0), textcoords="offset points", va="center", fontsize=drawing.SMALL - 1
            )
            at += 1
        places.append((begin + at - 1) / 2)
        labels.append(name)
        at += 1
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.axvline(1, color=drawing.INK, linewidth=0.8)
    axes.set(xlabel="time over that of gpuopt's fastest", xscale="log")
    right = axes.get_xlim()[1] * 2
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= right]
    axes.set_xlim(0.9, right)
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    headed(axes, group, f"{MAIN}, float32, the tensors of whole models")


def optimizer_bars(axes: Any, group: list[Row]) -> None:
    """Time per parameter of every optimizer, gpuopt's fastest backend and the fastest peer, with the copy's time."""
    names = list(dict.fromkeys(r.optimizer for r in group))
    for position, name in enumerate(names):
        mine = [r for r in group if r.optimizer == name]
        for offset, ours, colour in ((-0.2, True, OWN), (0.2, False, PEER)):
            chosen = [r for r in mine if own(r.provider) is ours]
            if chosen:
                best = min(chosen, key=lambda r: (r.p50_us or 0) / r.parameters)
                axes.bar(position + offset, 1e3 * (best.p50_us or 0) / best.parameters, 0.4, color=colour)
        floor = (mine[0].bytes or 0) / mine[0].parameters / (mine[0].copy_gbps or 1)
        axes.hlines(floor, position - 0.4, position + 0.4, color=drawing.INK, linestyle="--", linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=60)
    axes.set(ylabel="ns per parameter")
    headed(axes, group, "Every optimizer: gpuopt (blue), the best peer (brown), its bytes at the copy's speed (dashed)")


def accuracy(axes: Any, group: list[Row]) -> None:
    """Error against float64 over the bytes that a parameter keeps in memory, one point a format and provider."""
    named: set[str] = set()
    for row in group:
        if row.error and row.bytes:
            ours = own(row.provider)
            x = row.bytes / row.parameters
            axes.scatter(x, row.error, color=OWN if ours else PEER, s=20 if ours else 12)
            text = f"{row.dtype}, states {row.state_format}"
            text += "" if row.param_format == "native" else f", parameters {row.param_format}"
            if ours and text not in named:
                named.add(text)
                axes.annotate(
                    text,
                    (x, row.error),
                    xytext=(0, -13),
                    textcoords="offset points",
                    ha="center",
                    fontsize=drawing.SMALL,
                )
    axes.margins(x=0.25, y=0.12)
    axes.set(xlabel="bytes moved per parameter", ylabel="relative error of the step against float64", yscale="log")
    headed(axes, group, "Storage formats: gpuopt (blue, named), others (brown)")


PICTURES: dict[str, tuple[str, Callable[[Any, list[Row]], None]]] = {
    "time_per_parameter": ("large", time_per_parameter),
    "time_by_tensors": ("many", time_by_tensors),
    "models": ("models", bars),
    "optimizers": ("optimizers", optimizer_bars),
    "accuracy": ("formats", accuracy),
}

"""Pictures of the CSV: time per parameter, time by number of tensors, models, accuracy. Called by `gpuopt.bench`.

Every picture shows the latest run of each device, one panel a device, and says which machine and date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gpuopt.bench import rows as table
from gpuopt.bench.rows import Row
from gpuopt.bench.suites import MAIN
from gpuopt.errors import GpuoptError

SIZE = (6.4, 4.4)
COLOURS = ("tab:blue", "tab:cyan", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink")


def draw(rows: list[Row], folder: Path) -> Iterator[Path]:
    """Every picture for which there are rows; yields their paths. Raises GpuoptError where matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise GpuoptError("--plot needs matplotlib: python -m pip install 'gpuopt[demo]'") from None
    for name, (suite, panel) in PICTURES.items():
        devices = list(dict.fromkeys(r.device for r in rows))
        groups = [g for g in (table.newest(rows, device, suite) for device in devices) if g]
        if groups:
            yield picture(groups, panel, folder / f"{name}.png")


def picture(groups: list[list[Row]], panel: Callable[[Any, list[Row]], None], path: Path) -> Path:
    """One panel beside the other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE[0] * len(groups), SIZE[1]), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, group in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        panel(axes, group)
        axes.set_title(f"{group[0].device}, {group[0].date}", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def lines(axes: Any, group: list[Row], x: Callable[[Row], float], y: Callable[[Row], float]) -> None:
    """A line with its p20 to p80 band for each provider; gpuopt's are thick."""
    providers = sorted({r.provider for r in group}, key=lambda name: (not name.startswith("gpuopt"), name))
    for index, provider in enumerate(providers):
        mine = sorted((r for r in group if r.provider == provider), key=x)
        style = {"color": COLOURS[index % len(COLOURS)], "linewidth": 2.5 if provider.startswith("gpuopt") else 1.2}
        axes.plot([x(r) for r in mine], [y(r) for r in mine], marker="o", markersize=3, label=provider, **style)
        low = [y(r) * (r.p20_us or 0) / (r.p50_us or 1) for r in mine]
        high = [y(r) * (r.p80_us or 0) / (r.p50_us or 1) for r in mine]
        axes.fill_between([x(r) for r in mine], low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log")
    axes.grid(True, which="major", alpha=0.3)


def time_per_parameter(axes: Any, group: list[Row]) -> None:
    """One tensor of growing size, and the time that its bytes take at the speed of a copy."""
    group = [r for r in group if r.optimizer == MAIN]
    lines(axes, group, lambda r: r.parameters, lambda r: 1e3 * (r.p50_us or 0) / r.parameters)
    known = [r for r in group if r.bytes and r.copy_gbps]
    if known:
        last = max(known, key=lambda r: r.parameters)
        floor = (last.bytes or 0) / last.parameters / (last.copy_gbps or 1)
        axes.axhline(floor, color="black", linestyle="--", linewidth=1, label=f"its bytes at {last.copy_gbps:.3g} GB/s")
    axes.set(xlabel="parameters in one tensor", ylabel=f"ns per parameter, {MAIN} float32")
    axes.legend(fontsize="x-small")


def time_by_tensors(axes: Any, group: list[Row]) -> None:
    """A growing number of tensors of one size, the size with most rows."""
    sizes = [r.parameters // r.tensors for r in group]
    size = max(set(sizes), key=lambda s: (sizes.count(s), -abs(s - 1000)))
    chosen = [r for r in group if r.parameters == r.tensors * size]
    lines(axes, chosen, lambda r: r.tensors, lambda r: r.p50_us or 0)
    axes.set(xlabel=f"tensors of {size} parameters", ylabel=f"us per step, {MAIN} float32")
    axes.legend(fontsize="x-small")


def bars(axes: Any, group: list[Row]) -> None:
    """Each provider's time over that of gpuopt's fastest, for every model."""
    names = sorted({r.case for r in group})
    providers = sorted({r.provider for r in group}, key=lambda name: (not name.startswith("gpuopt"), name))
    width = 0.8 / len(providers)
    for index, provider in enumerate(providers):
        for position, name in enumerate(names):
            own = [r.p50_us for r in group if r.case == name and r.provider.startswith("gpuopt") and r.p50_us]
            mine = [r.p50_us for r in group if r.case == name and r.provider == provider and r.p50_us]
            if own and mine:
                label = provider if provider not in axes.get_legend_handles_labels()[1] else None
                colour = COLOURS[index % len(COLOURS)]
                axes.bar(position + width * index, mine[0] / min(own), width, color=colour, label=label)
    axes.set_xticks([k + 0.4 for k in range(len(names))], names, fontsize="small")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(ylabel="time over gpuopt's fastest", yscale="log")
    axes.legend(fontsize="x-small")


def optimizer_bars(axes: Any, group: list[Row]) -> None:
    """Time per parameter of every optimizer, gpuopt's fastest backend and the fastest peer, with the copy's time."""
    names = list(dict.fromkeys(r.optimizer for r in group))
    for position, name in enumerate(names):
        mine = [r for r in group if r.optimizer == name]
        for offset, own, colour in ((-0.2, True, "tab:blue"), (0.2, False, "tab:orange")):
            chosen = [r for r in mine if r.provider.startswith("gpuopt") is own]
            if chosen:
                best = min(chosen, key=lambda r: (r.p50_us or 0) / r.parameters)
                axes.bar(position + offset, 1e3 * (best.p50_us or 0) / best.parameters, 0.4, color=colour)
        floor = (mine[0].bytes or 0) / mine[0].parameters / (mine[0].copy_gbps or 1)
        axes.hlines(floor, position - 0.4, position + 0.4, color="black", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(names)), names, rotation=60, fontsize="small")
    axes.set(ylabel="ns per parameter: gpuopt, best peer; dashed: copy")


def accuracy(axes: Any, group: list[Row]) -> None:
    """Error against float64 over the bytes that a parameter keeps in memory, one point a format and provider."""
    named: set[str] = set()
    for row in group:
        if row.error and row.bytes:
            own = row.provider.startswith("gpuopt")
            x = row.bytes / row.parameters
            axes.scatter(x, row.error, color="tab:blue" if own else "tab:orange", s=20 if own else 12)
            text = f"{row.dtype}/{row.state_format}/{row.param_format}"
            if own and text not in named:
                named.add(text)
                axes.annotate(text, (x, row.error), fontsize=5, xytext=(2, 2), textcoords="offset points")
    axes.margins(x=0.2)
    axes.set(xlabel="bytes moved per parameter", ylabel="relative error of the step against float64", yscale="log")


PICTURES: dict[str, tuple[str, Callable[[Any, list[Row]], None]]] = {
    "time_per_parameter": ("large", time_per_parameter),
    "time_by_tensors": ("many", time_by_tensors),
    "models": ("models", bars),
    "optimizers": ("optimizers", optimizer_bars),
    "accuracy": ("formats", accuracy),
}

"""What storage formats cost in training: the validation loss of one small transformer, behind every way to keep weights and states.

    python benchmarks/bench_formats.py --optimizer adamw --seeds 0 1 2  # rows go to benchmarks/results/formats_training.csv
    python benchmarks/bench_formats.py --recipe fp32 flashoptim --steps 20 --out /tmp/rows.csv
    python benchmarks/bench_formats.py --table                # only prints what was measured
    python benchmarks/bench_formats.py --plot benchmarks/results/formats_training.png

Run by hand. The text is the source of some modules of the standard library, the same for one version of Python, its last tenth
held out; the model reads characters. It computes in float32 for every recipe: weights of 16 bits are copied into it after each
step, and gradients are rounded to bfloat16 for them, as torch's would be (`--gradients` says otherwise). Peers are emulated by
`formats_emulated.py`. Bytes are those of weights and states, without gradients. A recipe that gpuopt refuses is named and skipped.
A seed chooses first weights, batches and what is rounded at random; threads are one, so that two runs may go side by side. Rows
are only ever added; table and picture take the last of each kind.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numba
import torch
import torch.nn.functional as F
from formats_emulated import PEERS, Peer
from torch import Tensor, nn

import gpuopt
import gpuopt.torch
from gpuopt import drawing
from gpuopt.bench.machine import commit, device_name

SPLIT8 = {"param_format": "split8"}
# Weights, and the options of the optimizer; or the peer that is emulated.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("float32", {}),
    "bf16": ("bfloat16", {}),
    "split8": ("bfloat16", SPLIT8),
    "int8": ("float32", {"state_format": "int8"}),
    "int4": ("float32", {"state_format": "int4"}),
    "float8": ("float32", {"state_format": "float8"}),
    "split8+int8": ("bfloat16", SPLIT8 | {"state_format": "int8"}),
    "split8+int4": ("bfloat16", SPLIT8 | {"state_format": "int4"}),
    "split8+float8": ("bfloat16", SPLIT8 | {"state_format": "float8"}),
    "flashoptim": ("flashoptim", {}),
    "bitsandbytes": ("bitsandbytes", {}),
}
BASE = "fp32"  # what the others are compared with
# Rates: of those tried with fp32, factors of 2 apart or more, the ones with the least loss (seed 0; AdamW by 300 steps, 0.95).
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 4e-3, "weight_decay": 0.1},
    "lion": {"lr": 1e-3, "weight_decay": 0.5},
    "sgd": {"lr": 0.2, "momentum": 0.9},
}
CLASSES = {"adamw": gpuopt.torch.AdamW, "lion": gpuopt.torch.Lion, "sgd": gpuopt.torch.SGD}
BETA1, BETA2 = 0.9, (0.999, 0.95)  # of AdamW

MODULES = (
    "pydoc_data/topics", "_pydecimal", "turtle", "inspect", "typing", "pydoc", "email/_header_value_parser", "tarfile", "doctest",
    "unittest/mock", "urllib/request", "argparse", "_pyio", "pickletools", "subprocess", "difflib", "logging/__init__", "enum",
    "mailbox", "http/cookiejar", "ipaddress", "asyncio/base_events", "importlib/_bootstrap_external", "pickle", "pdb", "ast",
)  # fmt: skip
VOCABULARY = 96  # printable ASCII and the end of a line; tabs are blanks, what else there is a question mark
CONTEXT, BATCH, HEADS = 64, 16, 4
VALIDATIONS = 100  # batches
WARM_UP, CLIP = 60, 1.0
ROOM = 0.25  # that a name takes in a picture, of the width of the axes
RESULTS = Path(__file__).parent / "results" / "formats_training.csv"


@dataclass(frozen=True)
class Row:
    """One training. bytes: a parameter, without gradient; gradients: the dtype in which the optimizer got them."""

    date: str
    machine: str
    python: str
    torch: str
    gpuopt: str
    commit: str
    optimizer: str
    beta2: str
    lr: float
    recipe: str
    gradients: str
    seed: int
    steps: int
    parameters: int
    bytes: float
    loss: float
    seconds: float


# ------------------------------------------------------------------------------------------------- text and model


def text() -> tuple[Tensor, Tensor]:
    """Codes of the characters to train on, then of those held out."""
    folder = Path(os.__file__).parent
    whole = "\n".join((folder / f"{name}.py").read_text("utf-8") for name in MODULES)
    plain = whole.expandtabs(1).encode("ascii", "replace")
    codes = torch.frombuffer(bytearray(plain), dtype=torch.uint8).long()
    codes = torch.where(codes == ord("\n"), 0, codes - 31)
    codes = torch.where((codes < 0) | (codes >= VOCABULARY), ord("?") - 31, codes)
    kept = len(codes) - len(codes) // 10
    return codes[:kept], codes[kept:]


def batch(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Windows at random places, and what follows each character of them: [BATCH, CONTEXT] both."""
    starts = torch.randint(len(codes) - CONTEXT, (BATCH, 1), generator=generator)
    windows = codes[starts + torch.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, 1:]


class Block(nn.Module):
    """Attention to what came before, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Transformer(nn.Module):
    """Characters to logits of the next ones; the first layer's table is the last one's."""

    def __init__(self, width: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.table, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() > 1:  # what ends a branch is smaller
                    ends = name.endswith(("out.weight", "down.weight"))
                    p.normal_(0, 0.02 / math.sqrt(2 * layers) if ends else 0.02, generator=generator)
                elif name.endswith("bias"):
                    p.zero_()

    def forward(self, codes: Tensor) -> Tensor:
        x = self.table(codes) + self.place.weight
        return F.linear(self.norm(self.blocks(x)), self.table.weight)


def loss_of(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """The mean over all characters of a batch."""
    return F.cross_entropy(model(pair[0]).flatten(0, 1), pair[1].flatten())


def validation_loss(model: nn.Module, codes: Tensor) -> float:
    """The mean over batches that are the same for all seeds."""
    generator = torch.Generator().manual_seed(12345)
    with torch.no_grad():
        return statistics.fmean(loss_of(model, batch(codes, generator)).item() for _ in range(VALIDATIONS))


# ------------------------------------------------------------------------------------------------- training


class Kept:
    """The weights of a recipe and their optimizer, beside the model that computes with what shows of them."""

    def __init__(
        self, model: nn.Module, optimizer: str, recipe: str, gradients: str | None, given: dict[str, Any]
    ) -> None:
        weights, options = RECIPES[recipe]
        self.model = list(model.parameters())
        self.peer: Peer | None = PEERS[weights]() if weights in PEERS else None
        dtype = self.peer.master if self.peer else getattr(torch, weights)
        self.gradients = getattr(torch, gradients or ("float32" if weights == "float32" else "bfloat16"))
        self.same = weights == "float32" and self.gradients == torch.float32
        self.masters = self.model if self.same else [nn.Parameter(p.detach().to(dtype, copy=True)) for p in self.model]
        self.opt = CLASSES[optimizer](self.masters, **given, **options)
        self.show(self.masters)

    def show(self, weights: Iterable[Tensor]) -> None:
        """Copy into the model."""
        if not self.same:
            with torch.no_grad():
                for p, shown in zip(self.model, weights, strict=True):
                    p.copy_(shown.to(torch.bfloat16) if self.peer else shown)

    def step(self) -> None:
        """Step by the gradients of the model."""
        if not self.same:
            for master, p in zip(self.masters, self.model, strict=True):
                master.grad_dtype = None  # any
                rounded = p.grad.to(self.gradients)
                master.grad = rounded.to(torch.float32) if master.dtype == torch.float32 else rounded
        self.opt.step()
        with torch.no_grad():
            self.show(self.peer.store(self.opt) if self.peer else self.masters)

    def bytes_each(self) -> float:
        """Weights and states, a parameter."""
        count = sum(p.numel() for p in self.masters)
        if self.peer:
            return self.peer.nbytes(self.opt) / count
        states = (
            v for state in self.opt.state.values() for n, v in state.items() if torch.is_tensor(v) and n != "step"
        )
        return sum(t.numel() * t.element_size() for t in (*self.masters, *states)) / count


def rate(step: int, steps: int) -> float:
    """The share of the rate: a line up, then half a cosine to 0."""
    up = min(WARM_UP, steps // 4)
    return (step + 1) / up if step < up else 0.5 + 0.5 * math.cos(math.pi * (step - up) / (steps - up))


def trained(options: argparse.Namespace, optimizer: str, beta2: float, recipe: str, seed: int) -> Row:
    """Train once."""
    given = OPTIMIZERS[optimizer] | ({"betas": (BETA1, beta2)} if optimizer == "adamw" else {})
    given |= {"lr": options.lr} if options.lr else {}
    made = torch.Generator().manual_seed(seed)
    model = Transformer(options.width, options.layers, made)
    kept = Kept(model, optimizer, recipe, options.gradients, given | {"seed": seed})
    train, held_out = text()
    begin = time.perf_counter()
    for step in range(options.steps):
        loss = loss_of(model, batch(train, made))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group in kept.opt.param_groups:
            group["lr"] = given["lr"] * rate(step, options.steps)
        kept.step()
    found = validation_loss(model, held_out)
    return Row(
        f"{datetime.now(UTC):%Y-%m-%d}", f"{device_name('cpu').rsplit(',', 1)[0]}, torch on {torch.get_num_threads()}",
        platform.python_version(), torch.__version__, gpuopt.__version__, commit(), optimizer,
        f"{beta2:g}" if optimizer == "adamw" else "", given["lr"], recipe, str(kept.gradients).split(".")[1], seed, options.steps,
        sum(p.numel() for p in kept.masters), kept.bytes_each(), found, time.perf_counter() - begin,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------- rows, table, picture


def append(path: Path, row: Row) -> None:
    """Add a row, under a header where there is none yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow([field.name for field in fields(Row)])
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in asdict(row).values()])


def read(path: Path) -> list[Row]:
    """Every row."""
    kinds = {"int": int, "float": float, "str": str}
    with path.open(newline="") as file:
        return [
            Row(**{f.name: kinds[str(f.type)](entry[f.name]) for f in fields(Row)}) for entry in csv.DictReader(file)
        ]


Setting = tuple[str, str, float, int, int]  # optimizer, beta2, rate, steps, parameters
Losses = dict[str, dict[int, Row]]  # by recipe, then by seed


def grouped(rows: Iterable[Row]) -> dict[Setting, Losses]:
    """The last row of each kind, recipes in the order of the table. Those whose gradients are not the recipe's own say so."""
    found: dict[Setting, Losses] = {}
    for row in sorted(rows, key=lambda r: list(RECIPES).index(r.recipe)):
        usual = "float32" if RECIPES[row.recipe][0] == "float32" else "bfloat16"
        name = row.recipe if row.gradients == usual else f"{row.recipe}, {row.gradients} gradients"
        setting = row.optimizer, row.beta2, row.lr, row.steps, row.parameters
        found.setdefault(setting, {}).setdefault(name, {})[row.seed] = row
    return found


def headline(setting: Setting) -> str:
    """What a table or panel is of."""
    optimizer, beta2, lr, steps, parameters = setting
    return f"{optimizer}{f', beta2 {beta2}' if beta2 else ''}, rate {lr:g}, {steps} steps, {parameters} parameters"


def against(rows: dict[int, Row], base: dict[int, Row]) -> list[float]:
    """By how many per cent the loss of each seed is above that of fp32 with the same seed."""
    return [100 * (rows[seed].loss / base[seed].loss - 1) for seed in rows if seed in base]


def deviation(values: list[float]) -> float:
    """The standard deviation; NaN of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else math.nan


def table(rows: Iterable[Row]) -> None:
    """Print, for each recipe, what its seeds gave; behind ±: the deviation of the differences, seed by seed."""
    for setting, losses in grouped(rows).items():
        print(f"\n{headline(setting)}")
        print(f"{'recipe':34} bytes  seeds     loss  max-min  deviation  % above fp32       seconds")
        for recipe, found in losses.items():
            values = [r.loss for r in found.values()]
            above = against(found, losses.get(BASE, {}))
            mean = statistics.fmean(above) if above else math.nan
            size, seconds = (statistics.fmean(getattr(r, n) for r in found.values()) for n in ("bytes", "seconds"))
            print(
                f"{recipe:34} {size:5.2f}  {len(values):5}  {statistics.fmean(values):7.4f}  {max(values) - min(values):7.4f}  "
                f"{deviation(values):9.4f}  {mean:+7.2f} ± {deviation(above):5.2f}  {seconds:8.1f}"
            )


def name_points(axes: Any, points: list[tuple[float, float, str, str]]) -> None:
    """Write names right of the points that stand together, each led to its own: (x, y, text, colour). Comes last."""
    axes.figure.draw_without_rendering()
    gap = drawing.LINE_SPACING * drawing.SMALL * axes.figure.dpi / 72 / axes.get_window_extent().height
    to_axes = axes.transScale + axes.transLimits
    clusters: list[list[Any]] = []
    for x, y, text, colour in sorted(points):
        place = tuple(map(float, to_axes.transform((x, y))))
        if not clusters or place[0] - clusters[-1][-1][0][0] > ROOM:
            clusters.append([])
        clusters[-1].append((place, text, colour))
    for cluster in clusters:
        right = max(x for (x, _), *_ in cluster) + 0.035
        heights = drawing.spread([y for (_, y), *_ in cluster], gap, gap / 2, 1)
        for (place, text, colour), height in zip(cluster, heights, strict=True):
            lead = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7, "shrinkA": 0, "shrinkB": 2}
            axes.annotate(
                text, place, (right, height), xycoords="axes fraction", textcoords="axes fraction", color=colour,
                fontsize=drawing.SMALL, va="center", arrowprops=lead | {"relpos": (0, 0.5)}, annotation_clip=False,
            )  # fmt: skip


def draw(rows: Iterable[Row], path: Path) -> Path:
    """Loss by bytes a parameter, one panel for each setting: means, and lines from the least to the greatest; peers are squares."""
    groups = grouped(rows)
    made = drawing.figure(6.6 * len(groups), 4.4)
    names = list(dict.fromkeys(name for losses in groups.values() for name in losses))
    colours = drawing.colours(names, [n for n in names if n.split(",")[0] not in (*PEERS, BASE)])
    for axes, (setting, losses) in zip(made.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        points = []
        for name, found in losses.items():
            values, colour = [r.loss for r in found.values()], colours[name]
            x, y = statistics.fmean(r.bytes for r in found.values()), statistics.fmean(values)
            axes.plot([x, x], [min(values), max(values)], color=colour, linewidth=1.5)
            axes.plot(x, y, "s" if name.split(",")[0] in PEERS else "o", color=colour, markersize=5)
            points.append((x, y, name, colour))
        axes.set(xlabel="bytes a parameter, without gradient", ylabel="validation loss")
        axes.margins(x=0.12, y=0.12)
        drawing.plain(axes, headline(setting))
        name_points(axes, points)
    return drawing.save(made, path)


def runs(options: argparse.Namespace) -> Iterable[tuple[str, float, str, int]]:
    """Optimizer, beta2, recipe and seed of each training."""
    for optimizer in options.optimizer:
        for beta2 in options.beta2 if optimizer == "adamw" else (math.nan,):
            for seed in options.seeds:
                yield from ((optimizer, beta2, recipe, seed) for recipe in options.recipe)


def main(arguments: list[str] | None = None) -> None:
    """Train and write rows, or show those there are."""
    parser = argparse.ArgumentParser(description="the loss behind every storage format, in one small training")
    parser.add_argument("--optimizer", nargs="+", default=["adamw"], choices=OPTIMIZERS)
    parser.add_argument("--recipe", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--beta2", nargs="+", type=float, default=BETA2, help="of AdamW")
    parser.add_argument("--lr", type=float, help="instead of the table's")
    parser.add_argument(
        "--gradients", choices=("float32", "bfloat16"), help="for all recipes; as their weights without it"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=112)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="train nothing, print what --out has")
    parser.add_argument("--plot", type=Path, help="train nothing, draw what --out has")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    numba.set_num_threads(options.threads)
    for optimizer, beta2, recipe, seed in () if options.table or options.plot else runs(options):
        try:
            row = trained(options, optimizer, beta2, recipe, seed)
        except gpuopt.GpuoptError as error:
            print(f"{optimizer} {recipe}: not trained: {error}", flush=True)
            continue
        append(options.out, row)
        print(
            f"{optimizer} {row.beta2:5} lr {row.lr:g}  {recipe:14} seed {seed}  {row.bytes:.2f} bytes  loss {row.loss:.4f}  "
            f"{row.seconds:.1f} s", flush=True,
        )  # fmt: skip
    if options.out.exists():
        table(read(options.out))
        if options.plot:
            print(draw(read(options.out), options.plot))


if __name__ == "__main__":
    main()

"""What storage formats cost in training: the validation loss of one small transformer, behind every way to keep weights and states.

    python benchmarks/bench_formats.py --optimizer adamw --seeds 0 1 2  # rows go to benchmarks/results/formats_training.csv
    python benchmarks/bench_formats.py --recipe fp32 flashoptim --steps 20 --out /tmp/rows.csv
    python benchmarks/bench_formats.py --table                # only prints what was measured
    python benchmarks/bench_formats.py --plot benchmarks/results/formats_training.png
    python benchmarks/bench_formats.py --optimizer adamw muon normuon --beta2 0.999 --recipe fp32 --every 50
    python benchmarks/bench_formats.py --target 1.9           # steps to that loss, and a picture

Run by hand. The text is the source of some modules of the standard library, the same for one version of Python, its last tenth
held out; the model reads characters. It computes in float32 for every recipe: weights of 16 bits are copied into it after each
step, and gradients are rounded to bfloat16 for them, as torch's would be (`--gradients` says otherwise). Peers are emulated by
`formats_emulated.py`. Bytes are those of weights and states, without gradients. A recipe that gpuopt refuses is named and skipped.
A seed chooses first weights, batches and what is rounded at random; threads are one, so that two runs may go side by side. Rows
are only ever added; table and picture take the last of each kind.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import formats_curves
import numba
import torch
from formats_emulated import PEERS, Peer
from formats_rows import RECIPES, Row, draw, read, table
from torch import Tensor, nn

import gpuopt
import gpuopt.torch
from gpuopt.bench.machine import commit, device_name
from gpuopt.bench.rows import append
from gpuopt.demos.text_model import Transformer, batch, loss_of, text, validation_loss

# Rates: of those tried with fp32, factors of 2 apart or more, the ones with the least loss (seed 0; AdamW by 300 steps, 0.95).
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 4e-3, "weight_decay": 0.1},
    "lion": {"lr": 1e-3, "weight_decay": 0.5},
    "sgd": {"lr": 0.2, "momentum": 0.9},
    "muon": {"lr": 0.02, "weight_decay": 0.1},
    "normuon": {"lr": 0.02, "weight_decay": 0.1},
    "soap": {"lr": 8e-3, "weight_decay": 0.1},
    # Matrices of the blocks keep their lengths; rates of the records of training.
    "adamw+hyperball": {"lr": 0.018, "weight_decay": 0.0, "hyperball": True},
    "muon+hyperball": {"lr": 0.018, "weight_decay": 0.0, "hyperball": True},
}
PLAIN = {"lr": 4e-3, "weight_decay": 0.1, "hyperball": False}  # of what is no matrix of a block
CLASSES = {name: getattr(gpuopt.torch, name) for name in ("AdamW", "Lion", "SGD", "Muon", "NorMuon", "SOAP")}
CLASSES = {name.lower(): made for name, made in CLASSES.items()}
# What is stepped by AdamW where the blocks are by Muon and its kin: at the rate and, but for SOAP, with the betas of AdamW.
OF_MATRICES: dict[str, Any] = {"rest": PLAIN, "matrices": lambda name, p: name.startswith("blocks")}
OF_MUON = OF_MATRICES | {"adamw_betas": (0.9, 0.999)}
PARTED = {"muon": OF_MUON, "normuon": OF_MUON, "soap": OF_MATRICES}
BETA1, BETA2 = 0.9, (0.999, 0.95)  # of AdamW

WARM_UP, CLIP = 60, 1.0
RESULTS = Path(__file__).parent / "results" / "formats_training.csv"


# ------------------------------------------------------------------------------------------------- training


class Kept:
    """The weights of a recipe and their optimizer, beside the model that computes with what shows of them."""

    def __init__(
        self, model: nn.Module, optimizer: str, recipe: str, gradients: str | None, given: dict[str, Any]
    ) -> None:
        weights, options = RECIPES[recipe][0], dict(RECIPES[recipe][1])
        self.model = list(model.parameters())
        self.peer: Peer | None = PEERS[weights]() if weights in PEERS else None
        dtype = self.peer.master if self.peer else getattr(torch, weights)
        self.gradients = getattr(torch, gradients or ("float32" if weights == "float32" else "bfloat16"))
        self.same = weights == "float32" and self.gradients == torch.float32
        self.masters = self.model if self.same else [nn.Parameter(p.detach().to(dtype, copy=True)) for p in self.model]
        named = list(zip((name for name, _ in model.named_parameters()), self.masters, strict=True))
        kind, _, hyperball = optimizer.partition("+")
        params: Any = named
        if kind in PARTED:
            options |= PARTED[kind]
        elif hyperball:
            hidden = [(name, p) for name, p in named if p.ndim > 1 and name.startswith("blocks")]
            params = [{"params": hidden}, {"params": [pair for pair in named if pair not in hidden], **PLAIN}]
        self.opt = CLASSES[kind](params, **given, **options)
        self.rates = [group["lr"] for group in self.opt.param_groups]
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
    given = OPTIMIZERS[optimizer] | ({"betas": (BETA1, beta2)} if of_betas(optimizer) else {})
    given |= {"lr": options.lr} if options.lr else {}
    made = torch.Generator().manual_seed(seed)
    model = Transformer(options.width, options.layers, made)
    kept = Kept(model, optimizer, recipe, options.gradients, given | {"seed": seed})
    train, held_out = text()
    curve: list[tuple[int, float]] = []
    begin = time.perf_counter()
    for step in range(options.steps):
        loss = loss_of(model, batch(train, made))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for group, first in zip(kept.opt.param_groups, kept.rates, strict=True):
            group["lr"] = first * rate(step, options.steps)
        kept.step()
        if options.every and (step + 1) % options.every == 0:
            curve.append((step + 1, validation_loss(model, held_out)))
    found = validation_loss(model, held_out)
    if curve:
        where = (
            f"{datetime.now(UTC):%Y-%m-%d}",
            device_name("cpu"),
            commit(),
            optimizer,
            float(given["lr"]),
            recipe,
            seed,
        )
        append(options.curves, [formats_curves.Point(*where, *point) for point in curve])
    return Row(
        f"{datetime.now(UTC):%Y-%m-%d}", f"{device_name('cpu').rsplit(',', 1)[0]}, torch on {torch.get_num_threads()}",
        platform.python_version(), torch.__version__, gpuopt.__version__, commit(), optimizer,
        f"{beta2:g}" if of_betas(optimizer) else "", given["lr"], recipe, str(kept.gradients).split(".")[1], seed, options.steps,
        sum(p.numel() for p in kept.masters), kept.bytes_each(), found, time.perf_counter() - begin,
    )  # fmt: skip


def of_betas(optimizer: str) -> bool:
    """Whether it has betas of its own."""
    return optimizer.startswith("adamw")


def runs(options: argparse.Namespace) -> Iterable[tuple[str, float, str, int]]:
    """Optimizer, beta2, recipe and seed of each training."""
    for optimizer in options.optimizer:
        for beta2 in options.beta2 if of_betas(optimizer) else (math.nan,):
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
    parser.add_argument("--every", type=int, default=0, help="note the validation loss each so many steps, in --curves")
    parser.add_argument("--curves", type=Path, default=RESULTS.parent / "training_curves.csv")
    parser.add_argument(
        "--target", type=float, help="train nothing, print from --curves the steps to this loss, and draw them"
    )
    parser.add_argument("--table", action="store_true", help="train nothing, print what --out has")
    parser.add_argument("--plot", type=Path, help="train nothing, draw what --out has")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    numba.set_num_threads(options.threads)
    if options.target:
        curves = formats_curves.read(options.curves)
        formats_curves.table(curves, options.target)
        print(formats_curves.draw(curves, options.curves.with_suffix(".png"), options.target))
        return
    for optimizer, beta2, recipe, seed in () if options.table or options.plot else runs(options):
        try:
            row = trained(options, optimizer, beta2, recipe, seed)
        except gpuopt.GpuoptError as error:
            print(f"{optimizer} {recipe}: not trained: {error}", flush=True)
            continue
        append(options.out, [row])
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

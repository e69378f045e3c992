"""How FlashOptim and bitsandbytes store weights and states, emulated in torch: the peers of `bench_formats.py`.

Written from their descriptions, not their code: Zhang et al. 2025, "FlashOptim", and Dettmers et al. 2022, "8-bit optimizers via
block-wise quantization". A step is made in float32; then `store` replaces what the optimizer keeps by what would be left of it in
their formats. Called by `bench_formats.py` alone; run by itself, prints the errors of each format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

SIGNED, UNSIGNED = ("exp_avg", "momentum_buffer"), ("exp_avg_sq",)  # states, as torch names them


class Peer(Protocol):
    """A library whose formats are emulated. master: the dtype of the parameters that the optimizer steps."""

    master: torch.dtype

    def store(self, opt: torch.optim.Optimizer) -> list[Tensor]: ...

    def nbytes(self, opt: torch.optim.Optimizer) -> float: ...


def states(opt: torch.optim.Optimizer) -> Iterator[tuple[Tensor, bool]]:
    """Every state with as many elements as its parameter, and whether it has a sign."""
    for state in opt.state.values():
        for name, value in state.items():
            if name in SIGNED or name in UNSIGNED:
                yield value, name in SIGNED


def parameters(opt: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Those of all groups."""
    for group in opt.param_groups:
        yield from group["params"]


def in_blocks(x: Tensor, size: int, scale: torch.dtype, coded: Callable[[Tensor], Tensor]) -> Tensor:
    """x, of which each block of so many contiguous elements was divided by its absmax in that dtype, coded and multiplied again."""
    flat = x.detach().float().flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
    absmax = blocks.abs().amax(1, keepdim=True).to(scale).float()
    ratio = blocks / torch.where(absmax > 0, absmax, 1)
    return (coded(ratio) * absmax).flatten()[: len(flat)].view_as(x)


# ------------------------------------------------------------------------------------------------- FlashOptim


class Flashoptim:
    """Groups of 32 with a scale in float16. Weights: bfloat16 and eight bits of what it left over, rounded to nearest."""

    master = torch.float32
    GROUP = 32

    @staticmethod
    def signed(ratio: Tensor) -> Tensor:
        """Softsign, 127 steps on each side."""
        y = 2 * ratio / (1 + ratio.abs())
        code = torch.floor(127 * y + 0.5).clamp(-127, 127) / 127
        return code / (2 - code.abs())

    @staticmethod
    def unsigned(ratio: Tensor) -> Tensor:
        """255 even steps."""
        return torch.floor(255 * ratio + 0.5).clamp(0, 255) / 255

    @classmethod
    def state(cls, x: Tensor, signed: bool) -> Tensor:
        """What is left of a state; of one without a sign the roots are stored."""
        if signed:
            return in_blocks(x, cls.GROUP, torch.float16, cls.signed)
        return in_blocks(x.sqrt(), cls.GROUP, torch.float16, cls.unsigned).square()

    @staticmethod
    def weights(x: Tensor) -> tuple[Tensor, Tensor]:
        """The bfloat16 that shows, and what it is with its correction: a 127th of half of a rounding step in each unit."""
        h = x.detach().to(torch.bfloat16)
        visible = h.float()
        _, exponent = torch.frexp(visible)
        half = torch.ldexp(torch.ones_like(visible), exponent - 9)  # eight bits of a significand in [1/2, 1)
        code = torch.round(((x.detach() - visible) / half).clamp(-1, 1) * 127)
        return h, visible + torch.where(visible == 0, 0, code / 127 * half)

    def store(self, opt: torch.optim.Optimizer) -> list[Tensor]:
        """Store states and weights; returns the weights that show."""
        for x, signed in states(opt):
            x.copy_(self.state(x, signed))
        shown = []
        for p in parameters(opt):
            h, kept = self.weights(p)
            p.copy_(kept)
            shown.append(h)
        return shown

    def nbytes(self, opt: torch.optim.Optimizer) -> float:
        """Of weights, states and scales."""
        weights = sum(3 * p.numel() for p in parameters(opt))
        return weights + sum(x.numel() + 2 * -(-x.numel() // self.GROUP) for x, _ in states(opt))


# ------------------------------------------------------------------------------------------------- bitsandbytes


def dynamic_map(signed: bool) -> Tensor:
    """The 256 values of the dynamic tree: an exponent of ten, and behind it as many even steps as bits are left."""
    values = [0.0, 1.0]
    for i in range(7):
        steps = torch.linspace(0.1, 1, 2 ** (i if signed else i + 1) + 1)
        means = ((steps[1:] + steps[:-1]) / 2 * 10.0 ** (i - 6)).tolist()
        values += [*means, *(-m for m in means)] if signed else means
    return torch.tensor([*values, *[0.0] * (256 - len(values))]).sort().values


class Bitsandbytes:
    """Blocks of 256 with a scale in float32; tensors of one axis or fewer than 4,096 elements are float32. Weights: bfloat16."""

    master = torch.bfloat16
    BLOCK, LEAST = 256, 4096

    def __init__(self) -> None:
        self.maps = {signed: dynamic_map(signed) for signed in (True, False)}

    def coded(self, x: Tensor) -> bool:
        """Whether a state has eight bits."""
        return x.dim() > 1 and x.numel() >= self.LEAST

    def state(self, x: Tensor, signed: bool) -> Tensor:
        """What is left of a state of eight bits."""
        values = self.maps[signed]
        between = (values[1:] + values[:-1]) / 2

        def nearest(ratio: Tensor) -> Tensor:
            return values[torch.bucketize(ratio, between)]

        return in_blocks(x, self.BLOCK, torch.float32, nearest)

    def store(self, opt: torch.optim.Optimizer) -> list[Tensor]:
        """Store states; returns the weights, which the optimizer has rounded."""
        for x, signed in states(opt):
            if self.coded(x):
                x.copy_(self.state(x, signed))
        return [p.detach() for p in parameters(opt)]

    def nbytes(self, opt: torch.optim.Optimizer) -> float:
        """Of weights, states and scales."""
        kept = sum(
            x.numel() + 4 * -(-x.numel() // self.BLOCK) if self.coded(x) else 4 * x.numel() for x, _ in states(opt)
        )
        return kept + sum(2 * p.numel() for p in parameters(opt))


PEERS: dict[str, Callable[[], Peer]] = {"flashoptim": Flashoptim, "bitsandbytes": Bitsandbytes}


def main() -> None:
    """Print the relative error (root mean square) of every format on normal numbers, and on their squares."""
    x = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0)) * 1e-3

    def error(found: Tensor, exact: Tensor) -> float:
        return ((found - exact).norm() / exact.norm()).item()

    made: Any
    for made in (Flashoptim(), Bitsandbytes()):
        m, root = error(made.state(x, True), x), error(made.state(x * x, False).sqrt(), x.abs())
        print(f"{type(made).__name__:12} m {m:.3%}  root of v {root:.3%}")
    h, kept = Flashoptim.weights(x)
    print(f"weights      bfloat16 {error(h.float(), x):.3%}  with its correction {error(kept, x):.5%}")


if __name__ == "__main__":
    main()

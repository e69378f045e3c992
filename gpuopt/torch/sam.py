"""Sharpness-aware minimisation around any optimizer of `gpuopt.torch`: `gpuopt.torch.SAM`. Called by users; knows no kernel.

The parameters are perturbed by an optimizer of the rule `rules.perturbation` over the same tensors, which keeps the old values in
its `state`; torch's own copy of many tensors at once brings these back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gpuopt.errors import InputError, entries
from gpuopt.native.objects import contents
from gpuopt.optim.between import check_training
from gpuopt.optim.sam import TwoPhases
from gpuopt.rules.perturbation import perturbation
from gpuopt.torch import shards
from gpuopt.torch.differentiable import KEY
from gpuopt.torch.optimizer import TorchOptimizer
from gpuopt.torch.parameters import any_has

OF_GROUPS = ("maximize", "capturable")  # of the optimizer's groups, which hold for a perturbation too


class Perturbing(TorchOptimizer):
    """Moves the parameters of another optimizer, within the masks and bounds that it has for them."""

    rule = perturbation
    twin = ""

    def __init__(self, base: TorchOptimizer, hyper: dict[str, Any]) -> None:
        self.torch_defaults, self.torch_later = {}, {}
        groups = [{"params": list(group["params"])} for group in base.param_groups]
        limits = {name: base._beside.given[name] for name in ("mask", "bounds")}
        super().__init__(groups, hyper | dict.fromkeys(OF_GROUPS, False), limits, base._asked)
        for group, own in zip(self.param_groups, base.param_groups, strict=True):
            group.update({name: own[name] for name in ("param_names",) if name in own})


@entries
class SAM(TwoPhases, torch.optim.Optimizer):
    """Sharpness-aware minimisation, Foret et al. 2021, around an optimizer of gpuopt.torch: it steps by the gradients of where the
    loss is worst near the parameters. With `adaptive`, ASAM, Kwon et al. 2021. The formulas, hyperparameters and memory are those
    of `gpuopt.SAM`.

        loss.backward(); sam.first_step(zero_grad=True)          # to where the loss is worst
        loss_of(model(x)).backward(); sam.second_step(zero_grad=True)   # back, and a step of the optimizer

    or, behind the first backward(), `sam.step(closure)`. Groups, state, hooks and whatever else is asked of it are the optimizer's
    (`sam.optimizer`); schedulers take either. A GradScaler is refused, and so is `differentiable`.
    Raises InputError for what is no such optimizer, and for calls in another order.
    """

    phases = "first_step()", "second_step()"
    optimizer: TorchOptimizer

    def __init__(self, optimizer: TorchOptimizer, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01) -> None:
        self._begin(
            optimizer, TorchOptimizer, rho, adaptive, eta
        )  # and not torch's own, whose attributes are the optimizer's
        self._perturbing = Perturbing(optimizer, self._hyper())
        self._moved: list[torch.Tensor] = []

    def _graded(self) -> list[torch.Tensor]:
        """The parameters that have a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The optimizer's."""
        self.optimizer.zero_grad(set_to_none)

    def first_step(self, zero_grad: bool = False) -> None:
        """Move every parameter that has a gradient to where the loss is worst near it. zero_grad: then take the gradients away.

        Raises InputError or DtypeError before anything is written.
        """
        self._expect(False, "first_step()")
        if any_has(self.param_groups, KEY):
            raise InputError(
                "SAM: differentiable=True in a group: expected an optimizer without, to be put back between"
            )
        check_training(self.optimizer.rule, self.param_groups)
        known, groups = self._perturbing.param_groups, self.param_groups
        if [contents(g["params"]) for g in known] != [contents(g["params"]) for g in groups]:
            self._perturbing = Perturbing(self.optimizer, self._hyper())
        hyper = self._hyper()
        for group, own in zip(self._perturbing.param_groups, groups, strict=True):
            group.update(hyper, **{name: own.get(name, False) for name in OF_GROUPS})
        self._perturbing._run()
        self._moved, self.perturbed = self._graded(), True
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        """Put the parameters back to what they were before `first_step`, bit for bit, without a step."""
        self._expect(True, "restore()")
        if self._moved:
            old = [shards.local(self._perturbing.state[p]["old_p"]) for p in self._moved]
            torch._foreach_copy_(list(map(shards.local, self._moved)), old)
        self.perturbed = False

    def second_step(self, zero_grad: bool = False) -> None:
        """Put the parameters back, then step the optimizer by the gradients that they have now, taken where they were. zero_grad:
        then take the gradients away. Whatever the optimizer raises, the parameters are put back.
        """
        self._expect(True, "second_step()")
        self.restore()
        self.optimizer.step()
        self._opt_called = True  # schedulers ask
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both steps, behind a first `backward()`: closure computes the loss anew and calls `backward()`; the first gradients are
        taken away before.

        Returns the closure's loss, which is that of the perturbed parameters. Whatever is raised, the parameters are put back.
        """
        self._expect(False, "step(closure)")
        if closure is None:
            raise InputError(
                "SAM.step: expected a closure that calls backward() again, or first_step() and second_step()"
            )
        if not self._graded():
            raise InputError(
                "SAM.step: no parameter has a gradient: expected backward() before it, the closure is for the second"
            )
        self.first_step(zero_grad=True)
        try:
            with torch.enable_grad():
                loss = closure()
        except BaseException:
            self.restore()
            raise
        self.second_step()
        return loss

    @property
    def nbytes(self) -> int:
        """Bytes of the optimizer's states and of the old values."""
        return self.optimizer.nbytes + self._perturbing.nbytes
